"""The one data path, readable in a minute: load, find channels, search, cut, verify, time, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from onnxprune import model as models
from onnxprune import plan as plans
from onnxprune import runtime
from onnxprune.attempt import Attempt, Attempts
from onnxprune.channels import find_channels
from onnxprune.data import Data, read_data, read_preprocess
from onnxprune.errors import InputError
from onnxprune.evaluation import Scores, evaluate_model
from onnxprune.inspection import frozen_parts
from onnxprune.metrics import METRICS, Costs
from onnxprune.outputs import check_apart, check_outputs, write_results
from onnxprune.problem import CLOSE
from onnxprune.progress import Clock, Progress, Quiet
from onnxprune.reporting import Measured, Report
from onnxprune.settings import CompressSettings, check_settings
from onnxprune.surgery import cut
from onnxprune.verify import verify


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
        channels = find_channels(model, settings.keep)
        costs = Costs(channels)
    if not channels.groups:
        raise InputError(
            f"{path.name} has nothing to prune; `onnxprune inspect {path.name}` shows what holds each part"
        )
    with clock.stage("search"):
        attempts = Attempts(channels, costs, settings, progress)
    if dry_run:
        return _report(path, None, attempts.best, settings, clock)
    with clock.stage("cut and time"):
        attempts.cut_and_time()
    attempt = attempts.best
    with clock.stage("verify"):
        checks = verify(channels, attempt.plan, attempt.result, settings.verify)
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
    channels = find_channels(model, asked["keep"])
    chosen = plans.from_json(channels, content)
    result = cut(channels, chosen, runtime.evaluate)
    checks = verify(channels, chosen, result, verify_level)
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
            {"name": g.name, "width": g.width, "kept": int(count), "step": int(step)}
            for g, count, step in zip(channels.groups, attempt.plan.counts, problem.steps, strict=True)
        ],
        frozen=frozen_parts(channels, problem.costs),
        notes=[*channels.model.notes, *_missed(attempt, after)],
        settings={**asdict(settings), "align": asdict(attempt.align)},
        seconds=clock.seconds,
    )


def _missed(attempt: Attempt, after: Mapping[str, float]) -> list[str]:
    """Say where a plan lies well below all its targets, and what would come closer."""
    problem = attempt.problem
    open_shares = [(t.limit - after[t.metric]) / max(problem.original[t.metric], 1) for t in problem.targets]
    if min(open_shares, default=0) <= CLOSE or attempt.align.multiple == 1:
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
