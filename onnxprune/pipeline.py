"""The one data path, readable in a minute: load, find channels, search, cut, verify, time, write."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto

from onnxprune import model as models
from onnxprune import plan as plans
from onnxprune import runtime, search
from onnxprune import shapes as sizes
from onnxprune.channels import Channels, find_channels
from onnxprune.criteria import CRITERIA, importance
from onnxprune.data import Data, read_data, read_preprocess
from onnxprune.errors import InputError, TargetError
from onnxprune.evaluation import Scores, evaluate_model
from onnxprune.files import write_json
from onnxprune.metrics import METRICS, Costs
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.problem import CLOSE, FINE, Align, Problem, describe_reason, parse_target, step_of
from onnxprune.reporting import Measured, Report, latency
from onnxprune.surgery import cut
from onnxprune.verify import LEVELS, verify
from onnxprune.weights import external_place, is_external

WORDS = {"macs": "FLOPs (multiply-accumulates)", "params": "parameters"}
FOLLOWS = 0.8  # time follows the MACs well enough where the share of MACs is at least this part of the share of time
ALIGNMENTS = (FINE, Align(16, 2, rest=FINE), Align(16, 2))  # tried in turn while the result lags behind its MACs
WORTH_COARSER = 0.9  # coarser widths are taken where they need at most this share of the time


class Progress(Protocol):
    """Told what is going on; the command line shows it."""

    def say(self, text: str) -> None:
        """Say something that the user must read."""

    def stage(self, name: str) -> None:
        """Say that a stage begins."""

    def step(self, done: int, total: int) -> None:
        """Say how far the stage is."""


class Quiet:
    """Progress that nobody sees."""

    def say(self, text: str) -> None:
        """Ignore."""

    def stage(self, name: str) -> None:
        """Ignore."""

    def step(self, done: int, total: int) -> None:
        """Ignore."""


@dataclass(frozen=True)
class CompressSettings:
    """What compress is asked for.

    Attributes:
        targets: metric (``macs``, ``params``) to a fraction or an absolute value, as text.
        search: name of a search.
        budget: candidates the search may judge.
        seed: same seed, same plan.
        criterion: how channels are ranked within a group.
        align: multiple that widths must be; None chooses by measuring.
        keep: patterns of node names to leave alone.
        min_keep: fewest channels a group keeps.
        verify: ``none``, ``fast`` or ``full``.
        shapes: sizes for inputs that leave them free.
    """

    targets: dict[str, str]
    search: str = "uniform"
    budget: int = 100
    seed: int = 0
    criterion: str = "l2"
    align: int | None = None
    keep: tuple[str, ...] = ()
    min_keep: int = 1
    verify: str = "fast"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class Inspection:
    """What can be cut from a model.

    Attributes:
        model: the file's name.
        costs: every metric of the model as it is.
        lowest: the lowest reachable value of every metric.
        prunable: share of the MACs of nodes whose channels can shrink.
        groups: name, width and step of each group.
        frozen: what stays and why, with its share of the MACs.
        uncounted: operators that may compute but that no rule counts.
        inputs: the input shapes all this was measured at.
        notes: what else the user should know.
    """

    model: str
    costs: dict[str, int]
    lowest: dict[str, int]
    prunable: float
    groups: list[dict[str, Any]]
    frozen: list[dict[str, Any]]
    uncounted: list[str]
    inputs: dict[str, list[int]]
    notes: list[str]


def inspect(path: Path, *, keep: Sequence[str] = (), shapes: Mapping[str, Sequence[int]] | None = None) -> Inspection:
    """Tell what can be cut from a model and why the rest cannot; changes nothing.

    Args:
        path: the model file.
        keep: patterns of node names to leave alone.
        shapes: sizes for inputs that leave them free.

    Raises:
        InputError: the file or an option is wrong.
    """
    model = models.load(path, runtime.evaluate, shapes)
    channels = find_channels(model, keep)
    costs = Costs(channels)
    problem = Problem(channels, costs, [], [])
    per_node = costs.per_node()
    total = sum(node.macs for node in per_node)
    return Inspection(
        path.name,
        {name: round(value) for name, value in problem.original.items()},
        {name: round(value) for name, value in problem.lowest().items()},
        sum(node.macs for node in per_node if node.is_free) / total if total else 0.0,
        [{"name": g.name, "width": g.width, "step": step_of(g, FINE)} for g in channels.groups],
        frozen_parts(channels, costs),
        costs.uncounted(),
        {name: list(shape) for name, shape in model.bound.items()},
        model.notes,
    )


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
    clock = _Clock(progress)
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
    original = {name: float(values[0]) for name, values in costs.of([g.width for g in channels.groups]).items()}
    for metric, text in settings.targets.items():
        target = parse_target(metric, text, original[metric])
        progress.say(
            f"Keep at most {target.limit / max(original[metric], 1):.1%} of the {WORDS[metric]}: "
            f"{target.limit:,.0f} of {original[metric]:,.0f}."
        )
    with clock.stage("search"):
        worth = importance(channels, settings.criterion, settings.seed)
        ladder = ALIGNMENTS if settings.align is None else (Align(settings.align),)
        attempt = _search(channels, costs, worth, settings, ladder[0], progress)
    if dry_run:
        return _report(path, None, attempt, settings, clock)
    with clock.stage("cut and time"):
        _cut_and_time(path, attempt, settings)
        attempts = [attempt]
        for align in ladder[1:]:
            coarser = _coarser(attempts, worth, settings, align, progress) if attempt.lags else None
            if coarser is not None:
                _cut_and_time(path, coarser, settings)
                attempts.append(coarser)
                attempt = coarser if coarser.milliseconds < WORTH_COARSER * attempt.milliseconds else attempt
    with clock.stage("verify"):
        checks = verify(channels, attempt.plan, attempt.result, settings.verify)
    report = _report(path, out, attempt, settings, clock)
    report.checks = checks
    report.alignments = [tried.summary() for tried in attempts]
    if samples is not None:
        with clock.stage("evaluate"):
            _judge(path, attempt, samples, label_offset, report, progress)
    with clock.stage("write"):
        _write(path, out, attempt, report)
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
    check_outputs(path, out, force, beside=())
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
        batch=None if model.has_free_batch else model.bound[samples.name][0],
        label_offset=label_offset,
        reference=runtime.Session(reference) if reference is not None else None,
        progress=(progress or Quiet()).step,
    )


def frozen_parts(channels: Channels, costs: Costs) -> list[dict[str, Any]]:
    """List the nodes whose output channels stay, largest first, with the reason and their share of the MACs."""
    nodes = channels.model.graph.nodes
    per_node = costs.per_node()
    total = max(sum(node.macs for node in per_node), 1)
    return [
        {
            "node": nodes[part.node].name or nodes[part.node].outputs[0].name,
            "op": nodes[part.node].op,
            "reason": describe_reason(channels, part.reason),
            "macs": part.macs,
            "share": part.macs / total,
            "inputs_shrink": part.is_free,
        }
        for part in sorted(per_node, key=lambda part: -part.macs)
        if part.reason >= 0
    ]


def check_settings(settings: CompressSettings) -> None:
    """Make sure that the settings name things that exist, before any work is done.

    Raises:
        InputError: one does not.
    """
    if not settings.targets:
        raise InputError("no target: say how small, for example --flops 0.5")
    for option, value, choices in (
        ("--search", settings.search, search.names()),
        ("--criterion", settings.criterion, CRITERIA),
        ("--verify", settings.verify, LEVELS),
    ):
        if value not in choices:
            raise InputError(f"{option} {value!r} does not exist; choose one of {', '.join(choices)}")
    if settings.budget < 1:
        raise InputError(f"--budget {settings.budget}: a search needs at least one candidate")
    if settings.seed < 0:
        raise InputError(f"--seed {settings.seed}: a seed is 0 or more")


def check_outputs(path: Path, out: Path, force: bool, beside: Sequence[str] = ("plan", "report")) -> None:
    """Make sure that the results can be written before any work is done.

    Raises:
        InputError: the folder is missing, or something is in the way.
    """
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; create it or choose another -o")
    if out.is_dir():
        raise InputError(f"{out} is a folder; give a file name with -o")
    if path.exists() and out.exists() and path.samefile(out):
        raise InputError(f"-o {out} is the input model; choose another name")
    for file in (out, models.data_file(out), *(_beside(out, kind) for kind in beside)):
        if file.exists() and not force:
            raise InputError(f"{file} exists; choose another -o or overwrite it with --force")


def check_apart(model: Model, out: Path) -> None:
    """Make sure that writing the result would not destroy the weights of the input model.

    Raises:
        InputError: it would.
    """
    for file in data_files(model):
        if any(written.exists() and written.samefile(file) for written in (out, models.data_file(out))):
            raise InputError(f"{file} holds the weights of the input model; choose another -o")


@dataclass
class _Attempt:
    """One plan and what became of it."""

    channels: Channels
    problem: Problem
    plan: Plan
    align: Align
    cut: ModelProto | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None

    @property
    def result(self) -> ModelProto:
        assert self.cut is not None
        return self.cut

    @property
    def macs_share(self) -> float:
        macs = float(self.problem.costs.of(self.plan.counts)["macs"][0])
        return macs / max(self.problem.original["macs"], 1)

    @property
    def time_share(self) -> float | None:
        return self.after["median"] / self.before["median"] if self.before and self.after else None

    @property
    def milliseconds(self) -> float:
        return self.after["median"] if self.after else np.inf

    @property
    def lags(self) -> bool:
        """Whether the time saved is well short of the MACs saved."""
        return self.time_share is not None and self.macs_share < FOLLOWS * self.time_share

    def summary(self) -> dict[str, Any]:
        steps = sorted({int(step) for step in self.problem.steps})
        return {**asdict(self.align), "steps": steps, "macs": self.macs_share, "time": self.time_share}


def _search(
    channels: Channels,
    costs: Costs,
    worth: Sequence[Any],
    settings: CompressSettings,
    align: Align,
    progress: Progress,
) -> _Attempt:
    original = {name: float(v[0]) for name, v in costs.of([g.width for g in channels.groups]).items()}
    targets = [parse_target(metric, text, original[metric]) for metric, text in settings.targets.items()]
    problem = Problem(channels, costs, targets, worth, align, settings.min_keep)
    problem.check_reachable()
    found = search.find(settings.search)(problem, search.SearchSettings(settings.budget, settings.seed), progress.step)
    return _Attempt(channels, problem, found, align)


def _coarser(
    attempts: Sequence[_Attempt], worth: Sequence[Any], settings: CompressSettings, align: Align, progress: Progress
) -> _Attempt | None:
    """Search with coarser widths; None where they cannot meet the target or give a plan already tried."""
    channels, costs = attempts[0].channels, attempts[0].problem.costs
    try:
        found = _search(channels, costs, worth, settings, align, progress)
    except TargetError:
        return None
    seen = any(np.array_equal(found.plan.counts, tried.plan.counts) for tried in attempts)
    return None if seen else found


def _cut_and_time(path: Path, attempt: _Attempt, settings: CompressSettings) -> None:
    """Cut, and time the result beside its original, in turns and on one thread."""
    attempt.cut = cut(attempt.channels, attempt.plan, runtime.evaluate)
    if settings.verify == "none":
        return
    model = attempt.channels.model
    feed = sizes.example_inputs(model.proto.graph, model.bound)
    try:
        pair = [runtime.Session(path, threads=1), runtime.Session(attempt.cut, folder=model.folder, threads=1)]
        before, after = runtime.latencies(pair, [feed, feed])
    except InputError as error:
        raise InputError(f"{error}; --verify none compresses a model that onnxruntime cannot run") from error
    attempt.before, attempt.after = latency(before), latency(after)


def _judge(path: Path, attempt: _Attempt, samples: Data, label_offset: int, report: Report, progress: Progress) -> None:
    """Evaluate the original and the cut model on the user's samples."""
    model = attempt.channels.model
    batch = None if model.has_free_batch else model.bound[samples.name][0]
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


