"""Train an ONNX model in PyTorch and write it back in its own structure: ``onnxprune finetune``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune import model as models
from onnxprune import runtime
from onnxprune.data import Data, read_data, read_preprocess
from onnxprune.errors import InputError
from onnxprune.evaluation import Judge, Scores
from onnxprune.files import write_json
from onnxprune.model import Model
from onnxprune.outputs import beside, check_apart, check_outputs, move
from onnxprune.progress import Clock, Progress, Quiet
from onnxprune.records import default_folder
from onnxprune.reporting import plain, versions
from onnxprune.runs import take
from onnxprune.training import checkpoint
from onnxprune.training.lesson import Lesson, check_teacher, train, untrained
from onnxprune.training.processes import Processes, processes
from onnxprune.training.settings import FinetuneSettings, check
from onnxprune.training.trainer import Result

FORMAT = "onnxprune.finetune/1"
LOCK = ".lock"  # in the folder of a run, as long as it is at work


@dataclass(frozen=True)
class FinetuneReport:
    """What a run of finetune did.

    Attributes:
        model: the input file's name.
        output: the output file's name.
        teacher: the teacher's file name, or None.
        before: what the model answered to the samples held out.
        after: what it answers now.
        chosen_epoch: the epoch whose weights were written; 0 is before training.
        epochs: per epoch the mean loss, and loss and accuracy on the samples held out.
        data: where the samples are from, and how many were trained on and held out.
        notes: what else the user should know.
        settings: of the run.
        seconds: time per stage.
    """

    model: str
    output: str
    teacher: str | None
    before: Scores
    after: Scores
    chosen_epoch: int
    epochs: list[dict[str, Any]]
    data: dict[str, Any]
    notes: list[str]
    settings: dict[str, Any]
    seconds: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain JSON values, None for what is not finite."""
        return {"format": FORMAT, **plain(asdict(self)), "versions": versions()}


