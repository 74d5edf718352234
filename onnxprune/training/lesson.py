"""Train an ONNX model, from labels, from a teacher or both, and write it back in its own structure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, ModelProto, TensorProto

from onnxprune import runtime
from onnxprune.answers import Reading
from onnxprune.data import Data, check_labels, feeds
from onnxprune.errors import InputError, VerifyError
from onnxprune.inputs import model_inputs
from onnxprune.model import Model, constant_tensor
from onnxprune.nodes import every_body
from onnxprune.progress import Progress
from onnxprune.training import normalizing
from onnxprune.training.agreement import check_agreement, disagreement
from onnxprune.training.augment import choose
from onnxprune.training.executor import Executor
from onnxprune.training.losses import Loss, classifier, float_readings, variance
from onnxprune.training.processes import Processes
from onnxprune.training.settings import FinetuneSettings, with_rate
from onnxprune.training.sharing import FLOATS
from onnxprune.training.trainer import Result, Task, Trainer, check_weights

CALIBRATION = 512  # samples that show how much numbers vary: what is normalised, and what a teacher answers


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
    lesson = _checked(lesson, settings, team)
    batch = model.fixed_batch(lesson.train.inputs[0].name) or settings.batch // team.count
    single = batch == 1  # one sample is no batch to normalise by
    norms = normalizing.find_norms(model.proto, model.shapes) if settings.norms == "insert" and not single else []
    started = model.proto
    if norms:
        started = normalizing.insert(model.proto, model.folder, norms, feeds(_calibration(lesson), model))
    settings = with_rate(settings, not single and normalizing.is_normalised(started))
    task = _task(lesson, started, settings)
    with _in_words(settings):
        check_agreement(task.model, model.proto, next(feeds(task.holdout, model)), task.model.outputs[: task.answers])
        result = Trainer(task, settings, folder, team, progress).run(resume)
    if not team.is_first or not result.chosen:
        return model.proto, result
    with torch.no_grad():
        for name, values in result.weights.items():
            task.model.tensor(name).copy_(values)
    trained = task.model.model()
    if norms:
        trained = normalizing.fold(trained, model.proto, model.folder, norms)
    check_same(trained, task, model)
    return trained, result


@contextmanager
def _in_words(settings: FinetuneSettings) -> Iterator[None]:
    """Say what the user can do about what PyTorch raises.

    Raises:
        InputError: memory does not suffice, or the model cannot be compiled.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error):
            text = f"not enough memory to train on {settings.batch} samples at once; give a smaller --batch"
            raise InputError(text) from error
        if settings.compiled and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0][:200]
            raise InputError(f"--compile does not work here ({reason}); leave it out") from error
        raise


def _checked(lesson: Lesson, settings: FinetuneSettings, team: Processes) -> Lesson:
    """Leave out labels that are not to be read, and make sure that there is something to learn.

    Raises:
        InputError: there is not, or too few samples, or labels are not among the classes.
    """
    model, train = lesson.model, lesson.train
    readings = float_readings(model)
    images = [given.image for given in train.inputs if given.image is not None]
    sides = [min(image[1:]) for image in images]
    if not sides and (settings.cutout or settings.augment in ("small", "imagenet")):
        raise InputError("--augment and --cutout change images, and the model takes none; leave them out")
    if settings.cutout and all(choose(settings.augment, (1, *image)) == "none" for image in images):
        raise InputError(
            f"--cutout goes with --augment, and auto leaves images of {images[0][0]} channels as they are; give "
            "--augment small or imagenet, or leave --cutout out"
        )
    if sides and settings.cutout >= min(sides):
        raise InputError(f"--cutout {settings.cutout} leaves nothing of images of {min(sides)} pixels; give less")
    if train.y is None and lesson.teacher is not None and not settings.teacher_share:
        raise InputError("without labels, --teacher-share 0 leaves nothing to learn; leave it out")
    scored = classifier(model, readings)
    if lesson.teacher is not None and (settings.teacher_share == 1 or scored is None):
        train = replace(train, y=None)
        lesson = replace(lesson, train=train, holdout=replace(lesson.holdout, y=None))
    if train.y is None and lesson.teacher is None:
        raise InputError(f"--data {train.source} has no labels; give some, or a --teacher whose answers to learn")
    if train.y is None and settings.smoothing:
        raise InputError("--smoothing is of labels, and none are learnt from; leave it out")
    check_labels(train, 0 if scored is None else model.shapes[readings[scored].tensor][1], lesson.label_offset)
    _check_enough(train, lesson.holdout, (model.fixed_batch(train.inputs[0].name) or 1) * team.count)
    return lesson


def _check_enough(train: Data, holdout: Data, fixed: int) -> None:
    if min(len(train), len(holdout)) < fixed:
        raise InputError(
            f"--data {train.source}: {len(train)} samples to train with, {len(holdout)} to choose the epoch by, and "
            f"{fixed} are needed at once; give more"
        )


def untrained(model: Model) -> list[str]:
    """Say what looks like weights and stays as it is: tensors that lie inside If, Loop, Scan and local functions."""
    found = dict[str, TensorProto]()
    for body in (*every_body(model.proto.graph), *model.proto.functions):
        if isinstance(body, GraphProto):
            found |= {tensor.name: tensor for tensor in body.initializer}
        constants = [node for node in body.node if node.op_type == "Constant"]
        found |= {node.output[0]: tensor for node in constants if (tensor := constant_tensor(node)) is not None}
    names = [name for name, tensor in found.items() if tensor.data_type in FLOATS and np.prod(tensor.dims) > 1]
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"what lies inside If, Loop, Scan or a local function is not trained: {names[0]!r}{more}"]


