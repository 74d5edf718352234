"""The oracle: is a cut model what its plan says it is?

It shares no code with the rules, the surgery or the metrics of onnxprune. From the original file and the plan's JSON
alone, with onnx, numpy and onnxruntime, it checks that

1. the cut model is valid;
2. its multiply-accumulates, counted again, are those the plan predicts, and so are the original's;
3. inputs and outputs keep names, types and shapes, free axes included;
4. whatever the plan does not touch is the same, bit for bit, and what it touches lost exactly the planned slices;
5. its outputs equal those of the original with all removed slices set to zero (quantised ones to their zero point).

A cut that is not exact (`approximate`) is compared to a model in which every normalisation over a cut axis is written
out, over what stays of it. Which indices of an activation stay is not in the plan's JSON: there, and only there, the
oracle takes onnxprune's atoms at their word.

`blind_layers` says where (5) proves little: layers whose weights may be wrong without moving the output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import masked_norms
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune import channels, metrics, model, plan, runtime, surgery

Array = npt.NDArray[Any]
Values = dict[str, Array]

TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2
POWER = 100

SIZE_INPUTS = {
    *(("Expand", 1), ("Gather", 1), ("Pad", 1), ("Reshape", 1), ("Slice", 1), ("Split", 1), ("Squeeze", 1)),
    *(("ConstantOfShape", 0), ("Resize", 3), ("Slice", 2), ("Tile", 1)),
}
"""Inputs that hold sizes or positions: the only ones, beside shared parameters, whose numbers may be written anew."""

SIZE_ATTRIBUTES = {
    "Attention": {"q_num_heads", "kv_num_heads", "scale"},
    "Conv": {"group"},
    "ConvInteger": {"group"},
    "ConvTranspose": {"group"},
    "FusedConv": {"group"},
    "GroupNormalization": {"num_groups"},
    "QLinearConv": {"group"},
    "RotaryEmbedding": {"num_heads"},
    "Pad": {"pads"},
    "Slice": {"starts", "ends"},
    "Split": {"split", "num_outputs"},
    "Squeeze": {"axes"},
}

NOT_ZEROED = {
    ("BatchNormalization", 4),
    *(("Compress", 1), ("Div", 1), ("Mod", 1), ("Pow", 1), ("Log", 0), ("Reciprocal", 0)),
    *((op, position) for op in ("QuantizeLinear", "DequantizeLinear") for position in (1, 2)),
    *((op, at) for op in ("QLinearAdd", "QLinearConv", "QLinearMatMul", "QLinearMul") for at in (1, 2, 4, 5, 6, 7)),
    *((op, at) for op in ("QLinearLeakyRelu", "QLinearSigmoid") for at in (1, 2, 3, 4)),
    *((op, at) for op in ("QLinearAveragePool", "QLinearGlobalAveragePool") for at in (1, 2, 3, 4)),
    *(("QLinearConcat", at) for at in range(50) if at % 3 != 2),
    *(("QGemm", at) for at in (1, 2, 4, 5, 7, 8)),
    *((op, at) for op in ("ConvInteger", "MatMulInteger") for at in (2, 3)),
}
"""Inputs where a zero is no absence: scales of a normalisation, variances, divisors, exponents, zero points."""

ZERO_POINTS = {
    ("DequantizeLinear", 0): (2, 1),
    ("QLinearConv", 3): (5, 0),
    ("QLinearMatMul", 0): (2, -2),
    ("QLinearMatMul", 3): (5, -1),
    ("QLinearAdd", 0): (2, 0),
    ("QLinearAdd", 3): (5, 0),
    ("QLinearMul", 0): (2, 0),
    ("QLinearMul", 3): (5, 0),
    ("QGemm", 3): (5, -1),
    ("ConvInteger", 1): (3, 0),
    ("MatMulInteger", 0): (2, -2),
    ("MatMulInteger", 1): (3, -1),
}
"""For each quantised operand (operator, input): which input says what is zero, and along which axis if not a scalar."""

COUNTED = {
    *("Attention", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum"),
    *("FusedConv", "FusedGemm", "FusedMatMul", "GRU"),
    *("Gemm", "LSTM", "MatMul", "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul", "RNN"),
}
"""Operators that multiply and accumulate."""

SQUASHING = {"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax", "Tanh"}
"""A head that ends in one of these hides errors: what it reads is compared as well, and 1 counts as its scale."""

MOVES_ONLY = {"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Checked:
    """What one check worked on.

    Attributes:
        original: the model, weights inside.
        small: the cut model.
        content: the plan's JSON.
        found: what onnxprune found in the original.
        chosen: the plan.
        feeds: the inputs that were run.
        approximate: whether axes may have shrunk that normalisations average over.
    """

    original: ModelProto
    small: ModelProto
    content: dict[str, Any]
    found: channels.Channels
    chosen: plan.Plan
    feeds: list[Values]
    approximate: bool = False

    @cached_property
    def macs(self) -> tuple[int, int]:
        """Multiply-accumulates of the original and of the cut model, counted independently."""
        return count_macs(self.original, self.found.model.bound), count_macs(self.small, self.found.model.bound)


def check(
    source: Path | ModelProto,
    *,
    seed: int = 0,
    kept: plan.Plan | None = None,
    asked: Mapping[str, Sequence[int]] | None = None,
    keep: Sequence[str] = (),
    feeds: list[Values] | None = None,
    run: bool = True,
    approximate: bool = False,
    slots: bool = False,
) -> Checked:
    """Cut a model and check everything.

    Args:
        source: a file, or a model in memory.
        seed: draws the plan and the inputs.
        kept: the plan; by default a random one that keeps 1 to 90 % of each group.
        asked: shapes for inputs that the file leaves free.
        keep: patterns of node names to leave alone.
        feeds: inputs to run; by default random ones for batch 1, and for batch 2 where the batch is free.
        run: whether to compare outputs.
        approximate: let axes shrink that normalisations average over.
        slots: cut the inside of groups and heads.
    """
    folder = source.parent if isinstance(source, Path) else Path()
    original = onnx.load(source) if isinstance(source, Path) else source
    before = original.SerializeToString(deterministic=True)
    loaded = (
        model.load(source, runtime.evaluate, asked)
        if isinstance(source, Path)
        else model.analyse(source, folder, runtime.evaluate, asked or {})
    )
    found = channels.find_channels(loaded, keep, approximate=approximate, slots=slots)
    chosen = random_plan(found, seed) if kept is None else kept
    content = plan.to_json(found, chosen, "", {})
    costs = metrics.Costs(found)
    predicted = costs.of(np.stack([widths(found), chosen.counts]))["macs"]
    small = surgery.cut(found, chosen, runtime.evaluate)
    assert original.SerializeToString(deterministic=True) == before, "the original was changed"
    if isinstance(source, Path):
        onnx.load_external_data_for_model(small, str(folder))

    feeds = feeds or random_feeds(original, loaded.bound, seed)
    done = Checked(original, small, content, found, chosen, feeds, approximate)
    check_valid(original, small)
    check_signature(original, small)
    check_numbers(original, small, content)
    check_nodes(original, small, content)
    check_rest(original, small)
    if run:
        for what, ours, theirs in zip(("the original", "the cut model"), done.macs, predicted, strict=True):
            assert ours == round(theirs), f"{what} has {ours} MACs, {theirs} were predicted"
        check_outputs(done)
    return done


def widths(found: channels.Channels) -> list[int]:
    """List the widths of all groups."""
    return [group.width for group in found.groups]


def random_plan(found: channels.Channels, seed: int) -> plan.Plan:
    """Keep 1 to 90 % of each group, at least one channel."""
    rng = np.random.default_rng(seed)
    kept = []
    for group in found.groups:
        count = max(1, int(rng.uniform(0.01, 0.9) * group.width))
        kept.append(np.sort(rng.choice(group.width, count, replace=False)))
    return plan.Plan(tuple(kept))


def even_plan(found: channels.Channels, share: float, seed: int = 0) -> plan.Plan:
    """Keep the same share of every group, at least one channel."""
    rng = np.random.default_rng(seed)
    counts = [max(1, round(share * group.width)) for group in found.groups]
    return plan.Plan(
        tuple(np.sort(rng.choice(g.width, n, replace=False)) for g, n in zip(found.groups, counts, strict=True))
    )


# ------------------------------------------------------------------------------------------------- 1. and 3.


def check_valid(original: ModelProto, small: ModelProto) -> None:
    """Run the checker of onnx, with shapes where the original passes that."""
    for full in (False, True):
        try:
            onnx.checker.check_model(original, full_check=full)
        except onnx.shape_inference.InferenceError:
            return
        try:
            onnx.checker.check_model(small, full_check=full)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise AssertionError(f"the cut model is not valid: {str(error)[:300]}") from error


def check_signature(original: ModelProto, small: ModelProto) -> None:
    """Compare what the user feeds and gets."""
    for side in ("input", "output"):
        ours = [value for value in getattr(original.graph, side) if value.name not in stored_by_name(original)]
        theirs = [value for value in getattr(small.graph, side) if value.name not in stored_by_name(small)]
        assert ours == theirs, f"the {side}s differ: {[v.name for v in ours]} and {[v.name for v in theirs]}"


# -------------------------------------------------------------------------------------------------- 2. MACs


def count_macs(proto: ModelProto, bound: Mapping[str, tuple[int, ...]]) -> int:
    """Count the multiply-accumulates of all layers with weights."""
    shapes = tensor_shapes(proto, bound)
    total = 0
    for node in proto.graph.node:
        size = [shapes.get(name, ()) for name in node.input]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Conv", "ConvInteger", "DeformConv", "FusedConv", "QLinearConv"):
            total += volume(shapes[node.output[0]]) * volume(size[3 if node.op_type == "QLinearConv" else 1][1:])
        elif node.op_type == "ConvTranspose":
            total += volume(size[0]) * volume(size[1][1:])
        elif node.op_type == "Attention":
            past = size[4][2] if len(node.input) > 4 and node.input[4] else 0
            total += (volume(size[0]) + volume(shapes[node.output[0]])) * (size[1][-2] + past)
        elif node.op_type in ("FusedGemm", "Gemm", "QGemm"):
            total += volume(shapes[node.output[0]]) * size[0][0 if attributes.get("transA", 0) else 1]
        elif node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"):
            total += volume(shapes[node.output[0]]) * size[0][-2 if attributes.get("transA", 0) else -1]
        elif node.op_type == "Einsum" and len(node.input) > 1:
            terms = named_axes(attributes["equation"].decode(), size)
            terms = [  # unnamed axes have digits for labels
                term.replace("...", "0123456789"[-n:] if (n := len(shape) - len(term.replace("...", ""))) else "")
                for term, shape in zip(terms, size, strict=True)
            ]
            labels: dict[str, int] = {}
            for term, shape in zip(terms, size, strict=True):
                for label, length in zip(term, shape, strict=True):
                    labels[label] = max(length, labels.get(label, 0))
            result = attributes["equation"].decode().partition("->")[2].replace(" ", "") + "0123456789"
            for last in range(1, len(terms)):  # one operand after another, each time over what is still needed
                later = result + "".join(terms[last:])
                before = {label for label in "".join(terms[:last]) if label in later}
                total += volume(labels[label] for label in before | set(terms[last]))
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            total += (volume(size[1]) + volume(size[2])) * size[0][0] * size[0][1]
    return total


def named_axes(equation: str, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Read the operands of an Einsum; axes that it leaves unnamed get digits, the last one 0."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    unnamed = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, shapes, strict=True)]
    return [term.replace("...", "9876543210"[10 - n :]) for term, n in zip(terms, unnamed, strict=True)]


def volume(shape: Iterable[int]) -> int:
    """Multiply sizes."""
    return int(np.prod(tuple(shape), dtype=np.int64))


def tensor_shapes(proto: ModelProto, bound: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Find the shape of every tensor: by inference, or by running the model where that is not enough."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        if value.name in bound:
            value.CopyFrom(
                helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, bound[value.name])
            )
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    done = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    shapes = {name: tuple(tensor.dims) for name, tensor in stored_by_name(proto).items()}
    for value in [*done.input, *done.value_info, *done.output]:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    wanted = [n for node in proto.graph.node if node.op_type in COUNTED for n in [*node.input, *node.output] if n]
    missing = [name for name in dict.fromkeys(wanted) if name not in shapes]
    if missing:
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
        try:
            results = run_model(copy, random_feeds(copy, bound, 0)[0])
        except Exception as error:  # onnxruntime's own types
            raise AssertionError(f"the model does not run: {str(error)[:300]}") from error
        shapes.update({name: result.shape for name, result in zip(missing, results, strict=True)})
    return shapes


# ------------------------------------------------------------------------------------------ 4. bit-identical


def stored_by_name(proto: ModelProto) -> dict[str, TensorProto]:
    """Collect what a model stores: initializers, and Constant nodes by the name of their output."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            stored[node.output[0]] = constant_tensor(node)
    return stored


