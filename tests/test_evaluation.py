"""Scores, recomputed with plain numpy and scipy from what tiny networks must answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_nets import CLASSES, IMAGE, Array, Draft, convs, run, write
from onnx import ModelProto, NodeProto, numpy_helper
from scipy.special import log_softmax, rel_entr, softmax

from onnxprune import comparing, evaluation, runtime
from onnxprune.answers import MOST_SAMPLES, batch_size, find_readings
from onnxprune.errors import InputError
from onnxprune.evaluation import Judge, Scores, class_scores, evaluate_model
from onnxprune.model import write_beside

FEATURES = 6


class Samples:
    """Numbers for one input `x`, as `Data` gives them; counts how often they are gone through."""

    def __init__(self, x: Array, y: Array | None = None) -> None:
        self.x, self.y, self.passes = x, y, 0

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int) -> Iterator[tuple[dict[str, Array], Array | None]]:
        self.passes += 1
        for start in range(0, len(self.x), size):
            part = slice(start, start + size)
            yield {"x": self.x[part]}, None if self.y is None else self.y[part]


def net(body: str, outputs: str = "float[N,C] y", inputs: str = f"float[N,{FEATURES}] x", **stored: Any) -> ModelProto:
    """A network in the text form of onnx, with stored numbers by name."""
    text = f'<ir_version: 8, opset_import: ["": 17]> tiny ({inputs}) => ({outputs}) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in stored.items())
    return made


def classifier(
    weight: Array, end: str = "y = Identity (z)", outputs: str = "float[N,C] y", **stored: Any
) -> ModelProto:
    return net(f"z = MatMul (x, w) {end}", outputs, w=weight, **stored)


def drawn(samples: int, classes: int = FEATURES, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((samples, classes)).astype(np.float32), rng.integers(0, classes, samples)


def weights(classes: int, seed: int = 1, noise: float = 0.3) -> tuple[Array, Array]:
    """Those of a classifier, and of one that is a bit off."""
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((FEATURES, classes)).astype(np.float32)
    return exact, exact + (noise * rng.standard_normal(exact.shape)).astype(np.float32)


def divergence(wanted: Array, found: Array) -> float:
    """Mean divergence between the distributions of logits."""
    p, q = (log_softmax(logits.astype(np.float64), axis=1) for logits in (wanted, found))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def off(wanted: Array, found: Array) -> float:
    """Squared distance of one output."""
    return float(((wanted.astype(np.float64) - found) ** 2).mean() / wanted.astype(np.float64).var())


def off_each(wanted: Array, found: Array) -> float:
    """The same of an output whose second axis tells numbers of different kinds apart."""
    return float(np.mean([off(wanted[:, kind], found[:, kind]) for kind in range(wanted.shape[1])]))


def judged(original: ModelProto, candidate: ModelProto, x: Array, y: Array | None = None, **options: Any) -> Scores:
    return Judge(original, Path(), Samples(x, y), **options).judge(candidate)


def echo(*shape: int | str, kind: str = "float", op: str = "Identity") -> ModelProto:
    """A model whose class scores are what it is fed (or their negative, with op Neg)."""
    sizes = ",".join(map(str, shape))
    return net(f"y = {op} (x)", f"{kind}[{sizes}] y", f"{kind}[{sizes}] x")


def labelled(model: ModelProto, x: Array, y: Array | None, **options: Any) -> Scores:
    return evaluate_model(runtime.Session(model), Samples(x, y), **options)


def ranks(x: Array, y: Array) -> Array:
    """How many classes score higher than the label."""
    return (x > x[np.arange(len(x)), y][:, None]).sum(axis=1)


# ---- labels


@pytest.mark.parametrize("samples", [1, MOST_SAMPLES - 1, MOST_SAMPLES, MOST_SAMPLES + 1, 3 * MOST_SAMPLES + 7])
@pytest.mark.parametrize("classes", [2, 6, 30])
def test_top1_and_top5_are_the_shares_of_labels_ranked_first_and_within_five(samples: int, classes: int) -> None:
    x, y = drawn(samples, classes)
    found = labelled(echo("N", classes), x, y)
    top5 = (ranks(x, y) < 5).mean() if classes > 5 else None
    assert found == Scores(samples, (ranks(x, y) == 0).mean(), top5)
    compared = judged(echo("N", classes), echo("N", classes), x, y)
    assert (compared.samples, compared.top1, compared.top5) == (samples, found.top1, found.top5)


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_a_model_of_a_fixed_batch_is_judged_on_every_sample_once(batch: int) -> None:
    x, y = drawn(30, 8)
    top1, top5 = (ranks(x, y) == 0).mean(), (ranks(x, y) < 5).mean()
    assert labelled(echo(batch, 8), x, y, batch=batch) == Scores(30, top1, top5)
    found = judged(echo(batch, 8), echo(batch, 8, op="Neg"), x, y, batch=batch)
    assert (found.samples, found.top1, found.agreement) == (30, (ranks(-x, y) == 0).mean(), 0)
    assert found.kl == pytest.approx(divergence(x, -x))
    assert found.distance == pytest.approx(np.sqrt(off(x, -x)))


def test_the_label_offset_moves_every_label() -> None:
    x, y = drawn(60, 9)
    y = np.minimum(y, 7)
    model = echo("N", 9)
    expected = labelled(model, x, y + 1)
    assert labelled(model, x, y, label_offset=1) == expected
    assert labelled(model, x, y + 1, label_offset=-1) == labelled(model, x, y) != expected
    assert judged(model, model, x, y, label_offset=1).top1 == expected.top1


@pytest.mark.parametrize(("low", "high", "offset"), [(0, 6, 0), (0, 5, 1), (-1, 5, 0), (0, 5, -1), (0, 5, 10**30)])
def test_labels_outside_the_outputs_are_refused_after_the_first_batch(low: int, high: int, offset: int) -> None:
    x, _ = drawn(4 * MOST_SAMPLES, 6)
    y = np.full(len(x), 3)
    y[-2:] = low, high
    told: list[int] = []
    options: dict[str, Any] = {"label_offset": offset, "progress": lambda done, _: told.append(done)}
    with pytest.raises(InputError, match="the model has outputs 0 to 5"):
        labelled(echo("N", 6), x, y, **options)
    with pytest.raises(InputError, match="the model has outputs 0 to 5"):
        Judge(echo("N", 6), Path(), Samples(x, y), **options)
    assert told == [MOST_SAMPLES, MOST_SAMPLES]


def test_of_equal_scores_the_first_class_counts_as_best() -> None:
    found = labelled(echo("N", 80), np.zeros((3, 80), np.float32), np.array([0, 4, 5]))
    assert found.top1 == pytest.approx(1 / 3)
    assert found.top5 == pytest.approx(2 / 3)


def test_scores_that_are_nan_are_never_right() -> None:
    x, y = drawn(40, 8)
    x[:10, 2] = np.nan
    right = (ranks(x[10:], y[10:]) == 0).sum(), (ranks(x[10:], y[10:]) < 5).sum()
    assert labelled(echo("N", 8), x, y) == Scores(40, right[0] / 40, right[1] / 40)


def test_progress_counts_samples_up_to_all() -> None:
    x, y = drawn(2 * MOST_SAMPLES + 5, 3)
    steps = [(MOST_SAMPLES, len(x)), (2 * MOST_SAMPLES, len(x)), (len(x), len(x))]
    told: list[tuple[int, int]] = []
    labelled(echo("N", 3), x, y, progress=lambda done, total: told.append((done, total)))
    assert told == steps
    judged(echo("N", 3), echo("N", 3), x, progress=lambda done, total: told.append((done, total)))
    assert told == 3 * steps


def test_scores_of_half_precision_and_with_trailing_axes_of_one_count() -> None:
    x, y = drawn(20, 6)
    half = x.astype(np.float16)
    assert labelled(echo("N", 6, kind="float16"), half, y).top1 == (ranks(half, y) == 0).mean()
    wide = x[:, :, None, None]
    assert labelled(echo("N", 6, 1, 1), wide, y).top1 == (ranks(x, y) == 0).mean()
    found = judged(echo("N", 6, 1, 1), echo("N", 6, 1, 1, op="Neg"), wide)
    assert found.kl == pytest.approx(divergence(x, -x))


def test_the_first_float_output_holds_the_class_scores() -> None:
    x, y = drawn(50)
    body = "i = ArgMax <axis=1> (x) y = Identity (x)"
    model = net(body, f"int64[N,1] i, float[N,{FEATURES}] y")
    assert labelled(model, x, y).top1 == (ranks(x, y) == 0).mean()
    assert judged(model, model, x, y) == Scores(50, (ranks(x, y) == 0).mean(), (ranks(x, y) < 5).mean(), 1, 0, 0)


def test_samples_with_neither_labels_nor_a_reference_cannot_be_judged() -> None:
    with pytest.raises(InputError, match="give a --reference"):
        labelled(echo("N", 6), drawn(3, 6)[0], None)


@pytest.mark.parametrize(
    "output",
    [
        np.zeros(5, np.float32),
        np.zeros((5, 3), np.int64),
        np.zeros((5, 3, 2, 2), np.float32),
        np.zeros((4, 3), np.float32),
        np.zeros((5, 1), np.float32),
        [np.zeros(3)],
        {},
    ],
)
def test_an_output_that_is_no_list_of_scores_is_refused(output: object) -> None:
    with pytest.raises(InputError, match="no list of class scores"):
        class_scores(output, 5)


# ---- classes of a reference


def test_agreement_divergence_and_distance_are_what_scipy_says() -> None:
    x, _ = drawn(230)
    exact, noisy = weights(7)
    wanted, found = x @ exact, x @ noisy
    scores = judged(classifier(exact), classifier(noisy), x)
    assert (scores.samples, scores.top1, scores.top5) == (230, None, None)
    assert scores.agreement == (wanted.argmax(axis=1) == found.argmax(axis=1)).mean() < 1
    assert scores.kl == pytest.approx(divergence(wanted, found), rel=1e-4)
    assert scores.distance == pytest.approx(np.sqrt(off(wanted, found)), rel=1e-4)
    assert scores.error == scores.kl


def test_the_original_agrees_with_itself() -> None:
    x, y = drawn(50)
    judge = Judge(echo("N", FEATURES), Path(), Samples(x, y))
    assert judge.original_scores == Scores(50, (ranks(x, y) == 0).mean(), (ranks(x, y) < 5).mean(), 1, 0, 0)
    assert judge.judge(echo("N", FEATURES)) == judge.original_scores


ENDS = {
    "softmax": ("y = Softmax <axis=1> (z)", "float[N,C] y"),
    "log-softmax": ("y = LogSoftmax (z)", "float[N,C] y"),
    "softmax, reshaped": ("s = Softmax (z) y = Reshape (s, shape)", "float[N,C] y"),
    "softmax, flattened": ("s = Softmax (z) y = Flatten (s)", "float[N,C] y"),
    "softmax, passed on": ("s = Softmax (z) y = Identity (s)", "float[N,C] y"),
    "softmax, in double": ("s = Softmax (z) y = Cast <to=11> (s)", "double[N,C] y"),
    "softmax of a map": ("m = Unsqueeze (z, ends) s = Softmax <axis=1> (m) y = Squeeze (s, ends)", "float[N,C] y"),
    "softmax of a map, channels last": ("m = Unsqueeze (z, sides) y = Softmax (m)", "float[N,A,B,C] y"),
}
SIZES = {"shape": np.array([0, -1]), "ends": np.array([2, 3]), "sides": np.array([1, 2])}


@pytest.mark.parametrize("end", ENDS)
def test_a_last_softmax_is_looked_behind(end: str) -> None:
    """The logits are so large that nothing of most of them is left in float32 probabilities."""
    x, y = drawn(120)
    exact, noisy = (400 * w for w in weights(7))
    assert (softmax(x @ exact, axis=1) == 0).any()
    plain = judged(classifier(exact), classifier(noisy), x, y)
    found = judged(classifier(exact, *ENDS[end], **SIZES), classifier(noisy, *ENDS[end], **SIZES), x, y)
    assert found == plain
    assert plain.kl == pytest.approx(divergence(x @ exact, x @ noisy), rel=1e-4)


def test_other_names_inside_do_not_matter() -> None:
    x, _ = drawn(40)
    exact, noisy = weights(7)
    renamed = net("inner = MatMul (x, v) prob = Softmax (inner)", "float[N,C] prob", v=noisy)
    end = ENDS["softmax"]
    assert judged(classifier(exact, *end), renamed, x) == judged(classifier(exact, *end), classifier(noisy, *end), x)


BY_HAND = "e = Exp (z) t = ReduceSum <keepdims=1> (e, one) y = Div (e, t)"
"""A softmax that nothing says is one."""


@pytest.mark.parametrize(("first", "second"), [("softmax", "hand"), ("hand", "softmax"), ("hand", "hand")])
def test_probabilities_serve_where_their_logits_are_not_found(first: str, second: str) -> None:
    x, _ = drawn(60)
    ends = {"softmax": "y = Softmax (z)", "hand": BY_HAND}
    exact, noisy = weights(7)
    found = judged(*(classifier(w, ends[end], one=[1]) for w, end in ((exact, first), (noisy, second))), x)
    assert found.kl == pytest.approx(divergence(x @ exact, x @ noisy), rel=1e-4)
    expected = off(softmax(x @ exact, axis=1), softmax(x @ noisy, axis=1))
    assert found.distance == pytest.approx(np.sqrt(expected), rel=1e-4)


@pytest.mark.parametrize("flipped", [False, True])
def test_logits_compare_with_probabilities(flipped: bool) -> None:
    x, _ = drawn(60)
    exact, noisy = weights(7)
    ends = ("y = Softmax (z)", "y = Identity (z)")
    first, second = reversed(ends) if flipped else ends
    found = judged(classifier(exact, first), classifier(noisy, second), x)
    assert found.kl == pytest.approx(divergence(x @ exact, x @ noisy), rel=1e-4)


def test_a_candidate_that_ends_otherwise_leaves_the_next_one_alone() -> None:
    x, _ = drawn(60)
    exact, noisy = weights(7)
    judge = Judge(classifier(exact, "y = Softmax (z)"), Path(), Samples(x))
    first = judge.judge(classifier(noisy, "y = Softmax (z)"))
    judge.judge(classifier(noisy, BY_HAND, one=[1]))
    assert judge.judge(classifier(noisy, "y = Softmax (z)")) == first


def test_probabilities_of_zero_count_as_very_small_ones() -> None:
    x = np.array([[0.5, 0.5]], np.float32)
    found = judged(echo("N", 2), net("y = Mul (x, keep)", "float[N,C] y", "float[N,2] x", keep=np.float32([2, 0])), x)
    assert found.kl == pytest.approx(0.5 * np.log(0.5 / 1) + 0.5 * np.log(0.5 / comparing.SMALLEST), rel=1e-4)


def test_a_softmax_of_the_input_itself_is_looked_behind() -> None:
    x, _ = drawn(20)
    found = judged(net("y = Softmax (x)"), net("n = Neg (x) y = Softmax (n)"), x)
    assert found.kl == pytest.approx(divergence(x, -x), rel=1e-4)
    assert found.distance == pytest.approx(np.sqrt(off(x, -x)), rel=1e-4)


def test_a_last_sigmoid_is_looked_behind_and_knows_no_divergence() -> None:
    x, y = drawn(80)
    exact, noisy = (20 * w for w in weights(7))
    found = judged(classifier(exact, "y = Sigmoid (z)"), classifier(noisy, "y = Sigmoid (z)"), x, y)
    assert found.distance == pytest.approx(np.sqrt(off(x @ exact, x @ noisy)), rel=1e-4)
    assert found.kl is None
    assert found.error == found.distance
    assert found.agreement == ((x @ exact).argmax(axis=1) == (x @ noisy).argmax(axis=1)).mean()
    assert found.top1 == (ranks(x @ noisy, y) == 0).mean()


def test_integers_made_of_a_sigmoid_are_compared_themselves() -> None:
    x, _ = drawn(80)
    exact, noisy = (1e5 * w for w in weights(7))
    end = "s = Sigmoid (z) y = Cast <to=7> (s)", "int64[N,C] y"
    found = judged(classifier(exact, *end), classifier(noisy, *end), x)
    share = (((x @ exact) > 0) != ((x @ noisy) > 0)).mean()
    assert found == Scores(80, distance=pytest.approx(np.sqrt(share)))


def test_several_softmaxes_in_one_output_are_no_classes() -> None:
    x, _ = drawn(50)
    exact, noisy = weights(8)
    end = "m = Reshape (z, parts) s = Softmax (m) y = Flatten (s)"
    found = judged(*(classifier(w, end, parts=np.array([0, 2, 4])) for w in (exact, noisy)), x)
    assert found == Scores(50, distance=found.distance)
    wanted, got = ((x @ w).reshape(-1, 2, 4) for w in (exact, noisy))
    assert found.distance == pytest.approx(np.sqrt(off_each(wanted, got)), rel=1e-4)


def test_two_outputs_may_be_made_of_the_same_logits() -> None:
    x, _ = drawn(50)
    exact, noisy = weights(8)
    end = "y = Softmax (z) l = LogSoftmax (z)", "float[N,C] y, float[N,C] l"
    assert judged(classifier(exact, *end), classifier(noisy, *end), x) == judged(
        classifier(exact), classifier(noisy), x
    )


def test_models_of_other_classes_cannot_be_compared() -> None:
    x, _ = drawn(5)
    with pytest.raises(InputError, match="the model has 7 classes, the reference 8"):
        judged(classifier(weights(8)[0]), classifier(weights(7)[0]), x)


def test_a_cycle_does_not_hold_up_the_way_to_a_softmax() -> None:
    model = classifier(weights(8)[0])
    del model.graph.node[:]
    model.graph.node.extend(NodeProto(op_type="Identity", input=[a], output=[b]) for a, b in [("y", "z"), ("z", "y")])
    assert not find_readings(model.graph)[0].is_inside


# ---- whatever else is answered


def test_distance_is_the_root_of_the_mean_over_all_outputs() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 3, 4, 5)).astype(np.float32)
    exact, noisy = (rng.standard_normal((2, 3, 1, 1)).astype(np.float32) for _ in range(2))
    body = "y = Conv (x, w) m = GlobalMaxPool (y) c = ArgMax <axis=1> (y)"
    outputs = "float[N,2,4,5] y, float[N,2,1,1] m, int64[N,1,4,5] c"
    first, second = (net(body, outputs, "float[N,3,4,5] x", w=w) for w in (exact, noisy))
    maps = [np.einsum("nchw,oc->nohw", x, w[:, :, 0, 0]) for w in (exact, noisy)]
    peaks = [m.max(axis=(2, 3)) for m in maps]
    best = [m.argmax(axis=1) for m in maps]
    expected = np.sqrt((off_each(*maps) + off(*peaks) + (best[0] != best[1]).mean()) / 3)
    found = judged(first, second, x)
    assert found == Scores(30, distance=found.distance)
    assert found.distance == found.error == pytest.approx(expected, rel=1e-4)


def test_answering_the_mean_is_a_distance_of_one() -> None:
    x = np.random.default_rng(0).uniform(3, 9, (250, 2, 3, 3)).astype(np.float32)
    shape = "float[N,2,3,3]"
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    constant = net("n = Mul (x, zero) y = Add (n, mean)", f"{shape} y", f"{shape} x", zero=np.float32(0), mean=mean)
    assert judged(echo("N", 2, 3, 3), constant, x).distance == pytest.approx(1, rel=1e-5)
    assert judged(echo("N", 2, 3, 3), echo("N", 2, 3, 3), x).distance == 0


@pytest.mark.parametrize("turned", [False, True])
def test_small_numbers_beside_large_ones_in_one_output_count_as_much(turned: bool) -> None:
    """As boxes in pixels and scores below one in what a detector gives."""
    rng = np.random.default_rng(0)
    x = np.concatenate([300 * rng.standard_normal((40, 2, 30)), 0.01 * rng.standard_normal((40, 4, 30))], axis=1)
    x = x.astype(np.float32).swapaxes(1, 2) if turned else x.astype(np.float32)
    shape = "float[N,30,6]" if turned else "float[N,6,30]"
    mask = np.asarray([1, 1, 0, 0, 0, 0], np.float32).reshape((1, 1, 6) if turned else (1, 6, 1))
    scoreless = net("y = Mul (x, mask)", f"{shape} y", f"{shape} x", mask=mask)
    assert judged(echo("N", *x.shape[1:]), scoreless, x).distance == pytest.approx(np.sqrt(4 / 6), rel=1e-2)


def test_numbers_that_nobody_uses_count_for_little_beside_others() -> None:
    x = np.random.default_rng(0).standard_normal((40, 6, 30)).astype(np.float32)
    x[:, 5] *= 1e-8
    mask = np.asarray([1, 1, 1, 1, 1, 0], np.float32).reshape(1, 6, 1)
    shape = "float[N,6,30]"
    without = net("y = Mul (x, mask)", f"{shape} y", f"{shape} x", mask=mask)
    assert judged(echo("N", 6, 30), without, x).distance == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("level", [0.0, 1e-3, 1.0, 500.0])
def test_rounding_of_an_output_that_never_changes_is_hardly_a_distance(level: float) -> None:
    x, _ = drawn(20)
    outputs = "float[N] y"

    def constant(number: float) -> ModelProto:
        return net("n = Mul (x, zero) c = Add (n, level) y = ReduceMax <axes=[1], keepdims=0> (c)", outputs,
                   zero=np.float32(0), level=np.float32(number))  # fmt: skip

    near, far = (judged(constant(level), constant(other), x).distance for other in (level * (1 + 1e-6), level + 1))
    assert near is not None
    assert far is not None
    assert near < 2e-3
    assert far > 1


def test_other_outputs_of_a_classifier_count_beside_its_classes() -> None:
    x, _ = drawn(60)
    exact, noisy = weights(7)
    body, outputs = "y = Identity (z) a = MatMul (x, v)", "float[N,C] y, float[N,D] a"
    same, other = (classifier(exact, body, outputs, v=v) for v in (exact, noisy))
    found = judged(same, other, x)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1
    assert found.others == found.error == pytest.approx(off(x @ exact, x @ noisy), rel=1e-4)
    assert judged(classifier(exact), classifier(noisy), x).others is None


def test_a_single_number_per_sample_is_no_class() -> None:
    x, _ = drawn(40)
    exact, noisy = weights(1)
    found = judged(classifier(exact), classifier(noisy), x)
    assert found == Scores(40, distance=pytest.approx(np.sqrt(off(x @ exact, x @ noisy)), rel=1e-4))


def passing(least: float, batch: int | str = "N", body: str = "y = Compress (x, flat)") -> ModelProto:
    """The numbers above some limit: how many there are depends on the samples."""
    body = f"b = Greater (x, least) flat = Reshape (b, all) {body}"
    outputs = "int64[A,K] y" if "NonZero" in body else "float[K] y"
    return net(body, outputs, f"float[{batch},{FEATURES}] x", least=np.float32(least), all=[-1])


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_outputs_of_another_size_count_as_one_for_their_samples(batch: int | None) -> None:
    """Where as many numbers pass, they are the same."""
    x, _ = drawn(60)
    counts = [(x > least).reshape(-1, (batch or 1) * FEATURES).sum(axis=1) for least in (0, 0.1)]
    expected = np.sqrt((counts[0] != counts[1]).mean())
    assert 0 < expected < 1
    found = judged(passing(0, batch or "N"), passing(0.1, batch or "N"), x, batch=batch)
    assert found == Scores(60, distance=pytest.approx(expected))


def test_nothing_equals_nothing() -> None:
    x, _ = drawn(60)
    assert judged(passing(99), passing(98), x).distance == 0
    models = (passing(least, body="y = NonZero (b)") for least in (1.6, 99))
    expected = (x > 1.6).any(axis=1).mean()
    assert 0 < expected < 1
    assert judged(*models, x).distance == pytest.approx(np.sqrt(expected))


def test_a_list_of_boxes_that_once_has_one_entry_is_no_list_of_classes() -> None:
    x = np.zeros((3, 5, 4), np.float32)
    x[0, :1], x[1, :3], x[2, :2] = 1, 2, 3
    body = "p = ReduceMax <axes=[0, 2], keepdims=0> (x) b = Greater (p, zero) y = Compress <axis=1> (x, b) "
    body += "z = Squeeze (y, first)"
    model = net(body, "float[K,D] z", "float[1,5,4] x", zero=np.float32(0), first=[0])
    assert judged(model, model, x, batch=1) == Scores(3, distance=0)


def test_axes_of_one_do_not_matter() -> None:
    x, _ = drawn(30)
    flat = net("n = Neg (x) y = Flatten (n)", "float[N,C] y", f"float[N,{FEATURES},1,1] x")
    wide = x[:, :, None, None]
    assert judged(echo("N", FEATURES, 1, 1), flat, wide).distance == pytest.approx(np.sqrt(off(x, -x)), rel=1e-5)


def test_numbers_of_another_kind_count_as_one() -> None:
    x = np.round(drawn(30)[0])
    outputs = "float[N,C] y, {}[N,C] a"
    whole = net("y = Identity (x) a = Cast <to=7> (x)", outputs.format("int64"))
    same = net("y = Identity (x) a = Identity (x)", outputs.format("float"))
    assert judged(whole, same, x).distance == judged(same, whole, x).distance == pytest.approx(np.sqrt(1 / 2))


def test_the_boxes_that_a_selection_leaves_are_compared_sample_by_sample() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 5, (25, 8, 2))
    x = np.concatenate([corners, corners + rng.uniform(1, 4, (25, 8, 2))], axis=2).astype(np.float32)

    def selection(overlap: float) -> ModelProto:
        body = "t = Transpose <perm=[0,2,1]> (x) s = Slice (t, start, end, axis) "
        body += "y = NonMaxSuppression (x, s, most, overlap)"
        stored = {"start": [0], "end": [1], "axis": [1], "most": np.array(8), "overlap": np.float32(overlap)}
        return net(body, "int64[K,3] y", "float[N,8,4] x", **stored)

    first, second = selection(0.3), selection(0.5)
    chosen = [[runtime.evaluate(m, {"x": x[i : i + 1]})[0] for i in range(25)] for m in (first, second)]
    terms = [float((a != b).mean()) if a.shape == b.shape else 1.0 for a, b in zip(*chosen, strict=True)]
    assert len(set(terms)) > 1
    assert judged(first, second, x).distance == pytest.approx(np.sqrt(np.mean(terms)))


def test_outputs_that_only_one_model_has_are_left_out() -> None:
    x, _ = drawn(30)
    exact, noisy = weights(7)
    more = classifier(noisy, "y = Identity (z) a = Neg (z)", "float[N,C] y, float[N,C] a")
    expected = judged(classifier(exact), classifier(noisy), x)
    assert judged(classifier(exact), more, x) == expected
    assert judged(more, classifier(exact), x) == judged(classifier(noisy), classifier(exact), x)


def test_outputs_that_are_no_arrays_are_left_out() -> None:
    x, _ = drawn(30)
    body, outputs = "y = Identity (z) s = SequenceConstruct (z)", "float[N,C] y, seq(float[N,C]) s"
    first, second = (classifier(w, body, outputs) for w in weights(7))
    assert judged(first, second, x) == judged(*map(classifier, weights(7)), x)
    with pytest.raises(InputError, match="nothing can be compared"):
        Judge(net("s = SequenceConstruct (x)", "seq(float[N,C]) s"), Path(), Samples(x))


# ---- what is not finite


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["y", "a"])
def test_an_answer_that_is_not_finite_is_an_infinite_error(broken: float, where: str) -> None:
    x, _ = drawn(150)
    x[0, 0] = 9
    outputs = "float[N,C] y, float[N,C] a"
    healthy = net("y = Identity (x) a = Neg (x)", outputs)
    picks = f"b = Greater (x, limit) {where} = Where (b, broken, x)"
    other = {"y": "a = Neg (x)", "a": "y = Identity (x)"}[where]
    sick = net(f"{picks} {other}", outputs, limit=np.float32(8), broken=np.float32(broken))
    found = judged(healthy, sick, x)
    assert found.error == found.kl == found.distance == np.inf
    assert found.agreement == (1 if where == "a" or broken == np.inf else 149 / 150)


def test_what_the_original_leaves_infinite_is_not_compared() -> None:
    x, _ = drawn(50)
    exact, noisy = weights(7)
    mask = np.where(np.arange(7) == 2, -np.inf, 0).astype(np.float32)
    found = judged(*(classifier(w, "y = Add (z, mask)", mask=mask) for w in (exact, noisy)), x)
    wanted, got = (np.delete(x @ w, 2, axis=1) for w in (exact, noisy))
    assert found.kl == pytest.approx(divergence(wanted, got), rel=1e-4)
    assert found.distance == pytest.approx(np.sqrt(off(wanted, got)), rel=1e-4)


def test_another_infinity_than_the_original_has_is_no_distribution() -> None:
    x, _ = drawn(50)
    masks = (np.where(np.arange(FEATURES) == 2, infinity, 0).astype(np.float32) for infinity in (-np.inf, np.inf))
    found = judged(*(net("y = Add (x, mask)", mask=mask) for mask in masks), x)
    assert found.error == found.kl == np.inf


def test_class_scores_that_the_original_never_gives_leave_the_other_outputs() -> None:
    x, _ = drawn(50)
    body, outputs = "y = Mul (x, nan) a = {} (x)", "float[N,C] y, float[N,C] a"
    first, second = (net(body.format(op), outputs, nan=np.float32(np.nan)) for op in ("Identity", "Neg"))
    found = judged(first, second, x)
    assert found.kl is None
    assert found.error == found.distance == pytest.approx(np.sqrt(off(x, -x)), rel=1e-5)


def test_samples_that_the_original_answers_with_nan_do_not_diverge() -> None:
    x, _ = drawn(50)
    x[:20] = np.nan
    exact, noisy = weights(7)
    found = judged(classifier(exact), classifier(noisy), x)
    assert found.kl == pytest.approx(divergence(x[20:] @ exact, x[20:] @ noisy), rel=1e-4)


def test_an_original_without_a_finite_number_is_refused() -> None:
    with pytest.raises(InputError, match="no finite numbers"):
        Judge(echo("N", FEATURES), Path(), Samples(np.full((5, FEATURES), np.nan, np.float32)))


# ---- how it is run


def test_the_original_runs_once_for_any_number_of_candidates() -> None:
    data = Samples(drawn(30)[0])
    exact, noisy = weights(7)
    judge = Judge(classifier(exact, "y = Softmax (z)"), Path(), data)
    before = data.passes
    for _ in range(3):
        judge.judge(classifier(noisy, "y = Softmax (z)"))
    assert data.passes == before + 3


def test_models_are_left_as_they_were() -> None:
    x, _ = drawn(30)
    models = [classifier(w, "y = Softmax (z)") for w in weights(7)]
    models.append(classifier(weights(7)[0][1:], "y = Softmax (z)"))  # cannot run
    before = [model.SerializeToString(deterministic=True) for model in models]
    judge = Judge(models[0], Path(), Samples(x))
    judge.judge(models[1])
    with pytest.raises(InputError, match="onnxruntime cannot"):
        judge.judge(models[2])
    assert [model.SerializeToString(deterministic=True) for model in models] == before


def test_weights_beside_the_models_are_found(tmp_path: Path) -> None:
    x, _ = drawn(30)
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal((FEATURES, 900)).astype(np.float32) for _ in range(2)]
    expected = judged(*map(classifier, wide), x)
    models = []
    for name, weight in zip("ab", wide, strict=True):
        (tmp_path / name).mkdir()
        write_beside(classifier(weight), tmp_path / name / "model.onnx", Path())
        models.append(onnx.load(tmp_path / name / "model.onnx", load_external_data=False))
    judge = Judge(models[0], tmp_path / "a", Samples(x))
    assert judge.judge(models[1], tmp_path / "b") == expected
    assert judge.judge(models[1]).kl == 0  # the weights of the original are read


def test_answers_that_fill_the_memory_leave_later_samples_out(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(4 * MOST_SAMPLES)
    exact, noisy = weights(8)
    monkeypatch.setattr(evaluation, "MEMORY", 8 * 4 * MOST_SAMPLES + 1)  # a batch fits, two do not
    few = 2 * MOST_SAMPLES
    judge = Judge(classifier(exact), Path(), Samples(x, y))
    assert judge.original_scores.samples == few
    assert judge.original_scores.top1 == (ranks(x[:few] @ exact, y[:few]) == 0).mean()
    monkeypatch.undo()
    assert judge.judge(classifier(noisy)) == judged(classifier(exact), classifier(noisy), x[:few], y[:few])


@pytest.mark.parametrize(
    ("shape", "expected"), [((6,), 100), ((3, 32, 32), 100), ((3, 224, 224), 8), ((3, 640, 640), 1), ((3, 900, 900), 1)]
)
def test_batches_hold_about_five_megabytes(shape: tuple[int, ...], expected: int) -> None:
    assert batch_size(Samples(np.zeros((2, *shape), np.float32))) == expected  # type: ignore[arg-type]


def test_threads_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Spy(runtime.Session):
        def __init__(self, *args: Any, **options: Any) -> None:
            asked.append(options["threads"])
            super().__init__(*args, **options)

    monkeypatch.setattr(runtime, "Session", Spy)
    x, _ = drawn(5)
    judged(echo("N", FEATURES), echo("N", FEATURES), x, threads=1)
    judged(echo("N", FEATURES), echo("N", FEATURES), x)
    assert asked == [1, 1, None, None]


def test_the_error_is_the_divergence_else_the_distance_else_the_share_of_wrong_classes() -> None:
    assert Scores(1, top1=0.75, kl=0.5, distance=0.2).error == 0.5
    assert Scores(1, top1=0.75, kl=0.0, distance=0.2).error == 0
    assert Scores(1, top1=0.75, kl=0.5, distance=0.2, others=0.25).error == 0.75
    assert Scores(1, top1=0.75, distance=0.2).error == 0.2
    assert Scores(1, top1=0.75).error == 0.25
    with pytest.raises(ValueError, match="no comparison"):
        _ = Scores(1).error


# ---- the commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def segmenter(seed: int) -> ModelProto:
    draft = Draft(seed)
    x = draft.relu("relu", draft.conv("conv", "image", 3, 16))
    draft.nodes.append(onnx.helper.make_node("Conv", [x, draft.weight("w", 4, 16, 1, 1)], ["map"], name="last"))
    return draft.model([("image", ("N", *IMAGE))], [("map", ("N", 4, *IMAGE[1:]))])


def images(samples: int) -> Array:
    return np.random.default_rng(3).standard_normal((samples, *IMAGE)).astype(np.float32)


def test_evaluate_shows_and_writes_all_that_a_reference_tells(folder: Path) -> None:
    x = images(20)
    models = [convs(seed=seed) for seed in (0, 1)]
    for name, model in zip(("a.onnx", "b.onnx"), models, strict=True):
        write(model, folder / name)
    np.save("x.npy", x)
    outcome = run("evaluate", "b.onnx", "--data", "x.npy", "--reference", "a.onnx", "--json", "scores.json")
    assert outcome.code == 0, outcome.err
    content = json.loads(Path("scores.json").read_text())
    wanted, found = (runtime.evaluate(model, {"image": x})[0] for model in models)
    assert wanted.shape == (20, CLASSES)
    kl = rel_entr(*(softmax(v.astype(np.float64), axis=1) for v in (wanted, found))).sum(axis=1).mean()
    assert content == {
        "format": "onnxprune.evaluate/1",
        "model": "b.onnx",
        "samples": 20,
        "top1": None,
        "top5": None,
        "agreement": (wanted.argmax(axis=1) == found.argmax(axis=1)).mean(),
        "kl": pytest.approx(kl, rel=1e-4),
        "distance": pytest.approx(np.sqrt(off(wanted, found)), rel=1e-4),
        "others": None,
    }
    assert f"kl: {content['kl']:.4g} nats" in outcome.out
    assert f"distance: {content['distance']:.4g} " in outcome.out


def test_evaluate_tells_the_distance_of_models_that_do_not_classify(folder: Path) -> None:
    np.savez("data.npz", x=images(20), y=np.zeros(20, np.int64))
    for seed in range(2):
        write(segmenter(seed), folder / f"{seed}.onnx")
    outcome = run("evaluate", "1.onnx", "--data", "data.npz", "--reference", "0.onnx")
    maps = [runtime.evaluate(segmenter(seed), {"image": images(20)})[0] for seed in range(2)]
    assert [line.split()[:2] for line in outcome.out.splitlines()] == [
        ["samples:", "20"],
        ["distance:", f"{np.sqrt(off_each(*maps)):.4g}"],
    ]


def test_compress_reports_the_distance_of_models_that_do_not_classify(folder: Path) -> None:
    write(segmenter(0), folder / "model.onnx")
    np.savez("data.npz", x=images(20), y=np.zeros(20, np.int64))
    outcome = run("compress", "model.onnx", "--flops", "0.8", "--data", "data.npz", "-o", "small.onnx", "--align", "1")
    assert outcome.code == 0, outcome.err
    assert run("apply", "model.onnx", "small.plan.json", "-o", "cut.onnx").code == 0
    report = json.loads(Path("small.report.json").read_text())
    held = report["data"]["parts"]["holdout"]["samples"]
    np.save("held.npy", images(20)[report["data"]["parts"]["holdout"]["indices"]])
    found = []
    for file in ("cut.onnx", "small.onnx"):
        run("evaluate", file, "--data", "held.npy", "--reference", "model.onnx", "--json", "scores.json")
        found.append(json.loads(Path("scores.json").read_text())["distance"])
    assert report["stages"] == [
        {"name": "original", "samples": held},
        {"name": "cut", "samples": held, "distance": pytest.approx(found[0])},
        {"name": "repair", "samples": held, "distance": pytest.approx(found[1])},
    ]
    assert 0 < found[1] < found[0] < 2