def check_trainable(model: Model, train: Data, holdout: Data) -> None:
    """Make sure that PyTorch can train a model, and that there is something to learn and enough to learn it from.

    Raises:
        InputError: it holds an operator that has no function or no float weights, gives whole numbers only, takes
            more samples at once than there are, or answers otherwise in onnxruntime.
    """
    names = [reading.tensor for reading in float_readings(model)]
    _check_enough(train, holdout, model.fixed_batch(train.inputs[0].name) or 1)
    executor = Executor(model.proto, model.folder, names)
    check_weights(executor)
    check_agreement(executor, model.proto, next(feeds(holdout, model, most=2)), executor.outputs)


def check_same(trained: ModelProto, task: Task, model: Model) -> None:
    """Make sure that onnxruntime gives what PyTorch gave in training.

    Raises:
        VerifyError: it does not.
    """
    names = task.model.outputs[: task.answers]
    found = disagreement(task.model, trained, next(feeds(task.holdout, model)), names)
    if found:
        raise VerifyError(f"the trained model answers otherwise in onnxruntime than in PyTorch: {found}")


def _task(lesson: Lesson, started: ModelProto, settings: FinetuneSettings) -> Task:
    model, teacher = lesson.model, lesson.teacher
    readings, taught = float_readings(model), None
    inner, others = list[str](), list[Reading]()
    if teacher is not None:
        pairs = [_pair(a, b) for a, b in zip(readings, float_readings(teacher), strict=False)]
        readings, others = [a for a, _ in pairs], [b for _, b in pairs]
        inner = _inner(model, teacher) if settings.hints else []
        taught = Executor(teacher.proto, teacher.folder, [*(b.tensor for b in others), *inner], settings.compiled)
    both = readings, others
    names, theirs = ([reading.tensor for reading in read] for read in both)
    executor = Executor(started, model.folder, [*names, *inner], settings.compiled)
    if taught is not None:
        _check_answers(lesson, list(zip(names, theirs, strict=True)))
    scored = classifier(model, readings)
    loss = Loss(
        scored,
        _variances(lesson, theirs),
        lesson.train.y is not None or scored is None or "Softmax" in {read[scored].function for read in both if read},
        lesson.label_offset,
        settings.smoothing,
        settings.temperature,
        settings.teacher_share,
        settings.hints,
    )
    batch = model.fixed_batch(lesson.train.inputs[0].name)
    return Task(executor, taught, len(names), loss, lesson.train, lesson.holdout, batch, lesson.identity)


def _calibration(lesson: Lesson) -> Data:
    """Give some of the samples that are trained on, a batch of the model at least."""
    count = max(CALIBRATION, lesson.model.fixed_batch(lesson.train.inputs[0].name) or 1)
    return lesson.train.take(np.arange(min(count, len(lesson.train))))


def _variances(lesson: Lesson, names: list[str]) -> list[float]:
    """Measure how much a teacher's answers vary, on some of the samples that are trained on."""
    if lesson.teacher is None:
        return []
    session = runtime.open_with(lesson.teacher.proto, names, lesson.teacher.folder)
    answers = [session.run(feed, names) for feed in feeds(_calibration(lesson), lesson.model)]
    return [variance(np.concatenate([values.reshape(-1) for values in found])) for found in zip(*answers, strict=True)]


def _pair(ours: Reading, theirs: Reading) -> tuple[Reading, Reading]:
    """Read both outputs before a last softmax, whichever of them has one, or both before their sigmoid."""
    alike = ours.function == theirs.function or {ours.function, theirs.function} == {"", "Softmax"}
    return (ours, theirs) if alike else (ours.outside, theirs.outside)


def check_teacher(model: Model, teacher: Model) -> None:
    """Make sure that a teacher can be asked what the model is asked.

    Raises:
        InputError: it takes other inputs.
    """
    ours, theirs = model_inputs(model), model_inputs(teacher)
    one, other = (", ".join(f"{x.name} ({x.dtype})" for x in inputs) for inputs in (ours, theirs))
    if one != other:
        raise InputError(f"the teacher takes {other}, the model {one}; give a teacher of the same inputs in that order")
    batches = [found.fixed_batch(ours[0].name) for found in (teacher, model)]
    if batches[0] not in (None, batches[1]):
        given, wanted = ("any number of samples" if size is None else f"samples by {size}" for size in batches)
        raise InputError(f"the teacher takes {given}, the model {wanted}; give a teacher that takes any number")


def _check_answers(lesson: Lesson, pairs: list[tuple[str, str]]) -> None:
    """Make sure that a teacher speaks of the same things.

    Raises:
        InputError: it gives other outputs.
    """
    assert lesson.teacher is not None
    for ours, theirs in pairs:
        one, other = lesson.model.shapes.get(ours), lesson.teacher.shapes.get(theirs)
        if one is not None and other is not None and one[1:] != other[1:]:
            raise InputError(
                f"the teacher's output {theirs!r} is {'x'.join(map(str, other[1:]))} a sample, the model's {ours!r} "
                f"{'x'.join(map(str, one[1:]))}; give a teacher of the same outputs"
            )


def _inner(model: Model, teacher: Model) -> list[str]:
    """Name the last tensor of each image size that both models have, but for the smallest images.

    Raises:
        InputError: there is none.
    """
    last: dict[tuple[int, ...], str] = {}
    for node in model.proto.graph.node:
        for name in node.output:
            if name in model.stored:
                continue
            shape, other = model.shapes.get(name, ()), teacher.shapes.get(name, ())
            if len(shape) == 4 and shape[2:] == other[2:] and len(other) == 4 and min(shape[2:]) > 1:
                last[shape[2:]] = name
    if not last:
        raise InputError("--hints compares inner images of model and teacher, which have none in common; leave it out")
    return list(last.values())
