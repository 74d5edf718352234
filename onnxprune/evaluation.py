"""How well a model answers: accuracy with labels, and how far its answers are from those of another model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import ModelProto

from onnxprune import comparing, runtime
from onnxprune.answers import Answer, Reading, ask, batch_size, find_readings, is_float, open_session, paired
from onnxprune.data import Data, check_labels
from onnxprune.errors import InputError
from onnxprune.weights import Array

MEMORY = 1_000_000_000  # bytes of the original's answers; samples after those that fill it are not judged


@dataclass(frozen=True)
class Scores:
    """What an evaluation found; None where it does not apply.

    Attributes:
        samples: how many were judged.
        top1: share whose best class is the label.
        top5: share whose label is among the five best classes (None below six classes).
        agreement: share whose best class is that of the reference model.
        kl: mean Kullback-Leibler divergence from the reference's class probabilities, in nats (None behind a sigmoid,
            where classes do not exclude each other).
        distance: from the reference's outputs, read before a last softmax or sigmoid: root of the mean over the outputs
            of the mean squared difference, relative to the variance of the numbers that the reference gives there.
            0 is the same, 1 as bad as answering their mean. Integer outputs count with the share of numbers that
            differ, outputs of another shape as 1. Numbers of different kinds in one output, such as boxes and scores,
            have variances of their own, see `comparing.variance`.
        others: of a model that classifies: the same of all its other float outputs (None: there are none), not yet
            the root of it.
    """

    samples: int
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    kl: float | None = None
    distance: float | None = None
    others: float | None = None

    @property
    def error(self) -> float:
        """What searches minimise: `kl` and `others`, else `distance`, without a reference the share of wrong classes.

        Infinite where the model answers with NaN or infinity in place of the reference's numbers.

        Raises:
            ValueError: the model was compared with nothing.
        """
        if self.kl is not None:
            return self.kl + (self.others or 0.0)
        for error in (self.distance, None if self.top1 is None else 1 - self.top1):
            if error is not None:
                return error
        raise ValueError("these scores hold no comparison, with labels or with a reference")


class Judge:
    """Judges candidates against the original on the same samples; the original runs once.

    A model classifies if its first float output is (N, classes) or (N, classes, 1, 1), with two classes or more.

    Args:
        original: the model to compare with.
        folder: where its external data lies.
        data: samples in its layout.
        batch: batch size the models are fixed to; None where it is free.
        label_offset: the output index of a class is its label plus this.
        threads: intra-op threads; None leaves the choice to onnxruntime.
        progress: told how many samples are done, of how many, whenever a model runs.

    Attributes:
        original_scores: the original, judged like a candidate.

    Raises:
        InputError: the original cannot run on these samples or answers with nothing that can be compared, or labels
            are not among its classes.
    """

    def __init__(
        self,
        original: ModelProto,
        folder: Path,
        data: Data,
        *,
        batch: int | None = None,
        label_offset: int = 0,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._original, self._folder, self._data = original, folder, data
        self._label_offset, self._threads, self._progress = label_offset, threads, progress
        self._is_fixed, self._size = batch is not None, batch or batch_size(data)
        self._readings = find_readings(original.graph)
        self._expected = self._expect(self._readings)
        self.original_scores = self._compare(self._expected.answers, self._readings)

    def judge(self, candidate: ModelProto, folder: Path | None = None) -> Scores:
        """Run a candidate and compare what it answers with what the original does.

        Args:
            candidate: a model of the same inputs.
            folder: where its external data lies (default: where that of the original does).

        Raises:
            InputError: it cannot run on the samples, or has other classes than the original.
        """
        pairs = paired(self._readings, find_readings(candidate.graph))
        wanted, found = tuple(a for a, _ in pairs), tuple(b for _, b in pairs)
        if wanted != self._expected.readings:  # it ends in other operators than what was judged last
            self._expected = self._expect(wanted)
        return self._compare(self._ask(candidate, found, folder or self._folder), found)

    def _expect(self, readings: tuple[Reading, ...]) -> _Expected:
        """Run the original; one sample at a time where outputs do not tell the samples of a batch apart."""
        answers: list[Answer] = []
        held = 0
        for answer in self._ask(self._original, readings, self._folder):
            if not (self._is_fixed or answer.samples == 1 or answer.is_by_sample):
                self._size = 1
                return self._expect(readings)
            if not answers:  # wrong labels are refused before the rest is run
                check_labels(self._data, _find_classes([answer], readings)[1], self._label_offset)
            answers.append(answer)
            held += answer.nbytes
            if held > MEMORY:
                break
        return _Expected(readings, answers)

    def _ask(self, model: ModelProto, readings: Sequence[Reading], folder: Path) -> Iterator[Answer]:
        session = open_session(model, readings, folder, self._threads)
        tensors = [reading.tensor for reading in readings]
        return ask(session, self._data, self._size, fill=self._is_fixed, tensors=tensors, progress=self._progress)

    def _compare(self, answers: Iterable[Answer], readings: Sequence[Reading]) -> Scores:
        expected = self._expected
        deviations = np.zeros(len(expected.variances))
        sums = np.zeros(len(_Sums._fields))
        samples = 0
        for wanted, found in zip(expected.answers, answers, strict=False):  # the original may have stopped early
            deviations += wanted.samples * comparing.deviations(wanted.values, found.values, expected.variances)
            if expected.classes:
                sums += self._count(wanted, found, readings[expected.place])
            samples += wanted.samples
        distance = float(np.sqrt(np.nanmean(deviations) / samples))
        if not expected.classes:
            return Scores(samples, distance=distance)
        others = deviations[expected.others]
        apart = float(np.nanmean(others) / samples) if len(others) else None
        return self._scores(samples, distance, apart, _Sums(*sums.tolist()))

    def _count(self, wanted: Answer, found: Answer, reading: Reading) -> _Sums:
        """Compare the class scores of one batch."""
        expected = self._expected
        original = expected.readings[expected.place]
        rows = class_scores(wanted.values[expected.place], wanted.samples, original)
        others = class_scores(found.values[expected.place], wanted.samples, reading)
        if rows.shape != others.shape:
            raise InputError(f"the model has {others.shape[1]} classes, the reference {rows.shape[1]}")
        top1 = top5 = 0
        if found.labels is not None:
            top1, top5 = comparing.right(others, found.labels + self._label_offset)
        agreed = int((comparing.best(rows) == comparing.best(others)).sum())
        # Where only one of them is known to end in a softmax, the numbers must tell.
        alike = reading.function == original.function
        probable = expected.are_probabilities if alike else comparing.are_probabilities(others)
        divergences = comparing.divergences(
            comparing.logits(rows, expected.are_probabilities), comparing.logits(others, probable)
        )
        known = divergences[~np.isnan(divergences)]
        return _Sums(top1, top5, agreed, float(known.sum()), len(known))

    def _scores(self, samples: int, distance: float, others: float | None, sums: _Sums) -> Scores:
        expected = self._expected
        has_labels = self._data.y is not None
        kl = None
        if sums.divergences and expected.readings[expected.place].function != "Sigmoid":
            kl = max(0.0, sums.kl / sums.divergences) if np.isfinite(distance) else np.inf
        return Scores(
            samples,
            sums.top1 / samples if has_labels else None,
            sums.top5 / samples if has_labels and expected.classes > 5 else None,
            sums.agreed / samples,
            kl,
            distance,
            others,
        )


class _Expected:
    """The original's answers, and what must be known of all of them before others are compared.

    Args:
        readings: where its outputs were read.
        answers: to all samples that are judged, batch by batch.

    Attributes:
        variances: of the numbers of each output (NaN: nothing to compare).
        place: position of the first float output.
        classes: how many classes the scores there are of (0: they are of none).
        are_probabilities: whether they are probabilities: no softmax was found to read before.
        others: which other outputs are floats that can be compared.

    Raises:
        InputError: there is nothing to compare.
    """

    def __init__(self, readings: tuple[Reading, ...], answers: list[Answer]) -> None:
        self.readings, self.answers = readings, answers
        self.variances = [
            comparing.variance(values) for values in zip(*(answer.values for answer in answers), strict=True)
        ]
        if all(np.isnan(variance).all() for variance in self.variances):
            raise InputError("the original answers with no finite numbers, so nothing can be compared with it")
        self.place, self.classes = _find_classes(answers, readings)
        reading = readings[self.place]
        self.are_probabilities = (
            self.classes > 0
            and not reading.is_inside
            and all(
                comparing.are_probabilities(class_scores(a.values[self.place], a.samples, reading)) for a in answers
            )
        )
        self.others = [
            place
            for place, (value, variance) in enumerate(zip(answers[0].values, self.variances, strict=True))
            if readings[place].tensor != reading.tensor and is_float(value) and not np.isnan(variance).all()
        ]


class _Sums(NamedTuple):
    """What class scores are judged by, summed over samples.

    Attributes:
        top1: labels that are the best class.
        top5: labels among the five best.
        agreed: best classes that are the original's.
        kl: divergences from the original's probabilities.
        divergences: how many of these are known: the original may have answered with NaN.
    """

    top1: float
    top5: float
    agreed: float
    kl: float
    divergences: float


def evaluate_model(
    session: runtime.Session,
    data: Data,
    *,
    batch: int | None = None,
    label_offset: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Run all samples and judge the answers by their labels alone.

    Args:
        session: the model.
        data: samples in its layout.
        batch: batch size the model is fixed to; None where it is free.
        label_offset: the output index of a class is its label plus this.
        progress: told how many samples are done, of how many.

    Raises:
        InputError: no labels, labels that are not among the classes, or a first float output that is no class scores.
    """
    if data.y is None:
        raise InputError("the data has no labels; give a --reference model to compare with")
    hits1 = hits5 = samples = classes = 0
    for answer in ask(session, data, batch or batch_size(data), fill=batch is not None, progress=progress):
        rows = class_scores(next(filter(is_float, answer.values), answer.values[0]), answer.samples)
        if not samples:
            classes = rows.shape[1]
            check_labels(data, classes, label_offset)
        assert answer.labels is not None
        top1, top5 = comparing.right(rows, answer.labels + label_offset)
        hits1, hits5, samples = hits1 + top1, hits5 + top5, samples + answer.samples
    return Scores(samples, hits1 / samples, hits5 / samples if classes > 5 else None)


