"""Prove a result before it is written: valid, loadable, as small as planned, and equal where it must be.

The last check shares nothing with the rules: the cut model must answer as the original does whose removed slices are
set to zero. See `zeroed` for what is zeroed and what is not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune import shapes as sizes
from onnxprune.channels import Channels, find_channels
from onnxprune.errors import InputError, VerifyError
from onnxprune.metrics import Costs
from onnxprune.model import analyse, copy_fields, write_external
from onnxprune.ops.rule import Axes, Key, Mask, View
from onnxprune.plan import Plan, kept_atoms, kept_slots, whole
from onnxprune.weights import Array

LEVELS = ("none", "fast", "full")
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # of the largest output; the second where weights have half precision
HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

BOUNDED = frozenset({"HardSigmoid", "LogSoftmax", "Sigmoid", "Softmax"})
"""Operators whose outputs hide differences; what goes into them is compared as well."""

ZERO_POINTS = {
    ("DequantizeLinear", 0): 2,
    ("ConvInteger", 1): 3,
    ("MatMulInteger", 0): 2,
    ("MatMulInteger", 1): 3,
    ("QLinearConv", 3): 5,
    ("QLinearMatMul", 0): 2,
    ("QLinearMatMul", 3): 5,
    ("QGemm", 3): 5,
    ("QLinearAdd", 0): 2,
    ("QLinearAdd", 3): 5,
    ("QLinearMul", 0): 2,
    ("QLinearMul", 3): 5,
}
"""Operands (operator, input) that hold quantised numbers, and the input that says which of these stand for zero."""

SCALES = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5),
}
"""Inputs of quantised operators that are scales and zero points."""

NOT_ZEROED = frozenset(
    {("Div", 1), ("Mod", 1), ("Pow", 1), ("BatchNormalization", 4), ("Compress", 1)}
    | {(op, position) for op, positions in SCALES.items() for position in positions}
)
"""Operands (operator, input) that must not become zero: divisors, exponents, variances, choices, scales."""


def verify(channels: Channels, plan: Plan, cut: ModelProto, level: str) -> dict[str, str]:
    """Check a cut model against its original.

    Args:
        channels: of the original.
        plan: what the cut was made from.
        cut: the result, not yet written.
        level: ``fast`` compares outputs on one input, ``full`` on several, with and without graph optimisation.

    Returns:
        What was checked, and the result in words.

    Raises:
        VerifyError: a check failed.
        InputError: onnxruntime cannot run the original.
    """
    if level == "none":
        return {}
    model = channels.model
    empty = next((name for name, shape in model.bound.items() if 0 in shape), None)
    if empty is not None:
        raise InputError(f"input {empty!r} has a size of 0, so no outputs can be compared; --verify none does without")
    checks = {"checker": _check_valid(cut, model.bound), "interface": _check_interface(model.proto, cut)}
    try:
        smaller = analyse(cut, model.folder, runtime.evaluate, model.bound)
    except InputError as error:
        raise VerifyError(f"the cut model makes no sense: {error}") from error
    found = find_channels(smaller)
    counted = int(Costs(found).of([g.width for g in found.groups])["macs"][0])
    planned = int(Costs(channels).of(plan.counts)["macs"][0])
    if counted != planned:
        raise VerifyError(f"the cut model has {counted} MACs, {planned} were planned")
    checks["macs"] = f"{counted} recounted as planned"
    checks["outputs"] = _check_outputs(channels, plan, cut, level)
    return checks


def verify_lossless(original: Channels, channels: Channels, plan: Plan, level: str) -> dict[str, str]:
    """Check that a model whose dead channels are folded into biases, and zeroed, answers as the original does.

    Args:
        original: of the model as it was given.
        channels: of the model with other biases.
        plan: all but the dead channels.
        level: ``none`` checks nothing.

    Raises:
        VerifyError: it answers something else.
    """
    if level == "none":
        return {}
    model = original.model
    bound = {name: (2, *shape[1:]) for name, shape in model.bound.items()} if model.has_free_batch else model.bound
    feeds = [sizes.example_inputs(model.proto.graph, bound, seed) for seed in range(3 if level == "full" else 1)]
    expected = _reference(original, whole(original), feeds, optimize=False)
    answers = _reference(channels, plan, feeds, optimize=False)
    worst = max(compare(*pair, _bounded(original)) for pair in zip(expected, answers, strict=True))
    tolerance = HALF_TOLERANCE if any(t.data_type in HALF_TYPES for t in model.stored.values()) else TOLERANCE
    if worst > tolerance:
        raise VerifyError(f"without its dead channels the model differs by {worst:.1e} of the largest output")
    return {"lossless": f"equal to the original without its dead channels within {worst:.1e} of the largest output"}


def _check_valid(cut: ModelProto, bound: Mapping[str, sizes.Shape]) -> str:
    bare = sizes.skeleton(cut, bound)
    try:
        onnx.checker.check_model(bare)
    except Exception as error:
        raise VerifyError(f"the cut model is not valid ONNX: {error}") from error
    try:
        onnx.checker.check_model(bare, full_check=True)
    except Exception as error:
        return f"passed; full shape check not possible ({str(error).splitlines()[0][:120]})"
    return "passed, with full shape check"


def _check_interface(original: ModelProto, cut: ModelProto) -> str:
    before, after = original.graph, cut.graph
    if sizes.real_inputs(before) != sizes.real_inputs(after) or list(before.output) != list(after.output):
        raise VerifyError("the inputs or outputs of the cut model are not those of the original")
    return "same inputs and outputs"


def _check_outputs(channels: Channels, plan: Plan, cut: ModelProto, level: str) -> str:
    """Compare the cut model with the zeroed original on random inputs."""
    model = channels.model
    batches = (1, 2) if level == "full" else (2,)
    bounds = [dict(model.bound)]
    if model.has_free_batch:
        bounds = [{name: (batch, *shape[1:]) for name, shape in model.bound.items()} for batch in batches]
    seeds = range(3 if level == "full" else 1)
    feeds = [sizes.example_inputs(model.proto.graph, bound, seed) for bound in bounds for seed in seeds]
    tolerance = HALF_TOLERANCE if any(t.data_type in HALF_TYPES for t in model.stored.values()) else TOLERANCE
    optimized = _difference(channels, plan, cut, feeds, optimize=True)
    if optimized is None:
        return "NOT compared: the original answers random inputs with nothing"
    worst = optimized
    if level == "full" or tolerance < optimized <= HALF_TOLERANCE:
        # Kernels of optimised graphs sum in another order, which some nets magnify; as written, both must agree.
        worst = _difference(channels, plan, cut, feeds, optimize=False) or 0.0
    if not (worst <= tolerance and optimized <= HALF_TOLERANCE):
        worst = max(worst, optimized)
        raise VerifyError(
            f"the cut model differs from the original with the same slices zeroed by {worst:.1e} of the largest output"
        )
    noise = f" ({optimized:.1e} with onnxruntime's optimisations)" if optimized > tolerance else ""
    return f"equal to the zeroed original within {worst:.1e} of the largest output{noise}"


def _difference(
    channels: Channels, plan: Plan, cut: ModelProto, feeds: list[dict[str, Array]], optimize: bool
) -> float | None:
    """Give the largest difference to the zeroed original (None: it answers with nothing)."""
    expected = _reference(channels, plan, feeds, optimize)
    if not any(np.size(value) for answer in expected for value in answer):
        return None
    answers = _answers(channels, cut, feeds, optimize)
    pairs = zip(expected, answers, strict=True)
    return max(compare(wanted, got, _bounded(channels)) for wanted, got in pairs)


def _answers(channels: Channels, cut: ModelProto, feeds: list[dict[str, Array]], optimize: bool) -> list[list[Any]]:
    """Run the cut model, with what goes into bounded outputs as further outputs."""
    taps = [ValueInfoProto(name=name) for name in _bounded(channels).values()]
    cut.graph.output.extend(taps)
    try:
        session = runtime.Session(cut, folder=channels.model.folder, threads=1, optimize=optimize)
        return [session.run(feed) for feed in feeds]
    except InputError as error:
        raise VerifyError(f"the cut model does not run: {error}") from error
    finally:
        del cut.graph.output[len(cut.graph.output) - len(taps) :]


def _bounded(channels: Channels) -> dict[int, str]:
    """Find the outputs of functions that flatten large differences: position of the output, and what goes in."""
    graph = channels.model.graph
    known = {t.name for t in (*graph.inputs, *graph.outputs)}
    made = {t.name: node for node in graph.nodes for t in node.outputs if node.op in BOUNDED}
    found = {i: made[t.name].inputs[0].name for i, t in enumerate(graph.outputs) if t.name in made}
    return {i: name for i, name in found.items() if name not in known}


def _reference(channels: Channels, plan: Plan, feeds: list[dict[str, Array]], optimize: bool) -> list[list[Any]]:
    """Run the zeroed original; where zeroing everything is not finite, zero only what sums run over."""
    keep = kept_atoms(channels, plan)
    answers: list[list[Any]] = []
    for only_contracted in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "zeroed.onnx"
            zeroed(channels, keep, file, only_contracted)
            try:
                session = runtime.Session(file, threads=1, optimize=optimize)
                answers = [session.run(feed) for feed in feeds]
            except InputError as error:
                raise InputError(f"{error}; --verify none compresses a model that onnxruntime cannot run") from error
        if all(np.isfinite(value).all() for answer in answers for value in answer if _is_float(value)):
            break
    return answers


def _is_float(value: object) -> bool:
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def compare(expected: list[Any], answers: list[Any], bounded: Container[int] = ()) -> float:
    """Give the largest difference of two sets of outputs, relative to the largest expected number.

    Outputs at the positions `bounded` lie between 0 and 1, and their difference counts as it is.

    Integer outputs (classes, positions) count as different where more than one in a hundred differs.
    """
    worst = 0.0
    for position, (wanted, got) in enumerate(zip(expected, answers, strict=True)):
        if not isinstance(wanted, np.ndarray):
            continue
        if wanted.shape != got.shape:
            raise VerifyError(f"an output has shape {got.shape}, the original gives {wanted.shape}")
        if _is_float(wanted) and wanted.size:
            finite = np.isfinite(wanted)
            if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
                worst = np.inf
                continue
            scale = max(float(np.abs(wanted[finite]).max(initial=0)), 1.0 if position in bounded else 1e-12)
            worst = max(worst, float(np.abs(wanted[finite].astype(np.float64) - got[finite]).max(initial=0)) / scale)
        elif wanted.size and np.mean(wanted != got) > 0.01:
            worst = np.inf
    return worst


def zeroed(channels: Channels, keep: Mask, path: Path, only_contracted: bool) -> None:
    """Write the original with every removed slice of its stored numbers set to zero, weights in a file beside it.

    Quantised numbers are set to their zero points. Operands that must not be zero (`NOT_ZEROED`) are left as they are.

    Args:
        channels: of the original.
        keep: per atom, whether it stays.
        path: the file to write.
        only_contracted: zero only the axes that convolutions and matrix products sum over.
    """
    model = channels.model
    proto = ModelProto()
    copy_fields(model.proto, proto, skip=["graph"])
    proto.ir_version = min(max(proto.ir_version, 4), runtime.MAX_IR_VERSION)
    copy_fields(model.proto.graph, proto.graph, skip=["node", "initializer", "value_info"])
    proto.graph.output.extend(ValueInfoProto(name=name) for name in _bounded(channels).values())
    filled = {
        index: values
        for index in range(len(model.graph.nodes))
        if (values := _filled(channels, index, keep)) is not None
    }
    own: dict[str, tuple[int, int]] = {}
    for index, node in enumerate(model.proto.graph.node):
        if index in filled or (not node.input and node.output[0] in model.stored):
            continue  # becomes an initializer
        proto.graph.node.append(node)
        for position in range(len(node.input)):
            if (index, position) in channels.axes:
                name = f"{node.input[position]}/{index}/{position}"
                proto.graph.node[-1].input[position] = name
                own[name] = (index, position)
        if any(not keep[atoms].all() for atoms in channels.averaged.get(index, ())):
            _average_kept(proto.graph, channels.view(index), keep)
    axes_of = _zeroable_axes(channels, only_contracted)
    zeros = _zero_points(channels)

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
        for index, values in filled.items():
            name = model.graph.nodes[index].outputs[0].name
            yield name, zero_slices(values, channels.axes[name], keep, axes_of(name))

    write_external(proto, tensors(), path, model.folder)


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


def _zero_points(channels: Channels) -> dict[Key, Array]:
    """Give what stands for zero in each stored tensor of quantised numbers, in a shape that broadcasts to it."""
    model, found = channels.model, dict[Key, Array]()
    for index, node in enumerate(model.graph.nodes):
        inputs = channels.view(index).inputs
        for position, axes in enumerate(inputs):
            where = ZERO_POINTS.get((node.op, position), len(inputs))
            name = node.inputs[where].name if where < len(inputs) else ""
            name = channels.aliases.root.get(name, name)
            if axes is not None and name in model.stored:
                found[axes.key] = _spread(node, position, model.array(name), axes)
    return found


def _spread(node: gs.Node, position: int, zero: Array, axes: Axes) -> Array:
    """Bring a zero point to a shape that broadcasts to the operand it belongs to."""
    if zero.size == 1:
        return zero.reshape([1] * len(axes))
    along = {"DequantizeLinear": int(node.attrs.get("axis", 1)), "ConvInteger": 0, "QLinearConv": 0}.get(node.op)
    if along is None:  # a matrix product: rows of the first operand, columns of the second
        along = -2 if position == 0 or node.attrs.get("transB", 0) else -1
    if node.attrs.get("block_size", 0):
        repeated = np.repeat(zero, int(node.attrs["block_size"]), along)
        return np.take(repeated, np.arange(axes.shape[along]), along)
    return zero.reshape([len(zero) if axis == along % len(axes) else 1 for axis in range(len(axes))])


def _zeroable_axes(channels: Channels, only_contracted: bool) -> Callable[[Key], Container[int]]:
    """Say which axes of a stored tensor may be zeroed, given who reads it."""
    untouched: set[Key] = set()
    contracted: dict[Key, set[int]] = {}
    for index, node in enumerate(channels.model.graph.nodes):
        for position, axes in enumerate(channels.view(index).inputs):
            if axes is None:
                continue
            if (node.op, position) in NOT_ZEROED:
                untouched.add(axes.key)
            axis = _contracted_axis(node, position)
            if axis is not None:
                contracted.setdefault(axes.key, set()).add(axis % len(axes))

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


def _filled(channels: Channels, index: int, keep: Mask) -> Array | None:
    """Write out a ConstantOfShape that serves as a weight and loses slices (None: it does not)."""
    node = channels.model.graph.nodes[index]
    axes = channels.axes.get(node.outputs[0].name) if node.op == "ConstantOfShape" else None
    fill = node.attrs.get("value")
    if axes is None or fill is None or keep[axes.start : axes.end].all():
        return None
    return np.full(axes.shape, fill.values.reshape(-1)[0])