def _report(path: Path, out: Path | None, attempt: _Attempt, settings: CompressSettings, clock: _Clock) -> Report:
    problem, channels = attempt.problem, attempt.channels
    after = {name: float(values[0]) for name, values in problem.costs.of(attempt.plan.counts).items()}
    return Report(
        headline=_headline(attempt, path.name),
        model=path.name,
        output=out.name if out else None,
        before=_measured(problem.original, attempt.before),
        after=_measured(after, attempt.after),
        target={t.metric: {"asked": t.text, "limit": t.limit, "reached": after[t.metric]} for t in problem.targets},
        groups=[
            {"name": g.name, "width": g.width, "kept": int(count), "step": int(step)}
            for g, count, step in zip(channels.groups, attempt.plan.counts, problem.steps, strict=True)
        ],
        frozen=frozen_parts(channels, problem.costs),
        notes=[*channels.model.notes, *_missed(attempt, after)],
        settings={**asdict(settings), "align": asdict(attempt.align)},
        seconds=clock.seconds,
    )


def _missed(attempt: _Attempt, after: Mapping[str, float]) -> list[str]:
    """Say where a plan lies well below all its targets, and what would come closer."""
    problem = attempt.problem
    open_shares = [(t.limit - after[t.metric]) / max(problem.original[t.metric], 1) for t in problem.targets]
    if min(open_shares, default=0) <= CLOSE or attempt.align.multiple == 1:
        return []
    finest = "; --align 1 comes closer, and may be slower" if (problem.steps > 1).any() else ""
    return [f"single steps of the aligned widths leave {min(open_shares):.1%} of the original's cost unused{finest}"]