def constant_tensor(node: NodeProto) -> TensorProto:
    """Give what a Constant node holds."""
    (attribute,) = (a for a in node.attribute if a.name.startswith("value"))
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    types = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    return numpy_helper.from_array(np.asarray(helper.get_attribute_value(attribute), types[attribute.name]))


def aliases(proto: ModelProto) -> dict[str, str]:
    """Follow Identity nodes to stored tensors."""
    stored = set(stored_by_name(proto))
    root: dict[str, str] = {name: name for name in stored}
    for node in proto.graph.node:
        if node.op_type == "Identity" and node.input[0] in root:
            root[node.output[0]] = root[node.input[0]]
    return root


def from_sizes(proto: ModelProto) -> set[str]:
    """Name the tensors that follow from sizes of other tensors, or from stored whole numbers."""
    stored = stored_by_name(proto)
    integers = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    whole = {name for name, tensor in stored.items() if tensor.data_type in integers}
    sized: set[str] = set()
    for node in proto.graph.node:
        names = [name for name in node.input if name]
        follows = any(n in sized for n in names) and all(n in sized or n in stored for n in names)
        if node.op_type in ("Shape", "Size") or follows or (names and all(n in whole for n in names)):
            sized.update(node.output)
    return sized


def removed_slices(content: dict[str, Any]) -> dict[str | tuple[int, int], dict[int, list[int]]]:
    """Read from a plan what every stored tensor, or every reader of a shared one, loses."""
    gone: dict[str | tuple[int, int], dict[int, list[int]]] = {}
    for name, by_axis in content["removed"].items():
        gone[name] = {int(axis): indices for axis, indices in by_axis.items()}
    for entry in content["removed_at"]:
        gone.setdefault((entry["node"], entry["input"]), {})[entry["axis"]] = entry["indices"]
    return gone


