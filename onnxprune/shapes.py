"""Sizes of all tensors, and the integers computed from them, for one binding of the free input sizes.

Three sources, each only for what the one before leaves open: ONNX shape inference on the skeleton (the model without
its large weights, so it takes milliseconds at any size), one probe run with every unknown tensor as an output, and the
shape arithmetic itself (Shape, Gather, Concat ... chains), cut out as a tiny model and run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from onnxprune.errors import InputError
from onnxprune.nodes import has_body
from onnxprune.weights import Array, is_external

Shape = tuple[int, ...]
Run = Callable[[ModelProto, Mapping[str, Array], Path | None], list[Any]]

SMALL = 4096  # numbers; larger tensors are weights or activations, never shape arithmetic
FEW = 16  # numbers; a float tensor computed from sizes holds a scale per axis at most, larger ones are weights
DEFAULT_IMAGE_SIZE = 224
MOVES = frozenset({"Gather", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Trilu", "Unsqueeze"})
"""Operators that move the numbers of their first input around as their other inputs say."""

DECIDING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose numbers decide the size of what they give."""

NOT_REPEATABLE = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def numbers(shape: Iterable[int]) -> int:
    """Count the numbers in a tensor of this shape."""
    return int(np.prod(tuple(shape), dtype=np.int64))


def is_default_domain(domain: str | None) -> bool:
    """Tell whether a domain is that of the ONNX standard."""
    return domain in (None, "", "ai.onnx")


