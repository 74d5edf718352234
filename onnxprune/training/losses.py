"""What training makes small: the error of the labels, and the distance from a teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

from onnxprune.answers import Reading, find_readings
from onnxprune.errors import InputError
from onnxprune.model import Model
from onnxprune.training.sharing import FLOATS
from onnxprune.weights import Array

STEADY = 1e-6  # of an answer's mean square, which its variance is taken for at least


def float_readings(model: Model) -> list[Reading]:
    """Say where the outputs are read that are floats.

    Raises:
        InputError: none is.
    """
    found = [r for r in find_readings(model.proto.graph) if model.types.get(r.tensor, TensorProto.FLOAT) in FLOATS]
    if not found:
        raise InputError(
            "the model gives whole numbers only, which tell training no direction; give it with the scores as an "
            "output, before an ArgMax for example"
        )
    return found


def classifier(model: Model, readings: Sequence[Reading]) -> int | None:
    """Find the first of some answers that scores classes of which one is right."""
    for place, reading in enumerate(readings):
        shape = model.shapes.get(reading.tensor, ())
        if len(shape) in (2, 4) and shape[1] > 1 and set(shape[2:]) <= {1} and reading.function != "Sigmoid":
            return place
    return None


@dataclass(frozen=True)
class Loss:
    """A loss of a model's answers, see `answers.find_readings`.

    Attributes:
        classifier: which answer scores classes, (N, classes) or (N, classes, 1, 1); None where none does.
        variances: of the teacher's answers, the units that distances from them are in; empty without a teacher.
        is_sure: whether the classifier's answers are known to be classes, by a softmax or by labels. Those of other
            models may be anything, so that what all of them share, which no class depends on, counts as well.
        label_offset: the index of a class is its label plus this.
        smoothing: share of the label's probability that all classes get.
        temperature: what scores are divided by before they are compared with the teacher's (Hinton et al., 2015).
        teacher_share: of the loss, where there are labels and a teacher.
        hints: weight of the spatial maps of inner tensors, compared with the teacher's (Zagoruyko and Komodakis, 2017).
    """

    classifier: int | None
    variances: Sequence[float] = ()
    is_sure: bool = True
    label_offset: int = 0
    smoothing: float = 0.0
    temperature: float = 2.0
    teacher_share: float = 0.5
    hints: float = 0.0

    def of(
        self,
        found: Sequence[Tensor],
        labels: Tensor | None,
        wanted: Sequence[Tensor] | None,
        maps: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Tensor:
        """Give the loss of a batch.

        Args:
            found: the model's answers.
            labels: int64 classes, where they are to be learnt.
            wanted: the teacher's answers, where there is a teacher.
            maps: pairs of inner tensors, the model's and the teacher's.
        """
        share = 1.0 if labels is None else self.teacher_share if wanted is not None else 0.0
        loss = torch.zeros((), device=found[0].device)
        if labels is not None:
            loss = loss + (1 - share) * F.cross_entropy(
                self.scores(found), labels + self.label_offset, label_smoothing=self.smoothing
            )
        if wanted is not None:
            loss = loss + share * self._from_teacher(found, wanted)
        for ours, theirs in maps:
            loss = loss + self.hints * (_map(ours) - _map(theirs)).square().sum(dim=1).mean()
        return loss

    def scores(self, answers: Sequence[Tensor]) -> Tensor:
        """Give the scores of the classes, (N, classes).

        Raises:
            InputError: the model does not classify.
        """
        if self.classifier is None:
            raise InputError("labels need a model whose first output scores classes; leave them out and give --teacher")
        return answers[self.classifier].float().flatten(1)

    def _from_teacher(self, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Compare the classes by their divergence, all other answers and what may be no classes by their distance."""
        loss = torch.zeros((), device=found[0].device)
        if self.classifier is not None:
            ours, theirs = (F.log_softmax(self.scores(a) / self.temperature, dim=1) for a in (found, wanted))
            loss = self.temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        answers = enumerate(zip(found, wanted, self.variances, strict=True))
        apart = [answer for place, answer in answers if place != self.classifier or not self.is_sure]
        distances = [(ours.float() - theirs.float()).square().mean() / unit for ours, theirs, unit in apart]
        return loss + torch.stack(distances).mean() if distances else loss


def variance(answers: Array) -> float:
    """Give the variance of a teacher's numbers; where they hardly vary, a small part of their square."""
    numbers = answers.astype(np.float64)
    return float(max(numbers.var(), STEADY * np.square(numbers).mean() + 1e-12))


def _map(x: Tensor) -> Tensor:
    """Say where (N, channels, ...) is strong, however many channels there are: (N, places), each row of length 1."""
    return F.normalize(x.float().square().mean(dim=1).flatten(1), dim=1)
