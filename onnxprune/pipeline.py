"""The one data path, readable in a minute: load, find channels, search, cut, verify, time, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from onnxprune import model as models
from onnxprune import plan as plans
from onnxprune import runtime
from onnxprune.attempt import Attempt, Attempts
from onnxprune.channels import Channels, find_channels
from onnxprune.data import Data, read_data, read_preprocess
from onnxprune.errors import InputError
from onnxprune.evaluation import Scores, evaluate_model
from onnxprune.inspection import frozen_parts
from onnxprune.lossless import find_lossless, nothing_lossless
from onnxprune.metrics import METRICS, Costs
from onnxprune.model import Model
from onnxprune.outputs import check_apart, check_outputs, write_results
from onnxprune.problem import CLOSE
from onnxprune.progress import Clock, Progress, Quiet
from onnxprune.reporting import Measured, Report
from onnxprune.settings import CompressSettings, check_settings
from onnxprune.surgery import cut
from onnxprune.verify import verify, verify_lossless


def compress(
    path: Path,
    out: Path,
    settings: CompressSettings,
    *,
    data: Path | None = None,
    preprocess: str = "none",
    label_offset: int = 0,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make a model smaller until it meets its targets, prove the result and write it.

    Args:
        path: the model file.
        out: the file to write; ``NAME.plan.json`` and ``NAME.report.json`` go beside it.
        settings: targets, search and the rest.
        data: samples with labels, to report accuracy before and after.
        preprocess: how pixels become inputs, see `read_preprocess`.
        label_offset: the output index of a class is its label plus this.
        force: overwrite existing files.
        dry_run: find the plan, cut and write nothing.
        progress: told what is going on.

    Raises:
        InputError: a file or an option is wrong.
        TargetError: a target cannot be reached.
        VerifyError: the result is not what it must be; nothing is written.
    """
    progress = progress or Quiet()
    check_settings(settings)
    if not dry_run:
        check_outputs(path, out, force)
    clock = Clock(progress)
    with clock.stage("load"):
        model = models.load(path, runtime.evaluate, settings.shapes)
        samples = read_data(data, model, read_preprocess(preprocess)) if data is not None else None
        check_apart(model, out)
        find = _finder(settings.keep, settings.approximate, settings.slots)
        channels = find(model)
        lossless = find_lossless(channels, find, runtime.evaluate)
        costs = Costs(lossless.channels)
    if not channels.groups:
        raise InputError(
            f"{path.name} has nothing to prune; `onnxprune inspect {path.name}` shows what holds each part"
        )
    with clock.stage("search"):
        attempts = Attempts(lossless, costs, settings, progress)
    if dry_run:
        return _report(path, None, attempts.best, settings, clock)
    with clock.stage("cut and time"):
        attempts.cut_and_time()
    attempt = attempts.best
    with clock.stage("verify"):
        checks = verify(lossless.channels, attempt.plan, attempt.result, settings.verify)
        if lossless.count:
            checks |= verify_lossless(channels, lossless.channels, lossless.plan, settings.verify)
    report = _report(path, out, attempt, settings, clock)
    report.checks = checks
    report.alignments = [tried.summary() for tried in attempts.tried]
    if samples is not None:
        with clock.stage("evaluate"):
            _judge(path, attempt, samples, label_offset, report, progress)
    with clock.stage("write"):
        write_results(path, out, attempt, report)
    return report


def apply(path: Path, plan: Path, out: Path, *, verify_level: str = "fast", force: bool = False) -> dict[str, str]:
    """Repeat a cut, bit for bit.

    Args:
        path: the model file the plan was made for.
        plan: a ``.plan.json`` that compress wrote.
        out: the file to write.
        verify_level: see `verify`.
        force: overwrite an existing file.

    Returns:
        What was verified.

    Raises:
        InputError: a file is wrong, or the plan was made for another model.
        VerifyError: the result is not what it must be; nothing is written.
    """
    check_outputs(path, out, force, kinds=())
    content = plans.read_plan(plan)
    models.read_file(path)
    if content.get("model_sha256") != plans.file_sha256(path):
        raise InputError(f"{plan} was made for another file than {path}; give the model that was compressed")
    asked = content["settings"]
    model = models.load(path, runtime.evaluate, asked["shapes"])
    check_apart(model, out)
    find = _finder(asked["keep"], asked["approximate"], asked["slots"])
    lossless = nothing_lossless(find(model))
    if content.get("lossless"):
        lossless = find_lossless(lossless.channels, find, runtime.evaluate)
    channels = lossless.channels
    chosen = plans.from_json(channels, content)
    if (lossless.folded or {}) != content.get("folded", {}):
        raise InputError(f"{plan} does not fold what the dead channels of {path.name} add; compress the model again")
    plans.check_same_cut(channels, chosen, content)
    result = cut(channels, chosen, runtime.evaluate)
    checks = verify(channels, chosen, result, verify_level)
    if lossless.count:
        checks |= verify_lossless(lossless.original, channels, lossless.plan, verify_level)
    models.save(result, out, path.parent)
    return checks