def _measured(costs: Mapping[str, float], times: dict[str, float] | None) -> Measured:
    return Measured(**{name: round(costs[name]) for name in METRICS}, latency_ms=times)


def _headline(attempt: _Attempt, name: str) -> str:
    """Say in one line what came of it, a disappointment first."""
    kept = f"{name}: {attempt.macs_share:.1%} of the FLOPs kept"
    if attempt.time_share is None:
        return kept
    if attempt.time_share > 1:
        return f"SLOWER than the original ({1 / attempt.time_share:.2f}x), at any alignment tried. {kept}"
    return f"{kept}, {1 / attempt.time_share:.2f}x faster"


def _beside(out: Path, kind: str) -> Path:
    """Name a file that goes beside the result: small.onnx has small.plan.json."""
    return out.with_name(f"{out.name.removesuffix('.onnx')}.{kind}.json")


def _write(path: Path, out: Path, attempt: _Attempt, report: Report) -> None:
    """Write model, plan and report aside, then move them to their place, the model before what points to it."""
    channels = attempt.channels
    described = plans.to_json(channels, attempt.plan, plans.file_sha256(path), report.settings)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        draft = Path(scratch) / out.name
        models.save(attempt.result, draft, channels.model.folder)
        files = [file for file in (models.data_file(draft), draft) if file.exists()]
        report.before.file_bytes = path.stat().st_size + sum(file.stat().st_size for file in data_files(channels.model))
        report.after.file_bytes = sum(file.stat().st_size for file in files)
        for kind, content in (("plan", described), ("report", report.to_json())):
            files.append(_beside(draft, kind))
            write_json(files[-1], content)
        for file in files:
            os.replace(file, out.parent / file.name)


def data_files(model: Model) -> list[Path]:
    """List the external data files of a model."""
    external = [t for t in model.stored.values() if is_external(t)]
    return list(dict.fromkeys(external_place(t, model.folder)[0] for t in external))


class _Clock:
    """Times the stages of a run."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._progress.stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
