"""Train an ONNX model, from labels, from a teacher or both, and write it back in its own structure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.answers import paired
from onnxprune.data import Data, feeds
from onnxprune.errors import InputError, VerifyError
from onnxprune.model import Model
from onnxprune.progress import Progress
from onnxprune.training import normalizing
from onnxprune.training.executor import Executor
from onnxprune.training.losses import Loss, classifier, float_readings
from onnxprune.training.processes import Processes
from onnxprune.training.settings import FinetuneSettings, with_rate
from onnxprune.training.trainer import Result, Task, Trainer

CALIBRATION = 512  # samples that BatchNormalization which is put in starts from
CLOSE = 1e-3  # of the largest answer, between PyTorch and onnxruntime


@dataclass(frozen=True)
class Lesson:
    """What a model is to be taught, and from what.

    Attributes:
        model: the model, its sizes known.
        teacher: the model whose answers it is to give, where there is one.
        train: samples to train on; classes are learnt where they have any.
        holdout: others, to choose the best epoch by.
        label_offset: the index of a class is its label plus this.
        identity: what makes a run this run, such as hashes of model and samples.
    """

    model: Model
    teacher: Model | None
    train: Data
    holdout: Data
    label_offset: int
    identity: dict[str, Any]


def train(
    lesson: Lesson, settings: FinetuneSettings, folder: Path, team: Processes, progress: Progress, resume: bool = False
) -> tuple[ModelProto, Result]:
    """Train a model; gives it with its new numbers, and what happened in each epoch.

    Args:
        lesson: what is to be learnt.
        settings: how.
        folder: for checkpoints.
        team: the processes that train together.
        progress: told about each epoch.
        resume: whether to go on with what the folder holds.

    Raises:
        InputError: the model cannot be trained so.
    """
    model = lesson.model
    if lesson.teacher is not None and settings.teacher_share == 1:
        lesson = replace(lesson, train=replace(lesson.train, y=None), holdout=replace(lesson.holdout, y=None))
    if lesson.train.y is None and lesson.teacher is None:
        raise InputError(
            f"--data {lesson.train.source} has no labels; give some, or a --teacher whose answers to learn"
        )
    norms = normalizing.find_norms(model.proto, model.shapes) if settings.norms == "insert" else []
    started = model.proto
    if norms:
        calibration = lesson.train.take(np.arange(min(CALIBRATION, len(lesson.train))))
        started = normalizing.insert(model.proto, model.folder, norms, feeds(calibration, model))
    settings = with_rate(settings, any(n.op_type == "BatchNormalization" for n in started.graph.node))
    task = _task(lesson, started, settings)
    result = Trainer(task, settings, folder, team, progress).run(resume)
    with torch.no_grad():
        for name, values in result.weights.items():
            task.model.tensor(name).copy_(values)
    trained = task.model.model()
    if norms:
        trained = normalizing.fold(trained, model.proto, model.folder, norms)
    check_same(trained, task, model)
    return trained, result


def check_same(trained: ModelProto, task: Task, model: Model) -> None:
    """Make sure that onnxruntime gives what PyTorch gave in training.

    Raises:
        VerifyError: it does not.
    """
    feed = next(feeds(task.holdout, model))
    names = task.model.outputs[: task.answers]
    answers = runtime.open_with(trained, names, model.folder).run(feed, names)
    task.model.eval()
    device = next(task.model.parameters()).device
    with torch.no_grad():
        wanted = task.model(*(torch.from_numpy(x).to(device) for x in feed.values()))
    for name, found, values in zip(names, answers, wanted, strict=False):
        expected = values.cpu().numpy().astype(np.float64)
        apart = np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12)
        if not apart < CLOSE:
            raise VerifyError(
                f"the trained model answers otherwise in onnxruntime than in PyTorch: {name!r} by {apart:.1e}"
            )


def _task(lesson: Lesson, started: ModelProto, settings: FinetuneSettings) -> Task:
    model, teacher = lesson.model, lesson.teacher
    readings = float_readings(model)
    names = [r.tensor for r in readings]
    inner, theirs = list[str](), list[str]()
    taught = None
    if teacher is not None:
        pairs = paired(readings, float_readings(teacher))
        names, theirs = [a.tensor for a, _ in pairs], [b.tensor for _, b in pairs]
        inner = _inner(model, teacher) if settings.hints else []
        taught = Executor(teacher.proto, teacher.folder, [*theirs, *inner], settings.compiled)
    loss = Loss(
        classifier(model, names),
        lesson.label_offset,
        settings.smoothing,
        settings.temperature,
        settings.teacher_share,
        settings.hints,
    )
    executor = Executor(started, model.folder, [*names, *inner], settings.compiled)
    batch = model.fixed_batch(lesson.train.inputs[0].name)
    return Task(executor, taught, len(names), loss, lesson.train, lesson.holdout, batch, lesson.identity)


def _inner(model: Model, teacher: Model) -> list[str]:
    """Name the last tensor of each image size that both models have, but for the smallest images.

    Raises:
        InputError: there is none.
    """
    last: dict[tuple[int, ...], str] = {}
    for node in model.proto.graph.node:
        for name in node.output:
            shape, other = model.shapes.get(name, ()), teacher.shapes.get(name, ())
            if len(shape) == 4 and shape[2:] == other[2:] and len(other) == 4 and min(shape[2:]) > 1:
                last[shape[2:]] = name
    if not last:
        raise InputError("--hints compares inner images of model and teacher, which have none in common; leave it out")
    return list(last.values())
