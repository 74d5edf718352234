"""Losses, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from onnxprune.errors import InputError
from onnxprune.training.losses import Loss, variance

SCORES = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
TAUGHT = torch.tensor([[1.0, 1.0, -2.0], [0.0, 3.0, 0.5]])
LABELS = torch.tensor([0, 1])


def cross_entropy() -> float:
    return float(-log_softmax(SCORES.numpy(), axis=1)[[0, 1], [0, 1]].mean())


def divergence(temperature: float) -> float:
    ours = log_softmax(SCORES.numpy() / temperature, axis=1)
    theirs = log_softmax(TAUGHT.numpy() / temperature, axis=1)
    return temperature**2 * float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean())


def test_labels_alone_give_cross_entropy() -> None:
    assert Loss(0).of([SCORES], LABELS, None).item() == pytest.approx(cross_entropy(), rel=1e-5)


def test_smoothing_gives_all_classes_a_share_of_the_labels() -> None:
    uniform = float(-log_softmax(SCORES.numpy(), axis=1).mean())
    expected = 0.9 * cross_entropy() + 0.1 * uniform
    assert Loss(0, smoothing=0.1).of([SCORES], LABELS, None).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_a_teacher_alone_gives_the_divergence_from_its_answers(temperature: float) -> None:
    loss = Loss(0, [1.0], temperature=temperature).of([SCORES], None, [TAUGHT])
    assert loss.item() == pytest.approx(divergence(temperature), rel=1e-5)


def test_labels_and_teacher_share_the_loss() -> None:
    loss = Loss(0, [1.0], temperature=2.0, teacher_share=0.3).of([SCORES], LABELS, [TAUGHT])
    assert loss.item() == pytest.approx(0.7 * cross_entropy() + 0.3 * divergence(2.0), rel=1e-5)


def test_an_offset_moves_the_labels() -> None:
    wide = torch.cat([torch.full((2, 1), -50.0), SCORES], 1)
    assert Loss(0, label_offset=1).of([wide], LABELS, None).item() == pytest.approx(cross_entropy(), rel=1e-5)


def test_scores_of_one_pixel_are_scores() -> None:
    assert Loss(0).of([SCORES[:, :, None, None]], LABELS, None).item() == pytest.approx(cross_entropy(), rel=1e-5)


def test_outputs_that_do_not_classify_are_compared_in_units_of_their_variance() -> None:
    wanted = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)) * 7 + 3
    mean = torch.full_like(wanted, float(wanted.mean()))
    units = [variance(wanted.numpy())] * 2
    assert Loss(None, units).of([mean, wanted], None, [wanted, wanted]).item() == pytest.approx(0.5, rel=1e-5)
    alone = [Loss(None, units[:1]).of([one], None, [other]) for one, other in zip(mean, wanted, strict=True)]
    assert sum(alone).item() / 4 == pytest.approx(1.0, rel=1e-5)  # a batch of one counts as it does among others
    still = [variance(np.zeros(3))]
    assert math.isfinite(Loss(None, still).of([torch.ones(3)], None, [torch.zeros(3)]).item())


def test_what_all_scores_share_counts_unless_they_are_known_to_be_of_classes() -> None:
    for is_sure, expected in ((True, 0.0), (False, 9 / float(TAUGHT.numpy().var()))):
        loss = Loss(0, [variance(TAUGHT.numpy())], is_sure).of([TAUGHT + 3], None, [TAUGHT])
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_labels_without_classes_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match="give --teacher"):
        Loss(None).of([SCORES], LABELS, None)


def test_hints_look_at_places_not_at_channels() -> None:
    narrow = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    wide = narrow.expand(2, 5, 4, 4) * 3  # the same map, stronger and of more channels
    loss = Loss(0, [1.0], hints=10.0)
    alone = loss.of([SCORES], LABELS, [TAUGHT]).item()
    assert loss.of([SCORES], LABELS, [TAUGHT], [(narrow, wide)]).item() == pytest.approx(alone, abs=1e-5)
    assert loss.of([SCORES], LABELS, [TAUGHT], [(narrow, wide.flip(2))]).item() > alone + 0.01