def finetune(
    path: str | Path,
    out: str | Path,
    settings: FinetuneSettings,
    *,
    data: str | Path,
    preprocess: str = "none",
    label_offset: int = 0,
    teacher: str | Path | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    shapes: dict[str, tuple[int, ...]] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> FinetuneReport:
    """Train a model, from labels, from a teacher's answers or from both, and write it with its new numbers.

    Its file keeps names, operators and structure. Part of the samples is held out: of all epochs, that one is written
    which does best on them. Started by torchrun, several processes train together, and the first one writes.

    Args:
        path: the model file.
        out: the file to write; ``NAME.report.json`` goes beside it.
        settings: how to train.
        data: samples, with labels or without, see `read_data`.
        preprocess: how pixels become inputs, see `read_preprocess`.
        label_offset: the output index of a class is its label plus this.
        teacher: a model whose answers are to be learnt, such as the one before it was cut.
        run: folder for checkpoints; ``NAME.run`` beside `out` by default.
        resume: go on with what the folder holds; where it holds nothing, start.
        shapes: sizes for inputs that leave them free.
        force: overwrite existing files.
        progress: told about each epoch.

    Raises:
        InputError: a file or an option is wrong.
        VerifyError: the result does not answer as it did in training; nothing is written.
    """
    path, out, teacher = Path(path), Path(out), None if teacher is None else Path(teacher)
    check(settings)
    if settings.teacher_share != FinetuneSettings.teacher_share and teacher is None:
        raise InputError("--teacher-share divides the loss with a teacher; give --teacher, or leave it out")
    if settings.temperature != FinetuneSettings.temperature and teacher is None:
        raise InputError("--temperature softens a teacher's answers; give --teacher, or leave it out")
    if settings.hints and teacher is None:
        raise InputError("--hints compares with a teacher; give --teacher, or leave it out")
    check_outputs(path, out, force, kinds=("report",), read=(data, teacher, preprocess))
    folder = default_folder(out) if run is None else Path(run)
    with processes() as team, ExitStack() as stack:
        told = (progress or Quiet()) if team.is_first else Quiet()
        clock = Clock(told)
        with clock.stage("load"):
            loaded = partial(models.load, run=runtime.evaluate, asked=shapes, runs_batches=True)
            model, taught = loaded(path), None if teacher is None else loaded(teacher)
            check_apart(model, out)
            if taught is not None:
                check_teacher(model, taught)
                check_apart(taught, out, "the teacher")
            samples = read_data(data, model, read_preprocess(preprocess), label_offset)
            identity = {"model": model.sha256, "teacher": None if taught is None else taught.sha256}
            lesson = divided(samples, model, taught, label_offset, identity, settings)
            stack.enter_context(_opened_run(folder, resume, force, team))
            judge = _judge(lesson)
        with clock.stage("train"):
            proto, result = train(lesson, settings, folder, team, told, resume)
        report = FinetuneReport(
            path.name,
            out.name,
            None if teacher is None else teacher.name,
            judge.judge(model.proto, model.folder),
            judge.judge(proto, model.folder),
            result.chosen,
            result.rows,
            {
                "source": samples.source,
                "preprocess": preprocess,
                "trained": len(lesson.train),
                "held_out": len(lesson.holdout),
            },
            _notes(lesson, settings, result),
            asdict(replace(settings, rate=result.rate)),
            clock.seconds,
        )
        if team.is_first:
            _write(proto, model, out, report)
    return report


def divided(
    samples: Data,
    model: Model,
    teacher: Model | None,
    label_offset: int,
    identity: dict[str, Any],
    settings: FinetuneSettings,
) -> Lesson:
    """Hold part of the samples out: an eighth, at most what the settings say.

    Raises:
        InputError: there are too few.
    """
    if len(samples) < 2:
        raise InputError(
            f"--data {samples.source} has too few samples ({len(samples)}) to train with; give some hundreds"
        )
    if teacher is not None and settings.teacher_share == 1:
        samples = replace(samples, y=None)
    fixed = model.fixed_batch(samples.inputs[0].name) or 1
    held = max(fixed, min(settings.holdout, len(samples) // 8))
    if held >= len(samples):
        raise InputError(
            f"--data {samples.source} has {len(samples)} samples, the model takes {fixed} at once; give more"
        )
    order = np.random.default_rng(settings.seed).permutation(len(samples))
    return Lesson(
        model,
        teacher,
        samples.take(order[held:]),
        samples.take(order[:held]).loaded(),
        label_offset,
        {
            **identity,
            "samples": samples.sha256,
            "label offset": label_offset,
            "shapes": {name: list(shape) for name, shape in model.bound.items()},
        },
    )


def _notes(lesson: Lesson, settings: FinetuneSettings, result: Result) -> list[str]:
    """Say what the user should know."""
    notes = result.notes("--resume --choose last --force") + untrained(lesson.model)
    fixed = lesson.model.fixed_batch(lesson.train.inputs[0].name)
    if fixed is not None and fixed != settings.batch:
        notes.append(
            f"the model takes {fixed} sample{'s' if fixed > 1 else ''} at once, and so does a step; --batch is for "
            "models of a free batch"
        )
    return notes


@contextmanager
def _opened_run(folder: Path, resume: bool, force: bool, team: Processes) -> Iterator[None]:
    """Make the folder for checkpoints; where training never began, it goes again.

    Raises:
        InputError: it cannot be made, holds a run or files of others already, or another run is at work there.
    """
    if not resume and not force and (folder / checkpoint.LAST).exists():
        raise InputError(f"{folder} holds a run; go on with --resume, start again with --force, or give another --run")
    others = [] if force else checkpoint.of_others(folder)
    if others:
        raise InputError(f"{others[0]} is of no run, and would be overwritten; give another --run, or --force")
    is_new = not folder.exists()
    team.wait()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made ({error.strerror}); give another --run") from error
    lock = take(folder / LOCK) if team.is_first else None
    for draft in folder.glob(".*.pt.*") if lock is not None else ():  # of a run that was killed
        shutil.rmtree(draft, ignore_errors=True)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()
            (folder / LOCK).unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # only if it is empty


def _judge(lesson: Lesson) -> Judge:
    """Compare with the teacher, without one with the model as it was."""
    model = lesson.teacher or lesson.model
    batch = lesson.model.fixed_batch(lesson.holdout.inputs[0].name)
    return Judge(model.proto, model.folder, lesson.holdout, batch=batch, label_offset=lesson.label_offset)


def _write(proto: ModelProto, model: Model, out: Path, report: FinetuneReport) -> None:
    """Write model and report aside, then move them to their place."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        draft = Path(scratch) / out.name
        models.save(proto, draft, model.folder)
        write_json(beside(draft, "report"), report.to_json())
        move([file for file in (models.data_file(draft), draft, beside(draft, "report")) if file.exists()], out)
