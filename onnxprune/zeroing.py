"""The reference of a cut: the original with every removed slice of its stored numbers set to zero."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.channels import Channels
from onnxprune.linear import FLOAT_TYPES
from onnxprune.model import Model, copy_fields, write_external
from onnxprune.ops.rule import Axes, Key, Mask, View
from onnxprune.plan import kept_slots
from onnxprune.quantized import SCALES, zero_points
from onnxprune.weights import Array

BOUNDED = frozenset({"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh"})
"""Operators whose outputs hide differences; what goes into them is compared as well."""

NOT_ZEROED = frozenset(
    {("Div", 1), ("Mod", 1), ("Pow", 1), ("BatchNormalization", 4), ("Compress", 1)}
    | {(op, position) for op, positions in SCALES.items() for position in positions}
)
"""Operands (operator, input) that must not become zero: divisors, exponents, variances, choices, scales."""

PASSES_ZERO = {"Cast": 1, "CastLike": 1, "DequantizeLinear": 1, "Div": 1, "Mul": 2, "Neg": 1, "Transpose": 1}
"""Operators, and how many of their first inputs make zero slices of the output where their own are zero."""


def zeroed(channels: Channels, keep: Mask, path: Path, only_contracted: bool, taps: Sequence[str] = ()) -> None:
    """Write the original with every removed slice of its stored numbers set to zero, weights in a file beside it.

    Quantised numbers are set to their zero points. Operands that must not be zero (`NOT_ZEROED`) are left as they are.

    Args:
        channels: of the original.
        keep: per atom, whether it stays.
        path: the file to write.
        only_contracted: zero only the axes that convolutions and matrix products sum over.
        taps: tensors that are outputs as well.
    """
    model = channels.model
    proto = ModelProto()
    copy_fields(model.proto, proto, skip=["graph"])
    proto.ir_version = min(max(proto.ir_version, 4), runtime.MAX_IR_VERSION)
    copy_fields(model.proto.graph, proto.graph, skip=["node", "initializer", "value_info"])
    proto.graph.output.extend(ValueInfoProto(name=name) for name in taps)
    axes_of = _zeroable_axes(channels, only_contracted)
    own: dict[str, tuple[int, int]] = {}
    for index, node in enumerate(model.proto.graph.node):
        if not node.input and node.output[0] in model.stored:
            continue  # becomes an initializer
        proto.graph.node.append(node)
        for position in range(len(node.input)):
            if (index, position) in channels.axes:
                name = f"{node.input[position]}/{index}/{position}"
                proto.graph.node[-1].input[position] = name
                own[name] = (index, position)
        kept = [keep[atoms] for atoms in channels.averaged.get(index, ())]
        if any(not stays.all() for stays in kept) and all(stays.any() for stays in kept):
            _average_kept(proto.graph, channels.view(index), keep)
        if node.op_type == "ConstantOfShape" and node.output[0] in channels.axes:
            axes = channels.axes[node.output[0]]
            _zero_made(proto.graph, axes, keep, axes_of(node.output[0]), model.types[node.output[0]])
    zeros = zero_points(channels)

    def tensors() -> Iterator[tuple[str, TensorProto | Array]]:
        for name, tensor in model.stored.items():
            axes = channels.axes.get(name)
            touched = axes is not None and not keep[axes.start : axes.end].all()
            if axes is not None and touched:
                zero = zeros.get(name, 0)
                values = zero_slots(model.array(name), kept_slots(channels, keep, name), zero)
                slotted = name in channels.slots
                along = {axis for axis in range(len(axes)) if axis in axes_of(name)} - ({1} if slotted else set())
                yield name, zero_slices(values, axes, keep, along, zero)
            else:
                yield name, tensor
        for name, key in own.items():
            root = model.graph.nodes[key[0]].inputs[key[1]].name
            values = model.array(channels.aliases.root.get(root, root))
            yield name, zero_slices(values, channels.axes[key], keep, axes_of(key), zeros.get(key, 0))

    write_external(proto, tensors(), path, model.folder)


def _zero_made(graph: GraphProto, axes: Axes, keep: Mask, along: Container[int], kind: int) -> None:
    """Zero slices of what the last node of a graph makes at run time, in a size that may be free."""
    name = graph.node[-1].output[0]
    lost = [axis for axis in range(len(axes)) if axis in along and not keep[axes[axis]].all()]
    if not lost:
        return
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph.initializer.append(numpy_helper.from_array(np.zeros((), dtype), f"{name}/zero"))
    x = graph.node[-1].output[0] = f"{name}/made"
    for axis in lost:
        mask = keep[axes[axis]].reshape(-1, *[1] * (len(axes) - axis - 1))
        graph.initializer.append(numpy_helper.from_array(mask, f"{name}/kept/{axis}"))
        y = name if axis == lost[-1] else f"{name}/zeroed/{axis}"
        graph.node.append(helper.make_node("Where", [f"{name}/kept/{axis}", x, f"{name}/zero"], [y]))
        x = y


def _average_kept(graph: GraphProto, view: View, keep: Mask) -> None:
    """Let the last node of a graph average over the kept indices only: gather them, run it, put zeros in between."""
    node = graph.node.pop()
    number = 0

    def name(of: str) -> str:
        nonlocal number
        number += 1
        return f"{of}/kept/{number}"

    def store(values: Array, of: str) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name(of)))
        return str(graph.initializer[-1].name)

    for position, axes in enumerate(view.inputs):
        for axis in range(len(axes or ())):
            assert axes is not None
            kept = keep[axes[axis]]
            if not kept.all():
                x, y = node.input[position], name(node.input[position])
                node.input[position] = y
                graph.node.append(helper.make_node("Gather", [x, store(np.flatnonzero(kept), x)], [y], axis=axis))
    graph.node.append(node)
    for position, axes in enumerate(view.outputs):
        for axis in range(len(axes or ())):
            assert axes is not None
            kept = keep[axes[axis]]
            if kept.all():
                continue
            y = node.output[position]
            inside, spread = name(y), name(y)
            maker = next(n for n in graph.node if y in n.output)
            maker.output[list(maker.output).index(y)] = inside
            mask = kept.reshape(-1, *[1] * (len(axes) - axis - 1))
            dtype = helper.tensor_dtype_to_np_dtype(view.model.types.get(y, TensorProto.FLOAT))
            places = store(np.maximum(np.cumsum(kept) - 1, 0), y)
            graph.node.append(helper.make_node("Gather", [inside, places], [spread], axis=axis))
            graph.node.append(helper.make_node("Mul", [spread, store(mask.astype(dtype), y)], [y]))


def zero_slices(values: Array, axes: Axes, keep: Mask, along: Container[int], zero: Array | int = 0) -> Array:
    """Set the removed slices along some axes to zero, or to the numbers that stand for it."""
    values = np.array(values)
    zeros = np.broadcast_to(np.asarray(zero, values.dtype), values.shape)
    for axis in range(len(axes)):
        if axis in along:
            gone = ~keep[axes.offsets[axis] : axes.offsets[axis + 1]]
            index = (slice(None),) * axis + (gone,)
            values[index] = zeros[index]
    return values


def zero_slots(values: Array, kept: Mask | None, zero: Array | int = 0) -> Array:
    """Set other indices of the second axis to zero in every group of rows; see `kept_slots`."""
    if kept is None:
        return values
    values = np.array(values)
    zeros = np.broadcast_to(np.asarray(zero, values.dtype), values.shape)
    parts = (part.reshape(len(kept), -1, *values.shape[1:]) for part in (values, zeros))
    for rows, nothing, mask in zip(*parts, kept, strict=True):
        rows[:, ~mask] = nothing[:, ~mask]
    return values


def bounded(channels: Channels) -> frozenset[int]:
    """Find the outputs of functions that flatten large differences, by their position."""
    graph = channels.model.graph
    made = {t.name for node in graph.nodes for t in node.outputs if node.op in BOUNDED}
    return frozenset(i for i, tensor in enumerate(graph.outputs) if tensor.name in made)


def hidden(channels: Channels, keep: Mask) -> list[str]:
    """Name the tensors to compare beside the outputs, which hide differences.

    These are what goes into bounded outputs, and the nearest floats that classes, positions and other outputs which are
    no floats follow from, unless they lose slices.

    Args:
        channels: of the original.
        keep: per atom, whether it stays.
    """
    model = channels.model
    makers = {t.name: node for node in model.graph.nodes for t in node.outputs}
    outputs = [t.name for t in model.graph.outputs]
    known = {*outputs, *(t.name for t in model.graph.inputs), *model.stored, *model.size_values, ""}
    found: dict[str, None] = {}
    for output in outputs:
        node = makers.get(output)
        if node is not None and node.op in BOUNDED:
            found[node.inputs[0].name] = None
        elif model.types.get(output) not in FLOAT_TYPES:
            found |= dict.fromkeys(_nearest_floats(model, makers, output))
    cut = {name for name, axes in channels.axes.items() if not keep[axes.start : axes.end].all()}
    return [name for name in found if name not in known and name not in cut]


def _nearest_floats(model: Model, makers: Mapping[str, gs.Node], name: str) -> Iterator[str]:
    """Name the float tensors that a tensor follows from without another in between."""
    seen, left = {name}, [name]
    while left:
        node = makers.get(left.pop())
        for tensor in () if node is None else node.inputs:
            if tensor.name in seen:
                continue
            seen.add(tensor.name)
            if model.types.get(tensor.name) in FLOAT_TYPES:
                yield tensor.name
            else:
                left.append(tensor.name)


def _zeroable_axes(channels: Channels, only_contracted: bool) -> Callable[[Key], Container[int]]:
    """Say which axes of a stored tensor may be zeroed, given who reads it."""
    untouched: set[Key] = set()
    contracted: dict[Key, set[int]] = {}
    nodes = channels.model.graph.nodes
    makers: dict[Key, int] = {t.name: index for index, node in enumerate(nodes) for t in node.outputs}
    for index, node in enumerate(nodes):
        for position, axes in enumerate(channels.view(index).inputs):
            if axes is None:
                continue
            if (node.op, position) in NOT_ZEROED:
                untouched.add(axes.key)
            axis = _contracted_axis(node, position)
            if axis is not None:
                for key, place in _made_of(channels, makers, axes, axis % len(axes)):
                    contracted.setdefault(key, set()).add(place)

    def axes_of(key: Key) -> Container[int]:
        if key in untouched:
            return ()
        return contracted.get(key, ()) if only_contracted else range(64)

    return axes_of


def _contracted_axis(node: gs.Node, position: int) -> int | None:
    """Name the axis of an operand that a node sums over with the other operand's."""
    if node.op in ("Conv", "ConvTranspose") and position == 1 and node.attrs.get("group", 1) == 1:
        return 1 if node.op == "Conv" else 0
    if node.op == "Gemm" and position == 1:
        return 1 if node.attrs.get("transB", 0) else 0
    if node.op == "MatMul" and position < 2:
        return -1 if position == 0 else -2
    return None


def _made_of(channels: Channels, makers: Mapping[Key, int], axes: Axes, axis: int) -> set[tuple[Key, int]]:
    """Follow an axis of a tensor back, itself included, to where the same slices being zero makes them zero in it."""
    found: set[tuple[Key, int]] = set()
    left = [(axes, axis)]
    while left:
        axes, axis = left.pop()
        if (axes.key, axis) in found:
            continue
        found.add((axes.key, axis))
        index = makers.get(axes.key)
        if index is None:
            continue
        node = channels.model.graph.nodes[index]
        if node.op not in PASSES_ZERO:
            continue
        if node.op == "Transpose":
            axis = list(node.attrs.get("perm", reversed(range(len(axes)))))[axis]
        sources = channels.view(index).inputs[: PASSES_ZERO[node.op]]
        left += [(x, axis) for x in sources if x is not None and len(x) == len(axes) and x.shape[axis] > 1]
    return found
