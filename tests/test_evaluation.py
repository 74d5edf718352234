"""Accuracy and agreement, recomputed with plain numpy on a network that answers with its own input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cli_nets import Array
from onnx import TensorProto, helper

from onnxprune.data import Data
from onnxprune.errors import InputError
from onnxprune.evaluation import BATCH, Scores, class_scores, evaluate_model
from onnxprune.runtime import Session


def echo(*shape: int | str, op: str = "Identity", kind: int = TensorProto.FLOAT) -> Session:
    """A model whose class scores are what it is fed (or their negative, with op Neg)."""
    inputs, outputs = (helper.make_tensor_value_info(name, kind, shape) for name in ("scores_in", "scores"))
    graph = helper.make_graph(
        [helper.make_node(op, ["scores_in"], ["scores"], name="echo")], "net", [inputs], [outputs]
    )
    return Session(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


def data(x: Array, y: Array | None = None, kind: Any = np.float32) -> Data:
    return Data("scores_in", x, y, None, 1, np.dtype(kind))


def drawn(samples: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, classes)).astype(np.float32), rng.integers(0, classes, samples)


def ranks(x: Array, y: Array) -> Array:
    """How many classes score higher than the label."""
    return (x > x[np.arange(len(x)), y][:, None]).sum(axis=1)


@pytest.mark.parametrize("samples", [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 7])
@pytest.mark.parametrize("classes", [2, 6, 30])
def test_top1_and_top5_are_the_shares_of_labels_ranked_first_and_within_five(samples: int, classes: int) -> None:
    x, y = drawn(samples, classes)
    found = evaluate_model(echo("N", classes), data(x, y))
    assert found.samples == samples
    assert found.top1 == (ranks(x, y) == 0).mean()
    assert found.top5 == ((ranks(x, y) < 5).mean() if classes > 5 else None)
    assert found.agreement is None


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_a_model_of_a_fixed_batch_is_judged_on_every_sample_once(batch: int) -> None:
    x, y = drawn(30, 8)
    found = evaluate_model(echo(batch, 8), data(x, y), batch=batch, reference=echo(batch, 8, op="Neg"))
    assert found == Scores(30, (ranks(x, y) == 0).mean(), (ranks(x, y) < 5).mean(), 0.0)


def test_agreement_is_the_share_of_equal_best_classes() -> None:
    x, _ = drawn(120, 4)
    for op in ("Identity", "Neg", "Abs"):
        best = {"Identity": x, "Neg": -x, "Abs": np.abs(x)}[op].argmax(axis=1)
        found = evaluate_model(echo("N", 4), data(x), reference=echo("N", 4, op=op))
        assert found == Scores(120, None, None, (best == x.argmax(axis=1)).mean())


def test_labels_and_a_reference_are_judged_together() -> None:
    x, y = drawn(40, 7)
    found = evaluate_model(echo("N", 7), data(x, y), reference=echo("N", 7))
    assert found == Scores(40, (ranks(x, y) == 0).mean(), (ranks(x, y) < 5).mean(), 1.0)


def test_the_label_offset_moves_every_label() -> None:
    x, y = drawn(60, 9)
    y = np.minimum(y, 7)
    expected = evaluate_model(echo("N", 9), data(x, y + 1))
    assert evaluate_model(echo("N", 9), data(x, y), label_offset=1) == expected
    assert evaluate_model(echo("N", 9), data(x, y + 1), label_offset=0) == expected
    assert evaluate_model(echo("N", 9), data(x, y + 1), label_offset=-1) == evaluate_model(echo("N", 9), data(x, y))
    assert expected != evaluate_model(echo("N", 9), data(x, y))


@pytest.mark.parametrize(("low", "high", "offset"), [(0, 6, 0), (0, 5, 1), (-1, 5, 0), (0, 5, -1), (0, 5, 10**30)])
def test_labels_outside_the_outputs_are_refused_before_the_second_batch(low: int, high: int, offset: int) -> None:
    x, _ = drawn(4 * BATCH, 6)
    y = np.full(4 * BATCH, 3)
    y[-2:] = low, high
    told: list[int] = []
    with pytest.raises(InputError, match="the model has outputs 0 to 5"):
        evaluate_model(echo("N", 6), data(x, y), label_offset=offset, progress=lambda done, _: told.append(done))
    assert told == []


def test_of_equal_scores_the_first_class_counts_as_best() -> None:
    x = np.zeros((3, 8), np.float32)
    found = evaluate_model(echo("N", 8), data(x, np.array([0, 4, 5])))
    assert found.top1 == pytest.approx(1 / 3)
    assert found.top5 == pytest.approx(2 / 3)


def test_progress_counts_samples_up_to_all() -> None:
    x, y = drawn(2 * BATCH + 5, 3)
    told: list[tuple[int, int]] = []
    evaluate_model(echo("N", 3), data(x, y), progress=lambda done, total: told.append((done, total)))
    assert told == [(BATCH, len(x)), (2 * BATCH, len(x)), (len(x), len(x))]


def test_scores_of_half_precision_and_with_trailing_axes_of_one_count() -> None:
    x, y = drawn(20, 6)
    half = x.astype(np.float16)
    found = evaluate_model(echo("N", 6, kind=TensorProto.FLOAT16), data(half, y, np.float16))
    assert found.top1 == (ranks(half, y) == 0).mean()
    found = evaluate_model(echo("N", 6, 1, 1), data(x[:, :, None, None], y))
    assert found.top1 == (ranks(x, y) == 0).mean()


def test_samples_with_neither_labels_nor_a_reference_cannot_be_judged() -> None:
    with pytest.raises(InputError, match="give a --reference"):
        evaluate_model(echo("N", 6), data(drawn(3, 6)[0]))


@pytest.mark.parametrize(
    "output",
    [np.zeros(5, np.float32), np.zeros((5, 3), np.int64), np.zeros((5, 3, 2, 2), np.float32), [np.zeros(3)], {}],
)
def test_an_output_that_is_no_list_of_scores_is_refused(output: object) -> None:
    with pytest.raises(InputError, match="no list of class scores"):
        class_scores(output)