def evaluate(
    path: Path,
    data: Path,
    *,
    preprocess: str = "none",
    label_offset: int = 0,
    reference: Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Judge a model on samples: top-1 and top-5 with labels, agreement with a reference model.

    Args:
        path: the model file.
        data: ``.npz`` with ``x`` and, for labels, ``y``.
        preprocess: how pixels become inputs, see `read_preprocess`.
        label_offset: the output index of a class is its label plus this.
        reference: a model to agree with.
        shapes: sizes for inputs that leave them free.
        progress: told what is going on.

    Raises:
        InputError: a file or an option is wrong.
    """
    model = models.load(path, runtime.evaluate, shapes)
    samples = read_data(data, model, read_preprocess(preprocess))
    if reference is not None:
        models.read_file(reference)
    return evaluate_model(
        runtime.Session(path),
        samples,
        batch=model.fixed_batch(samples.name),
        label_offset=label_offset,
        reference=runtime.Session(reference) if reference is not None else None,
        progress=(progress or Quiet()).step,
    )


def _finder(keep: Sequence[str], approximate: bool, slots: bool) -> Callable[[Model], Channels]:
    return lambda model: find_channels(model, keep, approximate=approximate, slots=slots)


def _judge(path: Path, attempt: Attempt, samples: Data, label_offset: int, report: Report, progress: Progress) -> None:
    """Evaluate the original and the cut model on the user's samples."""
    model = attempt.channels.model
    batch = model.fixed_batch(samples.name)
    original = runtime.Session(path)
    smaller = runtime.Session(attempt.result, folder=model.folder)
    if samples.y is None:
        agreed = evaluate_model(smaller, samples, batch=batch, reference=original, progress=progress.step)
        report.stages = [{"name": "cut", "agreement": agreed.agreement, "samples": agreed.samples}]
        return
    for name, session, measured in (("original", original, report.before), ("cut", smaller, report.after)):
        scores = evaluate_model(session, samples, batch=batch, label_offset=label_offset, progress=progress.step)
        measured.accuracy = scores.top1
        report.stages.append({"name": name, "accuracy": scores.top1, "top5": scores.top5, "samples": scores.samples})


def _report(path: Path, out: Path | None, attempt: Attempt, settings: CompressSettings, clock: Clock) -> Report:
    problem, channels = attempt.problem, attempt.channels
    after = {name: float(values[0]) for name, values in problem.costs.of(attempt.plan.counts).items()}
    return Report(
        headline=_headline(attempt, path.name),
        model=path.name,
        output=out.name if out else None,
        before=_measured(problem.original, attempt.before),
        after=_measured(after, attempt.after),
        target={t.metric: {"asked": t.text, "limit": t.limit, "reached": after[t.metric]} for t in problem.targets},
        score=problem.score(attempt.plan),
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
        notes=[*channels.model.notes, *_dead(attempt), *_approximate(attempt), *_missed(attempt, after)],
        settings={**asdict(settings), "align": asdict(attempt.align)},
        seconds=clock.seconds,
    )


def _approximate(attempt: Attempt) -> list[str]:
    """Say how many groups are cut although something averages over them."""
    pairs = zip(attempt.channels.groups, attempt.plan.counts, strict=True)
    cut_groups = [group for group, count in pairs if group.is_approximate and count < group.width]
    if not cut_groups:
        return []
    what = "group is" if len(cut_groups) == 1 else "groups are"
    return [f"{len(cut_groups)} {what} cut approximately: normalisations average over what is left of them"]


def _dead(attempt: Attempt) -> list[str]:
    """Say what went at no cost, and whether that is enough."""
    problem = attempt.problem
    gone = problem.lossless_part(attempt.plan)
    if not gone["channels"]:
        return []
    note = f"{gone['channels']} channels are constant and went without loss, with {gone['macs']:.1%} of the FLOPs"
    return [note + ("; that alone meets the target" if problem.meets(problem.most)[0] else "")]


def _missed(attempt: Attempt, after: Mapping[str, float]) -> list[str]:
    """Say where a plan lies well below all its targets, and what would come closer."""
    problem = attempt.problem
    open_shares = [(t.limit - after[t.metric]) / max(problem.original[t.metric], 1) for t in problem.targets]
    if min(open_shares, default=0) <= CLOSE or attempt.align.multiple == 1 or problem.meets(problem.most)[0]:
        return []
    finest = "; --align 1 comes closer, and may be slower" if (problem.steps > 1).any() else ""
    return [f"single steps of the aligned widths leave {min(open_shares):.1%} of the original's cost unused{finest}"]


def _measured(costs: Mapping[str, float], times: dict[str, float] | None) -> Measured:
    return Measured(**{name: round(costs[name]) for name in METRICS}, latency_ms=times)


def _headline(attempt: Attempt, name: str) -> str:
    """Say in one line what came of it, a disappointment first."""
    kept = f"{name}: {attempt.macs_share:.1%} of the FLOPs kept"
    if attempt.time_share is None:
        return kept
    if attempt.is_slower:
        return f"SLOWER than the original ({1 / attempt.time_share:.2f}x), at any alignment tried. {kept}"
    return f"{kept}, {1 / attempt.time_share:.2f}x faster"