def removed_in_groups(content: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Read from a plan which indices of the second axis go, group of rows by group of rows."""
    assert all(entry["axis"] == 1 for entry in content["removed_in_groups"])
    return {entry["tensor"]: entry["indices"] for entry in content["removed_in_groups"]}


def rows_of_groups(values: Array, groups: int) -> list[Array]:
    """Take the rows of each group apart, as views."""
    return list(values.reshape(groups, -1, *values.shape[1:]))


def check_numbers(original: ModelProto, small: ModelProto, content: dict[str, Any]) -> None:
    """Check that every stored number a node reads is the original's less what the plan removes."""
    gone, in_groups = removed_slices(content), removed_in_groups(content)
    root, small_root = aliases(original), aliases(small)
    stored, small_stored = stored_by_name(original), stored_by_name(small)
    small_nodes = {node.output[0]: node for node in small.graph.node if node.output}
    for index, node in enumerate(original.graph.node):
        now = small_nodes.get(node.output[0])
        for position, name in enumerate(node.input):
            if now is None or name not in root or node.output[0] in root or (node.op_type, position) in SIZE_INPUTS:
                continue
            where = f"input {position} of {node.name or node.output[0]} ({name})"
            assert now.input[position] in small_root, f"{where} is stored no more"
            expected = numpy_helper.to_array(stored[root[name]])
            if root[name] in in_groups:
                lists = in_groups[root[name]]
                rows = zip(rows_of_groups(expected, len(lists)), lists, strict=True)
                expected = np.concatenate([np.delete(group, indices, 1) for group, indices in rows])
            for axis, indices in gone.get((index, position), gone.get(root[name], {})).items():
                expected = np.delete(expected, indices, axis)
            tensor = small_stored[small_root[now.input[position]]]
            assert tensor.data_type == stored[root[name]].data_type, f"{where} changed its type"
            result = numpy_helper.to_array(tensor)
            assert expected.shape == result.shape, f"{where}: {result.shape} instead of {expected.shape}"
            assert expected.tobytes() == result.tobytes(), f"{where} holds other numbers than planned"
    _check_initializers(original, small, {*gone, *in_groups}, root)


def _check_initializers(
    original: ModelProto, small: ModelProto, gone: set[str | tuple[int, int]], root: Mapping[str, str]
) -> None:
    """Check that initializers nobody cuts stay, to the letter and in their order."""
    touched = {key for key in gone if isinstance(key, str)}
    for index, node in enumerate(original.graph.node):
        for position, name in enumerate(node.input):
            if (index, position) in gone or (node.op_type, position) in SIZE_INPUTS:
                touched.add(root.get(name, name))
    now = {tensor.name: tensor for tensor in small.graph.initializer}
    sized = from_sizes(original)
    read = {name for node in small.graph.node for name in node.input}
    order = [tensor.name for tensor in original.graph.initializer if tensor.name in now]
    assert order == [name for name in now if name in {t.name for t in original.graph.initializer}], "order changed"
    only_sizes = {name for node in original.graph.node if all(o in sized for o in node.output) for name in node.input}
    for tensor in original.graph.initializer:
        if tensor.name in touched:
            continue
        if tensor.name in now:
            assert now[tensor.name] == tensor, f"initializer {tensor.name} changed"
        else:
            assert tensor.name in only_sizes, f"initializer {tensor.name} is gone"
            assert tensor.name not in read


def shuffles_as_gathers(original: ModelProto, small: ModelProto) -> dict[int, set[int]]:
    """Find the chains of Reshape, Transpose and Reshape in whose place the cut model has one Gather.

    That the Gather does what they did is for the outputs to show; here it is checked that nobody else reads what is
    gone, and that the Gather is a permutation with constant indices, from the chain's input to its output.

    Returns:
        For the last node of each chain, the others.
    """
    made = {name: index for index, node in enumerate(original.graph.node) for name in node.output}
    readers = Counter(name for node in original.graph.node for name in node.input)
    readers.update(value.name for value in original.graph.output)
    stored, now = stored_by_name(original), stored_by_name(small)
    found = {}
    for node in small.graph.node:
        last = made.get(node.output[0])
        if node.op_type != "Gather" or last is None or original.graph.node[last].op_type == "Gather":
            continue
        chain = [last]
        while len(chain) < 3:
            chain.insert(0, made[original.graph.node[chain[0]].input[0]])
        nodes = [original.graph.node[index] for index in chain]
        where = f"the Gather {node.name}"
        assert [n.op_type for n in nodes] == ["Reshape", "Transpose", "Reshape"], (
            f"{where} is in place of another chain"
        )
        assert all(readers[n.output[0]] == 1 for n in nodes[:-1]), f"{where} is in place of what others read"
        assert node.input[0] == nodes[0].input[0], f"{where} reads {node.input[0]!r}"
        assert (node.name, node.domain) == (nodes[-1].name, nodes[-1].domain)
        assert [a.name for a in node.attribute] == ["axis"]
        order = now[node.input[1]]
        assert order.name == f"{node.output[0]}_order" or order.name.startswith(f"{node.output[0]}_order_")
        assert order.name not in [*stored, *made]
        assert order.data_type == TensorProto.INT64
        values = numpy_helper.to_array(order)
        assert np.array_equal(np.sort(values), np.arange(len(values))), f"{where} permutes nothing"
        found[last] = set(chain[:-1])
    return found


def check_nodes(original: ModelProto, small: ModelProto, content: dict[str, Any]) -> None:
    """Check that nodes keep their order and everything in them but sizes; a shuffle may be one Gather."""
    gone, gathers = removed_slices(content), shuffles_as_gathers(original, small)
    gathered = {index for chain in gathers.values() for index in chain}
    sized, root = from_sizes(original), aliases(original)
    constants = {node.output[0] for node in original.graph.node if node.op_type == "Constant"}
    ours = {tuple(node.output): index for index, node in enumerate(original.graph.node)}
    order = [ours[tuple(node.output)] for node in small.graph.node if tuple(node.output) in ours]
    assert order == sorted(order), "nodes changed their order"
    for index in set(range(len(original.graph.node))) - set(order) - gathered:
        node = original.graph.node[index]
        assert all(o in sized or o in root for o in node.output), f"node {node.name} ({node.op_type}) is gone"
    names = {name for node in original.graph.node for name in [*node.input, *node.output]}
    for node in small.graph.node:
        if tuple(node.output) not in ours:
            assert node.op_type in ("Mul", "Div"), f"a {node.op_type} was added"
            assert node.output[0] not in names, f"{node.output[0]} was there already"
            assert node.input[0] in sized, "only sizes may be corrected on the way"
            sized.update(node.output)
            continue
        index = ours[tuple(node.output)]
        if index in gathers:
            continue
        before = original.graph.node[index]
        where = f"node {before.name or before.output[0]} ({before.op_type})"
        for field in ("name", "op_type", "domain", "doc_string", "overload"):
            assert getattr(node, field) == getattr(before, field), f"{where} changed its {field}"
        assert list(node.metadata_props) == list(before.metadata_props), f"{where} lost metadata"
        if before.output[0] not in constants:
            allowed = SIZE_ATTRIBUTES.get(before.op_type, set())
            assert attributes_but(before, allowed) == attributes_but(node, allowed), f"{where} changed its attributes"
        for position, name in enumerate(node.input):
            old = before.input[position] if position < len(before.input) else ""
            if name == old:
                continue
            may = (index, position) in gone or (before.op_type, position) in SIZE_INPUTS or old in sized
            assert may, f"{where}: input {position} is {name!r}, was {old!r}"
            assert name not in names, f"{where} reads {name!r} of another node"


def attributes_but(node: NodeProto, names: set[str]) -> dict[str, Any]:
    """Give all attributes but some, in a form that compares by content."""
    return {a.name: attribute_content(a) for a in node.attribute if a.name not in names}


def attribute_content(attribute: AttributeProto) -> Any:
    """Give an attribute's type and content; tensors by their numbers, whichever field holds them."""
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        array = numpy_helper.to_array(value)
        value = (value.data_type, array.shape, array.tobytes())
    elif isinstance(value, GraphProto):
        value = value.SerializeToString(deterministic=True)
    return attribute.type, value


def check_rest(original: ModelProto, small: ModelProto) -> None:
    """Compare what is neither node nor weight: versions, metadata, functions, names, texts."""
    bare = []
    for proto in (original, small):
        copy = ModelProto()
        copy.CopyFrom(proto)
        for field in ("node", "initializer", "input", "output", "value_info"):
            copy.graph.ClearField(field)
        bare.append(copy)
    assert bare[0] == bare[1], "metadata, opsets or functions changed"


# ---------------------------------------------------------------------------------------------- 5. outputs


def check_outputs(checked: Checked) -> None:
    """Compare the cut model to the reference."""
    names = watched(checked.original)
    small = with_outputs(checked.small, names)
    reference = with_outputs(reference_of(checked), names)
    fallback = None
    for feed in checked.feeds:
        expected = run_model(reference, feed)
        if not all_finite(expected):
            fallback = fallback or with_outputs(reference_of(checked, only_contracted=True), names)
            expected = run_model(fallback, feed)
            assert all_finite(expected), "the original is not finite on these inputs"
        limit = tolerance(checked.original)
        try:
            results = run_model(small, feed)
        except Exception as error:  # onnxruntime's own types
            raise AssertionError(f"the cut model does not run: {str(error)[:300]}") from error
        for (name, scale), ours, theirs in zip(names.items(), expected, results, strict=True):
            difference = distance(ours, theirs, scale)
            assert difference <= limit, f"output {name} is off by {difference:.1e} of its largest number"


def reference_of(checked: Checked, *, only_contracted: bool = False) -> ModelProto:
    """Write the model that the cut one must equal."""
    result = zeroed(checked.original, checked.content, only_contracted=only_contracted)
    return averaging_what_stays(result, checked) if checked.approximate else result


def averaging_what_stays(proto: ModelProto, checked: Checked) -> ModelProto:
    """Write out the normalisations over cut axes; the channels that these lose must be marked as approximate."""
    found, keep = checked.found, plan.kept_atoms(checked.found, checked.chosen)
    stored, root = stored_by_name(proto), aliases(proto)
    marked = np.concatenate([*(g.channels for g in found.groups if g.is_approximate), np.empty(0, np.int64)])
    result = ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    for index, node in enumerate(proto.graph.node):
        name = checked.original.graph.node[index].input[0] if node.input else ""
        axes = found.axes.get((index, 0), found.axes.get(root.get(name, name)))
        masks = [keep[axes[axis]] for axis in range(len(axes))] if axes is not None else []
        over = masked_norms.averaged_axes(node, len(masks), lambda n: numpy_helper.to_array(stored[root[n]]))
        shrunk = masked_norms.shrunk_axes(node, masks, over)
        if axes is None or not shrunk:
            unknown = index in found.averaged and not all(keep[atoms].all() for atoms in found.averaged[index])
            assert not unknown or over, f"nobody has written out what {node.op_type} averages over"
            result.graph.node.append(node)
            continue
        for axis in shrunk:
            gone = found.channel_of[axes[axis][~masks[axis]]]
            assert np.isin(gone, marked).all(), f"{node.name} averages over channels that are not marked as approximate"
        opset, dtype = masked_norms.opset_of(proto), masked_norms.default_dtype(proto)
        writer = masked_norms.Writer(result, node, masks, opset, dtype)
        result.graph.node.extend(masked_norms.written_out(writer, over))
    return result


def watched(proto: ModelProto) -> dict[str, float]:
    """Name what to compare, and the least scale of each: the outputs, and what those read that squash."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    scales: dict[str, float] = {}
    for value in proto.graph.output:
        maker = makers.get(value.name)
        if maker is not None and maker.op_type in SQUASHING:
            scales |= {value.name: 1.0, maker.input[0]: 0.0}
        else:
            scales[value.name] = 0.0
    return scales


def with_outputs(proto: ModelProto, names: Iterable[str]) -> ModelProto:
    """Give a model other outputs."""
    result = ModelProto()
    result.CopyFrom(proto)
    declared = {value.name: value for value in proto.graph.output}
    del result.graph.output[:]
    result.graph.output.extend(declared.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return result


def tolerance(proto: ModelProto) -> float:
    """Say how far outputs may be apart, relative to the largest."""
    halves = any(tensor.data_type == TensorProto.FLOAT16 for tensor in stored_by_name(proto).values())
    return HALF_TOLERANCE if halves else TOLERANCE


def all_finite(outputs: Iterable[Any]) -> bool:
    """Tell whether all outputs are finite."""
    return all(np.isfinite(o).all() for o in outputs if isinstance(o, np.ndarray) and o.dtype.kind == "f")


def distance(ours: Any, theirs: Any, scale: float = 0.0) -> float:
    """Measure how far outputs are apart, relative to the largest number; whole numbers and texts must be equal."""
    if not isinstance(ours, np.ndarray) or ours.dtype.kind != "f":
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    assert ours.shape == theirs.shape, f"an output has shape {theirs.shape} instead of {ours.shape}"
    if not ours.size:
        return 0.0
    wide, other = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.abs(wide - other).max() / max(np.abs(wide).max(), scale, 1e-30))


def zeroed(original: ModelProto, content: dict[str, Any], *, only_contracted: bool = False) -> ModelProto:
    """Set removed slices of the original to zero, or their zero point; everything else stays, sizes included.

    Args:
        original: the model.
        content: the plan's JSON.
        only_contracted: leave what makes channels alone and zero only the weights that read them.
    """
    result = ModelProto()
    result.CopyFrom(original)
    stored, root = stored_by_name(result), aliases(result)
    moved = moves_only(result)
    exempt = {moved[name] for node in result.graph.node for name in untouchable(node) if name in moved}
    reads, zeros = contracted_axes(result), zero_points(original)
    in_groups = removed_in_groups(content)
    for key, by_axis in [
        *removed_slices(content).items(),
        *((key, {}) for key in in_groups if key not in content["removed"]),
    ]:
        if isinstance(key, str):
            name, source, values, may_zero = key, key, stored[key], key not in exempt
        else:
            node = result.graph.node[key[0]]
            source, may_zero = root[node.input[key[1]]], node.input[key[1]] not in untouchable(node)
            values = stored[source]
            name = own_copy(result, node, key[1], values)
        numbers = numpy_helper.to_array(values).copy()
        fill = zeros.get(source, np.zeros_like(numbers))
        for axis, indices in by_axis.items():
            if (key, axis) in reads if only_contracted else may_zero:
                where = (slice(None),) * axis + (indices,)
                numbers[where] = fill[where]
        if key in in_groups and (not only_contracted or (key, 1) in reads):
            lists = in_groups[key]
            taken = (rows_of_groups(values, len(lists)) for values in (numbers, fill))
            for rows, blank, indices in zip(*taken, lists, strict=True):
                rows[:, indices] = blank[:, indices]
        write(result, name, numbers)
    return result


def zero_points(proto: ModelProto) -> Values:
    """Find what is zero in quantised weights, in their own shape."""
    stored, root = stored_by_name(proto), aliases(proto)
    found = {}
    for node in proto.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for position, name in enumerate(node.input):
            if (node.op_type, position) not in ZERO_POINTS or name not in root:
                continue
            at, axis = ZERO_POINTS[node.op_type, position]
            if len(node.input) <= at or node.input[at] not in root:
                continue
            shape = tuple(stored[root[name]].dims)
            axis = 0 if attributes.get("transB", 0) else axis
            axis = attributes.get("axis", axis) % max(len(shape), 1)
            point = numpy_helper.to_array(stored[root[node.input[at]]])
            if attributes.get("block_size", 0):
                point = np.repeat(point, attributes["block_size"], axis)[(slice(None),) * axis + (slice(shape[axis]),)]
            elif point.size > 1:
                point = point.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            found[root[name]] = np.broadcast_to(point if point.size > 1 else point.reshape(()), shape)
    return found


def write(proto: ModelProto, name: str, values: Array) -> None:
    """Store other numbers under a name, in an initializer or in a Constant node."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
    for initializer in proto.graph.initializer:
        if initializer.name == name:
            initializer.CopyFrom(tensor)
            return
    (node,) = (node for node in proto.graph.node if list(node.output) == [name])
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", tensor))


def own_copy(proto: ModelProto, node: NodeProto, position: int, shared: TensorProto) -> str:
    """Give one reader of a shared parameter its own copy of it; returns the copy's name."""
    copy = proto.graph.initializer.add()
    copy.CopyFrom(shared)
    node.input[position] = name = f"{node.output[0]}_input_{position}_alone"
    copy.name = name
    return name


def untouchable(node: NodeProto) -> set[str]:
    """Name the inputs of a node where a zero would be no absence."""
    return {name for position, name in enumerate(node.input) if (node.op_type, position) in NOT_ZEROED}


def moves_only(proto: ModelProto) -> dict[str, str]:
    """Follow nodes that only move numbers around back to the stored tensor they start from."""
    source = {name: name for name in stored_by_name(proto)}
    for node in proto.graph.node:
        if node.op_type in MOVES_ONLY and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
    return source


def contracted_axes(proto: ModelProto) -> set[tuple[str, int]]:
    """Find the axes of stored weights that a layer sums over."""
    places = {name: (name, list(range(len(t.dims)))) for name, t in stored_by_name(proto).items()}
    found = set()
    for node in proto.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type in ("Identity", "Cast", "Transpose") and node.input[0] in places:
            name, axes = places[node.input[0]]
            order = attributes.get("perm", range(len(axes))[::-1]) if node.op_type == "Transpose" else range(len(axes))
            places[node.output[0]] = name, [axes[a] for a in order]
        summed: list[tuple[int, int]] = []
        if node.op_type == "Conv":
            summed = [(1, 1)]
        elif node.op_type == "ConvTranspose":
            summed = [(1, 0)]
        elif node.op_type == "Gemm":
            summed = [(0, 0 if attributes.get("transA", 0) else 1), (1, 1 if attributes.get("transB", 0) else 0)]
        elif node.op_type == "MatMul":
            summed = [(0, -1), (1, -2)]
        for position, axis in summed:
            if node.input[position] in places:
                name, axes = places[node.input[position]]
                found.add((name, axes[axis if len(axes) > 1 else 0]))
    return found


# ---------------------------------------------------------------------------------------------------- power


def blind_layers(checked: Checked) -> list[str]:
    """List the cut weights that may be wrong without moving an output: there, equal outputs prove nothing.

    The error planted in each is the one a wrong index makes: kept slices in another order (a lone one changes sign).
    """
    small = with_outputs(checked.small, watched(checked.original))
    normal = [run_model(small, feed) for feed in checked.feeds]
    limit = max(POWER * TOLERANCE, 2 * tolerance(checked.original))
    blind = []
    touched = {name: set(map(int, by_axis)) for name, by_axis in checked.content["removed"].items()}
    for name in removed_in_groups(checked.content):
        touched.setdefault(name, set()).add(1)
    for name, axes in touched.items():
        for axis in sorted(axes):
            values = numpy_helper.to_array(stored_by_name(small)[name])
            if values.ndim < 2:
                continue
            wrong = ModelProto()
            wrong.CopyFrom(small)
            write(wrong, name, np.roll(values, 1, axis) if values.shape[axis] > 1 else -values)
            results = (run_model(wrong, feed) for feed in checked.feeds)
            pairs = zip(normal, results, strict=True)
            moved = max(max(map(distance, before, after)) for before, after in pairs)
            if not moved > limit:
                blind.append(f"{name} axis {axis} ({moved:.1e})")
    return blind


# ------------------------------------------------------------------------------------------------- running


def run_model(proto: ModelProto, feed: Values) -> list[Any]:
    """Run a model as it is written, without optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[Any] = session.run(None, feed)
    return results


def random_feeds(proto: ModelProto, bound: Mapping[str, tuple[int, ...]], seed: int) -> list[Values]:
    """Draw inputs for the shapes given, and for batch 2 where the batch is free and the model itself can take it."""
    stored = stored_by_name(proto)
    inputs = [value for value in proto.graph.input if value.name not in stored]
    feeds = [draw(inputs, bound, seed)]
    dims = [value.type.tensor_type.shape.dim for value in inputs]
    if dims and all(d and not d[0].HasField("dim_value") for d in dims):
        pair = draw(inputs, {name: (2, *shape[1:]) for name, shape in bound.items()}, seed + 1)
        try:
            run_model(proto, pair)
        except Exception:  # onnxruntime's own types: the batch is called free, but something inside fixes it
            return feeds
        feeds.append(pair)
    return feeds


def draw(inputs: Iterable[onnx.ValueInfoProto], bound: Mapping[str, tuple[int, ...]], seed: int) -> Values:
    """Draw one random value for each input."""
    rng = np.random.default_rng(seed)
    feed: Values = {}
    for value in inputs:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        shape = bound[value.name]
        numbers = rng.integers(0, 2, shape) if dtype.kind in "iub" else rng.standard_normal(shape)
        feed[value.name] = numbers.astype(dtype)
    return feed


def with_random_weights(proto: ModelProto, seed: int = 0) -> ModelProto:
    """Turn weights made by ConstantOfShape, all equal, into random initializers."""
    rng = np.random.default_rng(seed)
    result = ModelProto()
    result.CopyFrom(proto)
    stored = stored_by_name(result)
    made = [n for n in result.graph.node if n.op_type == "ConstantOfShape" and n.input[0] in stored]
    for node in made:
        shape = tuple(int(size) for size in numpy_helper.to_array(stored[node.input[0]]))
        values = rng.uniform(0.5, 1.5, shape)
        if len(shape) > 1:
            values = rng.standard_normal(shape) * np.sqrt(2 / volume(shape[1:]))
        tensor = numpy_helper.from_array(values.astype(np.float32), node.output[0])
        result.graph.initializer.append(tensor)
        if result.ir_version < 4:
            result.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
        result.graph.node.remove(node)
    return result


def operators(proto: ModelProto) -> Counter[str]:
    """Count the operators of a model."""
    return Counter(node.op_type for node in proto.graph.node)


# ------------------------------------------------------------------------------------------------- golden


def figures(found: channels.Channels) -> dict[str, Any]:
    """Sum up what was found, to be compared with what was found before."""
    nodes = metrics.Costs(found).per_node()
    total = sum(node.macs for node in nodes)
    return {
        "groups": len(found.groups),
        "widths": sorted(widths(found)),
        "prunable_macs": round(sum(node.macs for node in nodes if node.is_free) / total, 4) if total else 0.0,
    }