def class_scores(output: object, samples: int, reading: Reading | None = None) -> Array:
    """Take an output as class scores.

    Args:
        output: what a model answers.
        samples: how many it was asked.
        reading: where the output was read, if that is known.

    Returns:
        (samples, classes), two classes or more.

    Raises:
        InputError: it is something else.
    """
    rows = _as_rows(output, samples, reading)
    if rows is None:
        shape = getattr(output, "shape", type(output).__name__)
        raise InputError(f"the model's first output is no list of class scores (it is {shape})")
    return rows


def _as_rows(output: object, samples: int, reading: Reading | None = None) -> Array | None:
    if not is_float(output) or output.ndim < 2 or len(output) != samples:
        return None
    # What goes into a softmax may have its classes last: (N, 1, 1, classes).
    classes = max(output.shape[1:]) if reading is not None and reading.function == "Softmax" else output.shape[1]
    return output.reshape(samples, classes) if classes > 1 and output.size == samples * classes else None


def _find_classes(answers: Sequence[Answer], readings: Sequence[Reading]) -> tuple[int, int]:
    """Find the first float output, and how many classes it scores (0: it holds something else)."""
    place = next((i for i, value in enumerate(answers[0].values) if is_float(value)), 0)
    rows = [_as_rows(answer.values[place], answer.samples, readings[place]) for answer in answers]
    counts = {0 if found is None else found.shape[1] for found in rows}
    return place, counts.pop() if len(counts) == 1 else 0
