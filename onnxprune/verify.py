"""Prove a result before it is written: valid, loadable, as small as planned, and equal where it must be.

The last check shares nothing with the rules: the cut model must answer as the original does whose removed slices are
set to zero. See `zeroed` for what is zeroed and what is not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto

from onnxprune import runtime
from onnxprune import shapes as sizes
from onnxprune.channels import Channels, find_channels
from onnxprune.errors import InputError, VerifyError
from onnxprune.linear import FLOAT_TYPES, HALF_TYPES
from onnxprune.metrics import Costs
from onnxprune.model import Model, analyse, check, holds_batch
from onnxprune.ops.rule import Mask
from onnxprune.plan import Plan, kept_atoms, whole
from onnxprune.weights import Array, Floats, is_external, read
from onnxprune.zeroing import bounded, hidden, zeroed

LEVELS = ("none", "fast", "full")
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # of the largest output; the second where weights have half precision
ADDED = 4  # numbers a node: more a cut does not add for sizes that are computed as floats
FURTHER = (32, 64, 1, 2, 8, -1)  # by so much free sizes are larger; many networks take multiples of one only
Bound = dict[str, sizes.Shape]
"""The sizes of each input."""


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
    # branches that lose all their channels leave constants that no plan counts
    planned, counted = Costs(channels).of(plan.counts), _recounted(channels, cut)
    macs = _check_macs(planned, counted)
    params = _check_params(planned, counted, ADDED * len(model.graph.nodes) if plan.counts.all() else np.inf)
    checks["macs"] = f"{macs} recounted as planned, with {params} parameters"
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
    bound = _batch_of_two(model) or model.bound
    feeds = [sizes.example_inputs(model.proto.graph, bound, seed) for seed in range(3 if level == "full" else 1)]
    keep = kept_atoms(channels, plan)
    taps = hidden(channels, keep)
    expected = _reference(original, kept_atoms(original, whole(original)), feeds, False, taps)
    answers = _reference(channels, keep, feeds, False, taps)
    worst = max(compare(*pair, bounded(original)) for pair in zip(expected, answers, strict=True))
    tolerance = HALF_TOLERANCE if any(t.data_type in HALF_TYPES for t in model.stored.values()) else TOLERANCE
    if worst > tolerance:
        raise VerifyError(f"without its dead channels the model differs by {worst:.1e} of the largest output")
    return {"lossless": f"equal to the original without its dead channels within {worst:.1e} of the largest output"}


def verify_repaired(channels: Channels, plan: Plan, result: ModelProto, level: str) -> dict[str, str]:
    """Check a repaired model: its numbers are others, nothing else may be; see `verify` for the rest.

    Raises:
        VerifyError: a check failed.
    """
    if level == "none":
        return {}
    model = channels.model
    found = [_check_valid(result, model.bound), _check_interface(model.proto, result)]
    _check_macs(Costs(channels).of(plan.counts), _recounted(channels, result))
    feed = sizes.example_inputs(model.proto.graph, model.bound)
    try:
        runtime.Session(result, folder=model.folder, threads=1).run(feed)
    except InputError as error:
        raise VerifyError(f"the repaired model does not run: {error}") from error
    for tensor in result.graph.initializer:
        if tensor.data_type in FLOAT_TYPES and not is_external(tensor):
            values = read(tensor, model.folder)
            before = model.stored.get(tensor.name)
            is_new = before is None or before.SerializeToString() != tensor.SerializeToString()
            if is_new and np.isnan(values).any():
                raise VerifyError(f"the repair made NaN of {tensor.name!r}")
    return {"repaired": f"checker {found[0]}; {found[1]}"}


def _recounted(channels: Channels, smaller: ModelProto) -> Mapping[str, Floats]:
    """Count what a cut model costs, from the model alone."""
    model = channels.model
    try:
        analysed = analyse(smaller, model.folder, runtime.evaluate, model.bound)
    except InputError as error:
        raise VerifyError(f"the cut model makes no sense: {error}") from error
    found = find_channels(analysed)
    return Costs(found).of([g.width for g in found.groups])


def _check_macs(planned: Mapping[str, Floats], recounted: Mapping[str, Floats]) -> int:
    """Make sure that the MACs of a cut model are those that were planned."""
    wanted, counted = (int(costs["macs"][0]) for costs in (planned, recounted))
    if counted != wanted:
        raise VerifyError(f"the cut model has {counted} MACs, {wanted} were planned")
    return counted


def _check_params(planned: Mapping[str, Floats], recounted: Mapping[str, Floats], added: float) -> int:
    """Make sure that a cut model holds no more parameters than planned, but for those that surgery may have added."""
    wanted, counted = (round(float(costs["params"][0])) for costs in (planned, recounted))
    if counted - wanted > added:
        raise VerifyError(f"the cut model has {counted} parameters, {wanted} were planned")
    return counted


def _check_valid(cut: ModelProto, bound: Mapping[str, sizes.Shape]) -> str:
    bare = sizes.skeleton(cut, bound)
    try:
        check(bare)
    except InputError as error:
        raise VerifyError(f"the cut model is {error}") from error
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
    batch = _batch_of_two(model)
    bounds = [batch or dict(model.bound)]
    if level == "full" and batch is not None and batch != model.bound:
        bounds.insert(0, _with_batch(model, 1))
    seeds = range(1, 4 if level == "full" else 2)  # sizes that follow from numbers were found with seed 0
    feeds = [sizes.example_inputs(model.proto.graph, bound, seed) for bound in bounds for seed in seeds]
    tolerance = HALF_TOLERANCE if any(t.data_type in HALF_TYPES for t in model.stored.values()) else TOLERANCE
    optimized = _difference(channels, plan, cut, feeds, optimize=True)
    if optimized is None:
        return "NOT compared: the original answers random inputs with nothing"
    worst = optimized
    if level == "full" or tolerance < optimized <= HALF_TOLERANCE:
        # Kernels of optimised graphs sum in another order, which some nets magnify; as written, both must agree.
        worst = _difference(channels, plan, cut, feeds, optimize=False) or 0.0
    others = _further(model, bounds[-1])
    other = _first_taken(model, others) if others else None
    if other is not None:
        feed = sizes.example_inputs(model.proto.graph, other, seed=1)
        try:
            worst = max(worst, _difference(channels, plan, cut, [feed], optimize=False) or 0.0)
        except InputError:  # zeroing wrote something down that depends on sizes
            other = None
    if not (worst <= tolerance and optimized <= HALF_TOLERANCE):
        worst = max(worst, optimized)
        raise VerifyError(
            f"the cut model differs from the original with the same slices zeroed by {worst:.1e} of the largest output"
        )
    noise = f" ({optimized:.1e} with onnxruntime's optimisations)" if optimized > tolerance else ""
    only = "" if batch is not None else "; the original takes no batch of 2"
    only += "; other sizes not compared" if others and other is None else ""
    return f"equal to the zeroed original within {worst:.1e} of the largest output{noise}{only}"


def _with_batch(model: Model, batch: int) -> Bound:
    """Give the sizes of all inputs, with this batch where the first axis is free."""
    bound = dict(model.bound)
    for value in sizes.real_inputs(model.proto.graph):
        declared, shape = sizes.declared_shape(value), bound.get(value.name)
        if shape and declared and not isinstance(declared[0], int):
            bound[value.name] = (batch, *shape[1:])
    return bound


def _batch_of_two(model: Model) -> Bound | None:
    """Give the sizes of all inputs for two samples (None: it does not take them)."""
    batch = _with_batch(model, 2)
    if batch != model.bound and holds_batch(model, runtime.evaluate):
        return None
    return _first_taken(model, [batch])


def _further(model: Model, bound: Bound) -> list[Bound]:
    """Give other sizes than the model was read with, where it leaves some free; first those of each name its own."""
    free = {
        (value.name, axis): size or f"{value.name}.{axis}"
        for value in sizes.real_inputs(model.proto.graph)
        for axis, size in enumerate(sizes.declared_shape(value) or bound.get(value.name, ()))  # unranked: as bound
        if axis > 0 and value.name in bound and not isinstance(size, int)
    }
    if not free:
        return []
    names = dict.fromkeys(free.values())
    apart = {name: FURTHER[0] * (number + 1) for number, name in enumerate(names)}
    alike = [dict.fromkeys(names, step) for step in FURTHER]
    return [
        {
            name: tuple(max(size + step.get(free.get((name, axis), ""), 0), 1) for axis, size in enumerate(shape))
            for name, shape in bound.items()
        }
        for step in (apart, *(step for step in alike if step != apart))
    ]


def _first_taken(model: Model, bounds: Sequence[Bound]) -> Bound | None:
    """Give the first of these sizes that the original runs with; it is taken to run with those it was read with."""
    if model.bound in bounds:
        return dict(model.bound)
    try:
        session = runtime.Session(model.proto, folder=model.folder, threads=1, optimize=False)
    except InputError:
        return None
    for bound in bounds:
        try:
            session.run(sizes.example_inputs(model.proto.graph, bound, seed=1))
        except InputError:
            continue
        return bound
    return None


def _difference(
    channels: Channels, plan: Plan, cut: ModelProto, feeds: list[dict[str, Array]], optimize: bool
) -> float | None:
    """Give the largest difference to the zeroed original (None: it answers with nothing)."""
    keep = kept_atoms(channels, plan)
    taps = hidden(channels, keep)
    expected = _reference(channels, keep, feeds, optimize, taps)
    if not any(np.size(value) for answer in expected for value in answer):
        return None
    answers = _answers(channels, cut, feeds, optimize, taps)
    pairs = zip(expected, answers, strict=True)
    return max(compare(wanted, got, bounded(channels)) for wanted, got in pairs)


def _run(
    model: ModelProto | Path, folder: Path | None, feeds: Sequence[Mapping[str, Array]], optimize: bool
) -> list[list[Any]]:
    """Run a model on inputs, so that no sums of 8 bits saturate.

    Where the weights lack a zero point, or share one, onnxruntime cannot do that: it does not load or does not run.
    """

    def run(saturates: bool) -> list[list[Any]]:
        session = runtime.Session(model, folder=folder, threads=1, optimize=optimize, saturates=saturates)
        return [session.run(feed) for feed in feeds]

    try:
        return run(saturates=False)
    except InputError:
        return run(saturates=True)


def _answers(
    channels: Channels, cut: ModelProto, feeds: list[dict[str, Array]], optimize: bool, taps: Sequence[str]
) -> list[list[Any]]:
    """Run the cut model, with taps as further outputs."""
    cut.graph.output.extend(ValueInfoProto(name=name) for name in taps)
    try:
        return _run(cut, channels.model.folder, feeds, optimize)
    except InputError as error:
        raise VerifyError(f"the cut model does not run: {error}") from error
    finally:
        del cut.graph.output[len(cut.graph.output) - len(taps) :]


def _reference(
    channels: Channels, keep: Mask, feeds: list[dict[str, Array]], optimize: bool, taps: Sequence[str]
) -> list[list[Any]]:
    """Run the zeroed original; where zeroing everything is not finite, zero only what sums run over."""
    answers: list[list[Any]] = []
    for only_contracted in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "zeroed.onnx"
            zeroed(channels, keep, file, only_contracted, taps)
            try:
                answers = _run(file, None, feeds, optimize)
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
