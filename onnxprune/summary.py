"""The report of a run, drawn up from what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.attempt import Attempt
from onnxprune.inspection import frozen_parts
from onnxprune.metrics import METRICS
from onnxprune.model import stored_tensors
from onnxprune.predicting.device import Device
from onnxprune.predicting.shortfall import kernel_times, shortfall
from onnxprune.prepare import Prepared
from onnxprune.problem import CLOSE
from onnxprune.progress import Clock
from onnxprune.reporting import Measured, Report
from onnxprune.shapes import numbers
from onnxprune.weights import NOT_WEIGHTS


def where_time_is(attempt: Attempt, device: Device) -> list[str]:
    """Say in a note where the time is that should have gone with the FLOPs, if it has not."""
    if not (attempt.lags and device.tells_kernels):
        return []
    before, after = kernel_times(attempt.channels, attempt.result, device)
    missing = shortfall(attempt.channels, attempt.problem.costs, attempt.plan.counts, before, after)
    return [] if missing is None else [f"the FLOPs suggest {attempt.ideal:.2f}x: {missing}"]


def summarise(prepared: Prepared, attempt: Attempt, out: Path | None, clock: Clock) -> Report:
    """Describe what became of a model, but for what was verified and what it answers.

    Args:
        prepared: the model as it was.
        attempt: the plan that was chosen.
        out: the file to write; None on a dry run.
        clock: knows how long each stage took.
    """
    problem, channels = attempt.problem, attempt.channels
    path = prepared.source.path
    after = {name: float(values[0]) for name, values in problem.costs.of(attempt.plan.counts).items()}
    batch = prepared.source.settings.device.samples(channels.model)
    memory = attempt.memory or (None, None)
    target = _targets(prepared, attempt, after)
    return Report(
        headline=_headline(attempt, path.name),
        model=path.name,
        output=out.name if out else None,
        before=_measured(problem.original, attempt.before, memory[0], batch),
        after=_measured(after, attempt.after, memory[1], batch),
        speedup=_speedup(attempt),
        target=target,
        score=attempt.score if attempt.score is not None and np.isfinite(attempt.score) else None,
        groups=[
            {
                "name": g.name,
                "width": g.width,
                "kept": int(count),
                "step": int(step),
                "approximate": g.is_approximate,
            }
            for g, count, step in zip(channels.groups, attempt.plan.counts, problem.steps, strict=True)
        ],
        frozen=frozen_parts(channels, problem.costs),
        lossless=problem.lossless_part(attempt.plan),
        notes=[
            *channels.model.notes,
            *_dead(attempt, has_target=bool(target)),
            *_approximate(attempt),
            *(_missed(attempt, after) if target else ()),
        ],
        settings={**asdict(prepared.source.settings), "align": asdict(attempt.align)},
        seconds=clock.seconds,
    )


def _targets(prepared: Prepared, attempt: Attempt, after: Mapping[str, float]) -> dict[str, Any]:
    """Say what was asked for and reached; the shares that --max-drop tries are its own, nobody asked for them."""
    if prepared.source.settings.max_drop is not None:
        return {}
    return {t.metric: {"asked": t.text, "limit": t.limit, "reached": after[t.metric]} for t in attempt.problem.targets}


def _speedup(attempt: Attempt) -> dict[str, float] | None:
    if attempt.speedup is None:
        return None
    return {name: round(value, 4) for name, value in {**vars(attempt.speedup), "ideal": attempt.ideal}.items()}


def _approximate(attempt: Attempt) -> list[str]:
    """Say how many groups are cut although something averages over them."""
    pairs = zip(attempt.channels.groups, attempt.plan.counts, strict=True)
    cut_groups = [group for group, count in pairs if group.is_approximate and count < group.width]
    if not cut_groups:
        return []
    what = "group is" if len(cut_groups) == 1 else "groups are"
    return [f"{len(cut_groups)} {what} cut approximately: normalisations average over what is left of them"]


def _dead(attempt: Attempt, has_target: bool) -> list[str]:
    """Say what went at no cost, and whether that is enough."""
    problem = attempt.problem
    gone = problem.lossless_part(attempt.plan)
    if not gone["channels"]:
        return []
    note = f"{gone['channels']} channels are constant and went without loss, with {gone['macs']:.1%} of the FLOPs"
    return [note + ("; that alone meets the target" if has_target and problem.meets(problem.most)[0] else "")]


def _missed(attempt: Attempt, after: Mapping[str, float]) -> list[str]:
    """Say where a plan lies well below all its targets, and what would come closer."""
    problem = attempt.problem
    open_shares = [(t.limit - after[t.metric]) / max(problem.original[t.metric], 1) for t in problem.targets]
    if min(open_shares, default=0) <= CLOSE or attempt.align.multiple == 1 or problem.meets(problem.most)[0]:
        return []
    finest = "; --align 1 comes closer, and may be slower" if (problem.steps > 1).any() else ""
    return [f"single steps of the aligned widths leave {min(open_shares):.1%} of the original's cost unused{finest}"]


def note_own(report: Report, cut: ModelProto, result: ModelProto) -> None:
    """Count what a repair gave to layers of their own that they shared before; no plan can know of it."""
    added = _stored(result) - _stored(cut)
    if added <= 0:
        return
    report.after.params += added
    note = f"layers that shared parameters have their own since the repair, {added} in all"
    if "params" in report.target:
        told = report.target["params"]
        told["reached"] += added
        if told["reached"] > told["limit"]:
            note += ", with which the target for parameters is missed; ask for fewer, or take --repair none"
    report.notes.append(note)


def _stored(proto: ModelProto) -> int:
    return sum(numbers(t.dims) for t in stored_tensors(proto).values() if t.data_type not in NOT_WEIGHTS)


def _measured(costs: Mapping[str, float], times: dict[str, float] | None, memory: int | None, batch: int) -> Measured:
    return Measured(
        **{name: round(costs[name]) for name in METRICS},
        latency_ms=times,
        per_second=None if times is None else round(batch / times["median"] * 1e3, 2),
        memory_bytes=memory,
    )


def _headline(attempt: Attempt, name: str) -> str:
    """Say in one line what came of it, a disappointment first."""
    kept = f"{name}: {attempt.macs_share:.1%} of the FLOPs kept"
    if attempt.time_share is None:
        return kept
    if attempt.is_slower:
        return f"SLOWER than the original ({1 / attempt.time_share:.2f}x), at any alignment tried. {kept}"
    return f"{kept}, {1 / attempt.time_share:.2f}x faster"