def declared_shape(value: ValueInfoProto) -> list[int | str | None] | None:
    """Read a declared shape: sizes, names of free sizes, None for unnamed ones; None if it is no tensor or unranked."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    return [_declared(d) for d in tensor.shape.dim]


def _declared(size: TensorShapeProto.Dimension) -> int | str | None:
    """Read a declared size; below zero some exporters write what is free."""
    return size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else size.dim_param or None


def is_weight(tensor: TensorProto) -> bool:
    """Tell whether a tensor is too large to be shape arithmetic; only small ones stay in the skeleton."""
    return is_external(tensor) or numbers(tensor.dims) > SMALL


def may_be_sizes(tensor: TensorProto) -> bool:
    """Tell whether a tensor may hold sizes or positions, wherever its numbers lie."""
    return tensor.data_type in (TensorProto.INT32, TensorProto.INT64) and numbers(tensor.dims) <= SMALL


def real_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """List the graph inputs that the user feeds: older files list their initializers as inputs too."""
    stored = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in stored]


def bind_inputs(
    graph: GraphProto, asked: Mapping[str, Sequence[int]], batch: int = 1
) -> tuple[dict[str, Shape], list[str]]:
    """Give every input a shape: what the file says, what is asked for, `batch` or 224 where an image leaves it free.

    Returns:
        The shape of each tensor input, and notes on what was assumed.

    Raises:
        InputError: `asked` contradicts the file, or a size is neither known nor asked for.
    """
    inputs = {value.name: value for value in real_inputs(graph)}
    for name in asked:
        if name not in inputs:
            raise InputError(f"--shape names {name!r}, which is no input of the model; inputs: {', '.join(inputs)}")
    named: dict[str, int] = {}
    for name, sizes in asked.items():
        _match_asked(name, declared_shape(inputs[name]), sizes, named)
    bound: dict[str, Shape] = {}
    notes = []
    for name, value in inputs.items():
        if not value.type.HasField("tensor_type"):
            continue
        declared = declared_shape(value)
        if name in asked:
            bound[name] = tuple(asked[name])
        elif declared is None:
            raise InputError(f"the shape of input {name!r} is unknown; give it, for example --shape {name}=1,3,224,224")
        else:
            bound[name] = _assume(name, declared, named, batch)
            if any(not isinstance(size, int) for size in declared[1:]):
                notes.append(
                    f"input {name!r} has free sizes; measured at {'x'.join(map(str, bound[name]))} "
                    f"(--shape {name}=... changes it)"
                )
    return bound, notes


def _match_asked(
    name: str, declared: list[int | str | None] | None, sizes: Sequence[int], named: dict[str, int]
) -> None:
    if any(size < 1 for size in sizes):
        raise InputError(f"--shape {name}={','.join(map(str, sizes))}: sizes must be 1 or more")
    if declared is None:
        return
    if len(declared) != len(sizes):
        raise InputError(f"--shape {name} gives {len(sizes)} sizes, the input has {len(declared)} axes")
    for axis, (size, fixed) in enumerate(zip(sizes, declared, strict=True)):
        if isinstance(fixed, int) and fixed != size:
            raise InputError(f"--shape {name}: axis {axis} is fixed to {fixed} in the file, {size} was asked for")
        if isinstance(fixed, str):
            named[fixed] = size


def _assume(name: str, declared: list[int | str | None], named: dict[str, int], batch: int) -> Shape:
    sizes: list[int] = []
    for axis, size in enumerate(declared):
        if isinstance(size, int):
            sizes.append(size)
        elif isinstance(size, str) and size in named:
            sizes.append(named[size])
        elif axis == 0:
            sizes.append(batch)
        elif len(declared) == 4 and any(isinstance(declared[c], int) and c != axis for c in (1, 3)):
            sizes.append(DEFAULT_IMAGE_SIZE)
        else:
            text = ",".join(str(s) if isinstance(s, int) else "?" for s in [1, *declared[1:]])
            raise InputError(f"size {axis} of input {name!r} is unknown; give it: --shape {name}={text}")
    return tuple(sizes)


def skeleton(model: ModelProto, bound: Mapping[str, Shape]) -> ModelProto:
    """Copy the model without its large weights, which become typed inputs, and without its (untrusted) value_info."""
    bare = ModelProto(ir_version=max(model.ir_version, 4), domain=model.domain)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph = bare.graph
    graph.name = model.graph.name or "graph"
    for value in real_inputs(model.graph):
        graph.input.append(value)
        if value.name in bound:
            typed = helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, bound[value.name])
            graph.input[-1].CopyFrom(typed)
    for node in model.graph.node:
        weight = constant_weight(node)
        if weight is None:
            graph.node.append(node)
        else:
            graph.input.append(helper.make_tensor_value_info(node.output[0], weight.data_type, tuple(weight.dims)))
    for tensor in model.graph.initializer:
        if is_weight(tensor):
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    for sparse in model.graph.sparse_initializer:
        values = sparse.values
        graph.input.append(helper.make_tensor_value_info(values.name, values.data_type, tuple(sparse.dims)))
    graph.output.extend(model.graph.output)
    return bare


def constant_weight(node: NodeProto) -> TensorProto | None:
    """Give the tensor of a Constant node that holds a large weight."""
    if node.op_type == "Constant" and is_default_domain(node.domain):
        for attribute in node.attribute:
            tensor: TensorProto = attribute.t
            if attribute.name == "value" and is_weight(tensor):
                return tensor
    return None


def infer(bare: ModelProto) -> tuple[dict[str, Shape], dict[str, int], str | None]:
    """Infer shapes and element types on a skeleton.

    Returns:
        Shapes known in full, element types, and what is contradictory in the model (None: nothing found).
    """
    loose = ModelProto()
    loose.CopyFrom(bare)
    for value in loose.graph.output:  # a declared output shape may be stale, and is what inference is to find
        value.type.tensor_type.ClearField("shape")
    contradiction = None
    try:
        done = onnx.shape_inference.infer_shapes(loose, strict_mode=True, data_prop=True)
    except Exception as error:  # onnx raises types of its own here
        contradiction = str(error).strip().splitlines()[0][:300]
        done = onnx.shape_inference.infer_shapes(loose, data_prop=True)
    shapes: dict[str, Shape] = {t.name: tuple(t.dims) for t in done.graph.initializer}
    types: dict[str, int] = {t.name: t.data_type for t in done.graph.initializer}
    for value in [*done.graph.input, *done.graph.value_info, *done.graph.output]:
        if value.type.HasField("tensor_type"):
            types[value.name] = value.type.tensor_type.elem_type
            declared = declared_shape(value)
            if declared is not None and all(isinstance(size, int) for size in declared):
                shapes[value.name] = tuple(size for size in declared if isinstance(size, int))
    return shapes, types, contradiction


def check_batch(file: str, asked: int | None, taken: int) -> None:
    """Make sure that a model takes as many samples at once as are asked for, if any are.

    Raises:
        InputError: it does not.
    """
    if asked not in (None, taken):
        raise InputError(f"{file} takes {taken} at once; leave --batch out, or export the model with a free batch")


def samples(bound: Mapping[str, Shape]) -> int:
    """Count the samples in inputs of these sizes: the first axis of the first that has any."""
    return next((shape[0] for shape in bound.values() if shape), 1)


def decided_by_numbers(graph: GraphProto) -> set[str]:
    """Name the tensors whose sizes may follow from numbers: what `DECIDING` operators and bodies give, and the rest."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type in DECIDING or has_body(node) or not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def example_inputs(graph: GraphProto, bound: Mapping[str, Shape], seed: int = 0) -> dict[str, Array]:
    """Draw inputs of the bound shapes: normal floats, integers 0 and 1 (valid indices nearly everywhere)."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for value in real_inputs(graph):
        if value.name not in bound:
            continue
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        shape = bound[value.name]
        if dtype.kind in "iub":
            feeds[value.name] = rng.integers(0, 2, shape).astype(dtype)
        elif dtype.kind in "OUS":
            feeds[value.name] = np.full(shape, "", dtype=object)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def probe(
    model: ModelProto, folder: Path, bound: Mapping[str, Shape], names: Sequence[str], run: Run
) -> dict[str, Array]:
    """Run the model once with the tensors `names` as outputs and return them.

    Raises:
        InputError: the model does not run.
    """
    graph = model.graph
    original = list(graph.output)
    del graph.output[:]
    graph.output.extend(ValueInfoProto(name=name) for name in names)
    try:
        results = run(model, example_inputs(graph, bound), folder)
    finally:
        del graph.output[:]
        graph.output.extend(original)
    return dict(zip(names, results, strict=True))


def run_alone(model: ModelProto, node: NodeProto, operands: Mapping[str, Array], run: Run) -> list[Any]:
    """Run one node of a model on given operands; returns all its outputs.

    Raises:
        InputError: it does not run.
    """
    tiny = ModelProto(ir_version=max(model.ir_version, 4))
    tiny.opset_import.extend(model.opset_import)
    tiny.graph.name = "node"
    tiny.graph.node.append(node)
    for name, values in operands.items():
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        tiny.graph.input.append(helper.make_tensor_value_info(name, kind, values.shape))
    tiny.graph.output.extend(ValueInfoProto(name=name) for name in node.output if name)
    return run(tiny, operands, None)


def shape_arithmetic(
    graph: GraphProto, shapes: Mapping[str, Shape], types: Mapping[str, int], constants: Mapping[str, TensorProto]
) -> list[int]:
    """List the nodes that only compute with sizes: everything that follows from Shape nodes and small constants alone.

    A chain of constants without a Shape in it is weights if they are floats, or, but for few, no int64.
    """
    sized: set[str] = set()
    found = []
    for index, node in enumerate(graph.node):
        if not is_default_domain(node.domain) or node.op_type in NOT_REPEATABLE:
            continue
        if node.op_type in ("Shape", "Size"):
            if node.input[0] in shapes:
                found.append(index)
                sized.update(node.output)
            continue
        inputs = [name for name in node.input if name]
        small = all(name in sized or _is_small(constants.get(name)) for name in inputs)
        if not inputs or not small or has_body(node):
            continue
        whole = all(types.get(name) in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL) for name in node.output)
        from_sizes = any(name in sized for name in inputs)
        moves = node.op_type in MOVES and node.input[0] not in sized  # weights, to where sizes say
        fills = not whole and (moves or node.op_type in ("ConstantOfShape", "Expand"))
        indices = whole and (from_sizes or all(types.get(name) == TensorProto.INT64 for name in node.output))
        fits = all(numbers(shapes.get(name, ())) <= (SMALL if indices else FEW) for name in node.output)
        if (from_sizes or whole) and not fills and fits:
            found.append(index)
            sized.update(node.output)
    return found


def _is_small(tensor: TensorProto | None) -> bool:
    return tensor is not None and not is_weight(tensor)


def compute_sizes(
    model: ModelProto,
    nodes: Sequence[int],
    shapes: Mapping[str, Shape],
    constants: Mapping[str, TensorProto],
    run: Run,
) -> dict[str, Array]:
    """Compute the outputs of shape arithmetic `nodes` under the given tensor shapes.

    Raises:
        InputError: they do not run.
    """
    if not nodes:
        return {}
    tiny = ModelProto(ir_version=max(model.ir_version, 4))
    tiny.opset_import.extend(o for o in model.opset_import if is_default_domain(o.domain))
    tiny.graph.name = "sizes"
    outputs: list[str] = []
    stored: set[str] = set()
    for index in nodes:
        node = model.graph.node[index]
        if node.op_type in ("Shape", "Size"):
            sizes = np.asarray(shapes[node.input[0]], np.int64)
            start = next((a.i for a in node.attribute if a.name == "start"), 0)
            end = next((a.i for a in node.attribute if a.name == "end"), None)
            value = sizes[start:end] if node.op_type == "Shape" else np.asarray(np.prod(sizes, dtype=np.int64))
            tiny.graph.node.append(
                helper.make_node("Constant", [], [node.output[0]], value=numpy_helper.from_array(value))
            )
        else:
            tiny.graph.node.append(node)
            for name in node.input:
                if name in constants and name not in stored:
                    stored.add(name)
                    tiny.graph.initializer.append(constants[name])
                    tiny.graph.initializer[-1].name = name
        outputs.extend(name for name in node.output if name)
    tiny.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
    results = run(tiny, {}, None)
    return {name: np.asarray(value) for name, value in zip(outputs, results, strict=True)}
