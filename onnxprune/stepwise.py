"""Deep cuts in steps: cut a part, repair, train, and cut on; what went in all steps together is one plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import model as models
from onnxprune import runtime
from onnxprune.attempt import Attempt, Searched, described, early_end, measure_beside, try_memory
from onnxprune.channels import Channels
from onnxprune.criteria import Evidence, importance
from onnxprune.errors import InputError
from onnxprune.files import read_json, typed
from onnxprune.finish import Finish
from onnxprune.metrics import Costs
from onnxprune.outputs import beside, write_results
from onnxprune.plan import Plan, file_sha256
from onnxprune.prepare import Source, most_to_calibrate, prepare
from onnxprune.problem import FINE, Align, Problem
from onnxprune.progress import Clock, Progress
from onnxprune.records import Place, is_finished
from onnxprune.reporting import Report
from onnxprune.runs import Run, name_of
from onnxprune.summary import note_own, summarise, where_time_is
from onnxprune.surgery import cut
from onnxprune.targets import parse_target
from onnxprune.verify import verify, verify_repaired
from onnxprune.weights import NOT_WEIGHTS, is_external

Compress = Callable[[Source, Path, Place, Progress], Report]
"""Compresses a file in one step: what is given, the file to write, the place of its folder, who is told."""


def limits(asked: Mapping[str, str], original: Mapping[str, float], steps: int) -> list[dict[str, str]]:
    """Give the targets of each step: every step takes the same part of what is there."""
    ends = {name: parse_target(name, text, original[name]).limit for name, text in asked.items()}
    shares = {name: end / original[name] for name, end in ends.items()}
    found = [{name: s ** (step / steps) * original[name] for name, s in shares.items()} for step in range(1, steps)]
    return [{name: f"{limit / 1000:f}k" for name, limit in step.items()} for step in (*found, ends)]


def composed(channels: Channels, cuts: Sequence[Mapping[str, Any]]) -> Plan:
    """Put the cuts of several steps together.

    Args:
        channels: of the model that the first step cut.
        cuts: per step what its plan removed: the name of a stored tensor, an axis, indices, see `plan.to_json`.
    """
    left: dict[tuple[str, int], Any] = {}
    gone = np.zeros(channels.count + 1, bool)  # the last is where `channel_of` says FROZEN
    for removed in cuts:
        for name, axes in removed.items():
            if name not in channels.axes:
                continue  # a copy that an earlier step made; its channels lie on larger tensors, too
            for text, indices in axes.items():
                axis = int(text)
                atoms = left.setdefault((name, axis), channels.axes[name][axis])
                gone[channels.channel_of[atoms[list(indices)]]] = True
                left[name, axis] = np.delete(atoms, list(indices))
    return Plan(tuple(np.flatnonzero(~gone[group.channels]) for group in channels.groups))


class Stepwise:
    """One compression in steps.

    Args:
        source: what the user gave.
        out: the file to write.
        progress: told what is going on.
    """

    def __init__(self, source: Source, out: Path, progress: Progress) -> None:
        self.source, self.out, self.progress = source, out, progress
        self.clock = Clock(progress)
        with self.clock.stage("load"):
            self.prepared = prepare(source)
        if self.prepared.original.slots:
            raise InputError(
                "--steps cannot cut inside groups of convolutions, whose channels pair up anew each time; leave it out"
            )
        settings, channels, original = source.settings, self.prepared.original, self.prepared.original_costs
        self.align = FINE if settings.multiple is None else Align(settings.multiple)
        targets = [parse_target(name, text, original[name]) for name, text in settings.targets.items()]
        worth = importance(Evidence(channels), "l2")
        self.problem = Problem(channels, Costs(channels), targets, worth, self.align, settings.min_keep)
        self.problem.check_reachable()
        for target in targets:
            progress.say(f"In all, keep at most {described(target, original)}")

    def targets(self) -> list[dict[str, str]]:
        """Give the targets of each step."""
        settings = self.source.settings
        return limits(settings.targets, self.prepared.original_costs, settings.steps)

    def finish(self, files: Sequence[Path], run: Run) -> Report:
        """Prove that what the steps came to is one cut of the original, and write it with its plan and report.

        Args:
            files: what each step wrote.
            run: told when the files are about to be written.

        Raises:
            InputError: what went cannot be told as one plan.
            VerifyError: the result is not what it must be; nothing is written.
        """
        told, settings = [_told(file) for file in files], self.source.settings
        attempt, finish = self._attempt(files, told), Finish(self.prepared, self.progress)
        steps = [_inside(models.read_file(file), file.parent) for file in files]
        trained = steps[-1]
        _check_same_structure(attempt.result, trained)
        with self.clock.stage("verify"):
            checks = verify(attempt.channels, attempt.plan, attempt.result, settings.verify)
            checks |= verify_repaired(attempt.channels, attempt.plan, trained, settings.verify)
        notes = []
        if settings.verify != "none":
            with self.clock.stage("measure memory"):
                notes = try_memory(attempt, self.prepared.original.model, settings.device)
        report = summarise(self.prepared, attempt, self.out, self.clock)
        note_own(report, attempt.result, trained)
        report.checks = checks
        with self.clock.stage("explain"):
            report.notes += [*notes, *where_time_is(attempt, settings.device)]
        with self.clock.stage("evaluate"):
            report.add_stages(finish.stages_of(attempt.result, steps))
        report.data = finish.used()
        report.search = {"steps": [asdict(step.search) for step in told]}
        report.training = {"steps": [asdict(step.training) for step in told]}
        of_steps = ([*early_end(step.search), *step.training.notes] for step in told)
        report.notes += [f"step {n}: {note}" for n, found in enumerate(of_steps, start=1) for note in found]
        for step in told:
            for name, seconds in step.seconds.items():
                self.clock.add(name, seconds)
        with self.clock.stage("write"):
            run.writing()
            write_results(self.source.path, self.out, attempt, trained, report)
        return report

    def _attempt(self, files: Sequence[Path], told: Sequence[_Told]) -> Attempt:
        channels = self.prepared.original
        try:
            plan = composed(channels, [step.removed for step in told])
        except (IndexError, ValueError) as error:
            raise InputError(f"a plan in {files[0].parent.parent} is damaged; remove the folder") from error
        with self.clock.stage("cut and time"):
            attempt = Attempt(self.problem, plan, self.align, cut(channels, plan, runtime.evaluate))
            if self.source.settings.verify != "none":
                measure_beside(attempt, channels.model, self.source.settings.device)
        return attempt


@dataclass(frozen=True)
class _Told:
    """What a step has written beside its result."""

    removed: dict[str, dict[str, tuple[int, ...]]]
    search: Searched
    training: _Training
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Training:
    """How a step was trained, see `Report.training`."""

    chosen_epoch: int
    epochs: tuple[dict[str, float | None], ...]
    notes: tuple[str, ...]


def _told(file: Path) -> _Told:
    """Read what a step removed and how it searched.

    Raises:
        InputError: its files are damaged.
    """
    plan, report = (read_json(beside(file, kind)) for kind in ("plan", "report"))
    try:
        found = {"removed": plan["removed"], **{key: report[key] for key in ("search", "training", "seconds")}}
        told: _Told = typed(found, _Told)
    except (KeyError, TypeError) as error:
        raise InputError(f"the files beside {file} are damaged; remove the folder") from error
    return told


def _inside(model: ModelProto, folder: Path) -> ModelProto:
    """Take what lies beside a file into the model."""
    for tensor in model.graph.initializer:
        if is_external(tensor):
            models.take_inside(tensor, folder)
    return model


def _check_same_structure(ours: ModelProto, theirs: ModelProto) -> None:
    """Make sure that one cut of the original gives the weights that the steps came to.

    Raises:
        InputError: it does not.
    """
    one, other = (
        {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_type not in NOT_WEIGHTS}
        for model in (ours, theirs)
    )
    if any(one[name] != other[name] for name in one.keys() & other.keys()):
        raise InputError("the steps came to a structure that is no single cut of the original; leave --steps out")


def in_steps(source: Source, out: Path, place: Place, progress: Progress, compress: Compress) -> Report:
    """Compress step by step: each one cuts, repairs and trains what the one before came to.

    A step has a folder of its own in that of the run, named by the model it starts from, with its result; one that has
    finished there is taken as it is.

    Args:
        source: what the user gave.
        out: the file to write.
        place: of the folder of the run.
        progress: told what is going on.
        compress: compresses one file in one step.
    """
    whole = Stepwise(source, out, progress)
    # a model that was cut would get more samples to calibrate with, and take them from those that epochs are chosen by
    settings = replace(source.settings, calibration=most_to_calibrate(source, whole.prepared.original))
    limit = None if settings.time_limit is None else settings.time_limit / settings.steps
    with Run(whole.prepared, out, place) as run:
        run.begin()
        path, files = source.path, list[Path]()
        for number, targets in enumerate(whole.targets(), start=1):
            asked = replace(settings, targets=targets, steps=1, time_limit=limit)
            folder = run.folder / f"step-{number}-{name_of(file_sha256(path))}"
            files.append(folder / f"step{number}.onnx")
            progress.say(f"Step {number} of {settings.steps}")
            if not (is_finished(folder, asked) and files[-1].is_file()):
                compress(
                    replace(source, path=path, settings=asked, teacher=source.path), files[-1], Place(folder), progress
                )
            path = files[-1]
        report = whole.finish(files, run)
        run.finish()
    return report
