"""How well a model answers: accuracy with labels, agreement with another model without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune import runtime
from onnxprune.data import Data
from onnxprune.errors import InputError
from onnxprune.weights import Array

BATCH = 50


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; None where it does not apply.

    Attributes:
        samples: how many were judged.
        top1: share whose best class is the label.
        top5: share whose label is among the five best classes (None below six classes).
        agreement: share whose best class is that of the reference model.
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None


def evaluate_model(
    session: runtime.Session,
    data: Data,
    *,
    batch: int | None = None,
    label_offset: int = 0,
    reference: runtime.Session | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Run all samples and judge the answers.

    Args:
        session: the model.
        data: samples in its layout.
        batch: batch size the model is fixed to; None where it is free.
        label_offset: the output index of a class is its label plus this.
        reference: another model to agree with.
        progress: told how many samples are done, of how many.

    Raises:
        InputError: no labels and no reference, or outputs that are no class scores.
    """
    if data.y is None and reference is None:
        raise InputError("the data has no labels; give a --reference model to compare with")
    size = batch or BATCH
    hits1 = hits5 = agreed = done = 0
    classes = 0
    for feed, labels in data.batches(size):
        real = len(next(iter(feed.values())))
        padded = {name: _padded(x, size) if batch else x for name, x in feed.items()}
        scores = class_scores(session.run(padded)[0])[:real]
        classes = scores.shape[1]
        best = scores.argmax(axis=1)
        if done == 0:
            _check_labels(data, classes, label_offset)
        if labels is not None:
            hits1 += int((best == labels + label_offset).sum())
            hits5 += int((_best(scores, 5) == (labels + label_offset)[:, None]).any(axis=1).sum())
        if reference is not None:
            agreed += int((best == class_scores(reference.run(padded)[0])[:real].argmax(axis=1)).sum())
        done += real
        if progress is not None:
            progress(done, len(data))
    return Scores(
        done,
        hits1 / done if data.y is not None else None,
        hits5 / done if data.y is not None and classes > 5 else None,
        agreed / done if reference is not None else None,
    )


def _check_labels(data: Data, classes: int, label_offset: int) -> None:
    if data.y is None:
        return
    for label in (int(data.y.min()), int(data.y.max())):
        if not 0 <= label + label_offset < classes:
            raise InputError(
                f"the data has class {label} and --label-offset is {label_offset}, the model has outputs 0 to "
                f"{classes - 1}; check the labels and --label-offset"
            )


def class_scores(output: object) -> Array:
    """Take an output as class scores, (samples, classes).

    Raises:
        InputError: it is something else.
    """
    if isinstance(output, np.ndarray) and output.ndim >= 2 and np.issubdtype(output.dtype, np.floating):
        flat = output.reshape(len(output), -1)
        if flat.shape[1] == output.shape[1]:
            return flat
    shape = getattr(output, "shape", type(output).__name__)
    raise InputError(f"the model's first output is no list of class scores (it is {shape})")


def _best(scores: Array, count: int) -> Array:
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def _padded(x: Array, size: int) -> Array:
    """Fill a last, short batch by repeating its first sample, for models of a fixed batch size."""
    return np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)]) if len(x) < size else x
