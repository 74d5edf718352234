"""What layers read, in numbers: as numpy finds it, whatever the passes and blocks, and never twice."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from cli_nets import convs, write_outside
from nets import Array, Builder
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper
from sklearn.covariance import OAS
from torch.nn import functional as F

from onnxprune import runtime, statistics
from onnxprune.channels import Channels, find_channels
from onnxprune.data import Data, Input
from onnxprune.errors import InputError
from onnxprune.model import analyse
from onnxprune.progress import Progress
from onnxprune.readers import Reader
from onnxprune.statistics import RIDGE, Inputs, Statistics, collect

SAMPLES = 30
DAY = 86_400


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the numbers are kept."""
    monkeypatch.setattr(statistics, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "onnxprune" / "statistics"


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every session that is made."""
    made: list[object] = []
    real = runtime.Session

    def session(*arguments: Any, **more: Any) -> runtime.Session:
        made.append(arguments)
        return real(*arguments, **more)

    monkeypatch.setattr(runtime, "Session", session)
    return made


def channels_of(model: ModelProto, folder: Path = Path()) -> Channels:
    return find_channels(analyse(model, folder, runtime.evaluate, {}))


def images(channels: Channels, count: int = SAMPLES, seed: int = 0) -> Data:
    """Draw samples of unlike mean and spread for the one input of a model."""
    (value,) = channels.model.proto.graph.input
    name, shape = value.name, tuple(channels.model.bound[value.name][1:])
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((count, *shape)) * rng.uniform(0.5, 2, shape) + rng.uniform(-1, 1, shape)).astype("f4")
    return Data({name: x}, (Input(name, x.shape, x.dtype, 1),), None, None, "drawn", np.arange(count))


def mixed() -> ModelProto:
    """A residual block, a convolution of two groups, one with all attributes, Flatten and a dense layer."""
    b = Builder()
    x = b.relu(b.conv(b.input("N", 3, 7, 7), 3, 8, 3, 3, pads=[1] * 4))
    inner = b.relu(b.norm(b.conv(x, 8, 10, 3, 3, pads=[1] * 4), 10))
    x = b.relu(b.node("Add", x, b.norm(b.conv(inner, 10, 8), 8)))
    y = b.relu(b.conv(x, 8, 12, 3, 3, group=2))
    y = b.relu(b.conv(y, 12, 6, 3, 2, pads=[0, 1, 2, 0], strides=[2, 1], dilations=[1, 2]))
    y = b.node("Flatten", y)
    y = b.relu(b.node("Gemm", y, b.weight(72, 9), b.positive(9), alpha=0.5))
    return b.done(b.linear(y, 9, 4), rank=2)


def rows_of_words() -> ModelProto:
    """Products with a matrix, five rows a sample."""
    b = Builder()
    return b.done(b.linear_rows(b.relu(b.linear_rows(b.input("N", 5, 6), 6, 8)), 8, 4), rank=3)


def tapped(model: ModelProto, data: Data, names: Sequence[str]) -> dict[str, Array]:
    """Run a model over all samples in onnxruntime, and read tensors inside it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {name: np.asarray(values)[data.order] for name, values in data.samples.items()}
    own = [name for name in dict.fromkeys(names) if name not in feed]
    return {**feed, **dict(zip(own, session.run(own, feed), strict=True))}


def rows_by_torch(channels: Channels, reader: Reader, x: Array) -> Array:
    """What a layer sums over at all positions of all samples: (groups, rows, numbers)."""
    node = channels.model.proto.graph.node[reader.layer.index]
    if node.op_type != "Conv":
        return x.reshape(1, -1, x.shape[-1])
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    kernel = channels.model.array(node.input[1]).shape[2:]
    padded = F.pad(torch.from_numpy(x), (left, right, top, bottom))
    more = {"dilation": attributes.get("dilations", [1, 1]), "stride": attributes.get("strides", [1, 1])}
    found = F.unfold(padded, kernel, **more).permute(0, 2, 1).numpy()
    groups = attributes.get("group", 1)
    return found.reshape(-1, groups, found.shape[2] // groups).swapaxes(0, 1)


def by_numpy(channels: Channels, data: Data, readers: Sequence[Reader]) -> list[tuple[Array, Array, int]]:
    """Mean, covariance and number of the rows of each layer."""
    found = tapped(channels.model.proto, data, [reader.x for reader in readers])
    result = []
    for reader in readers:
        rows = rows_by_torch(channels, reader, found[reader.x]).astype(np.float64)
        result.append((rows.mean(axis=1), np.stack([np.cov(part.T, bias=True) for part in rows]), rows.shape[1]))
    return result


def folder_of(found: Statistics) -> Path:
    return next(iter(found._files.values())).parent


def kept_aside(home: Path, found: Statistics) -> Statistics:
    """Move numbers to where the next run does not find them."""
    aside = Path(tempfile.mkdtemp(dir=home.parent))
    os.replace(home, aside / "statistics")
    found._files = {key: aside / "statistics" / file.relative_to(home) for key, file in found._files.items()}
    return found


def same(one: Statistics, other: Statistics, tolerance: float = 0.0) -> bool:
    """Whether two hold the same numbers."""
    pairs = [(one.inputs(r), other.inputs(s)) for r, s in zip(one.readers, other.readers, strict=True)]
    return (
        one.unit.keys() == other.unit.keys()
        and np.allclose([one.unit[k] for k in one.unit], [other.unit[k] for k in one.unit], rtol=tolerance, atol=0)
        and all(a.rows == b.rows for a, b in pairs)
        and all(np.allclose(a.mean, b.mean, rtol=tolerance, atol=tolerance) for a, b in pairs)
        and all(np.allclose(a.covariance, b.covariance, rtol=tolerance, atol=tolerance) for a, b in pairs)
    )


@pytest.mark.parametrize("build", [mixed, rows_of_words, convs])
def test_means_and_covariances_are_those_of_all_patches_that_a_layer_reads(build: Callable[[], ModelProto]) -> None:
    channels = channels_of(build())
    data = images(channels)
    found = collect(channels, data)
    expected = by_numpy(channels, data, found.readers)
    assert {r.layer.index for r in found.readers} >= {
        i for i, node in enumerate(channels.model.proto.graph.node) if node.op_type in ("Conv", "Gemm", "MatMul") and i
    }
    for reader, (mean, covariance, rows) in zip(found.readers, expected, strict=True):
        inputs = found.inputs(reader)
        assert inputs.rows == rows
        np.testing.assert_allclose(inputs.mean, mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(inputs.covariance[:, 0], covariance, rtol=1e-3, atol=1e-5 * np.abs(covariance).max())
        square = np.einsum("gii->gi", covariance) + mean**2
        np.testing.assert_allclose(inputs.mean_square, square, rtol=1e-4, atol=1e-6)


def test_a_layer_is_measured_by_the_variance_of_what_its_output_becomes_a_part_of() -> None:
    channels = channels_of(mixed())
    data, nodes = images(channels), channels.model.proto.graph.node
    found = collect(channels, data)
    makers = {node.output[0]: index for index, node in enumerate(nodes)}
    becomes = {reader.layer.index: reader.y for reader in found.readers}
    for node in nodes:  # behind a normalisation, and after the residual connection
        before = [makers.get(name) for name in node.input]
        if node.op_type == "BatchNormalization" and before[0] in becomes:
            becomes[before[0]] = node.output[0]
    (add,) = (node for node in nodes if node.op_type == "Add")
    last = next(key for key, name in becomes.items() if name in add.input)
    becomes[last] = add.output[0]
    values = tapped(channels.model.proto, data, list(becomes.values()))
    assert found.unit.keys() == becomes.keys()
    for index, name in becomes.items():
        parts = np.moveaxis(values[name], 1, 0).reshape(values[name].shape[1], -1).astype(np.float64)
        assert found.unit[index] == pytest.approx(parts.var(axis=1).sum(), rel=1e-4)


def test_the_variance_of_rows_counts_their_last_axis_as_channels() -> None:
    channels = channels_of(rows_of_words())
    data = images(channels)
    found = collect(channels, data)
    (reader,) = found.readers
    name = channels.model.proto.graph.output[0].name
    y = tapped(channels.model.proto, data, [name])[name].reshape(-1, 4)
    assert found.unit == {reader.layer.index: pytest.approx(y.var(axis=0).sum(), rel=1e-4)}


def test_several_passes_give_the_numbers_of_one(
    home: Path, sessions: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = channels_of(mixed())
    data = images(channels)
    one = kept_aside(home, collect(channels, data))
    layers = len({reader.rows_key for reader in one.readers})
    assert len(sessions) == 1
    monkeypatch.setattr(statistics, "HELD_BYTES", 1)
    many = collect(channels, data)
    assert len(sessions) == 1 + layers > 3
    assert same(one, many, 1e-4)


def test_the_sums_of_one_wide_layer_fit_in_memory_and_channels_stay_whole() -> None:
    channel = np.repeat(np.arange(64), 28 * 28)  # behind a Flatten
    block = statistics._block(channel, 1, 1)
    assert block % (28 * 28) == 0
    assert 8 * len(channel) * block < statistics.LAYER_BYTES + 8 * len(channel) * 28 * 28
    assert statistics._block(np.arange(5_000), 1, 1) == 5_000


def test_blocks_hold_what_the_whole_covariance_holds_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(mixed())
    data = images(channels)
    one = collect(channels, data)
    wholes = [one.inputs(reader) for reader in one.readers]
    shutil.rmtree(home)
    monkeypatch.setattr(statistics, "WIDEST", 20)
    several = collect(channels, data)
    split = 0
    for reader, whole in zip(several.readers, wholes, strict=True):
        blocks, size = several.inputs(reader), whole.mean.shape[1]
        np.testing.assert_array_equal(blocks.mean, whole.mean)
        np.testing.assert_allclose(blocks.mean_square, whole.mean_square, rtol=1e-5)
        kernel = reader.layer.weight.shape[-1]
        owner = np.repeat(channels.channel_of[reader.layer.x[0]], kernel)
        stands_together = np.count_nonzero(np.diff(owner)) + 1 == len(np.unique(owner))
        split += stands_together and blocks.covariance.shape[1] > 1
        seen = []
        for number in range(blocks.covariance.shape[1]):
            part = np.arange(size)[number * blocks.block : (number + 1) * blocks.block]
            found = blocks.covariance[:, number]
            expected = whole.covariance[:, 0][:, part][:, :, part]
            np.testing.assert_allclose(found[:, : len(part), : len(part)], expected, rtol=1e-4, atol=1e-5)
            assert not found[:, len(part) :].any()
            assert not found[:, :, len(part) :].any()
            seen.append(set(owner[part].tolist()))
        assert not stands_together or sum(map(len, seen)) == len(set.union(*seen))  # no channel is in two of them
        assert blocks.block <= 20 + kernel * np.unique(owner, return_counts=True)[1].max()
    assert split >= 2


def test_few_of_many_positions_come_from_every_sample_and_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "LEAST_ROWS", 300)
    monkeypatch.setattr(statistics, "ROWS_PER_INPUT", 1)
    monkeypatch.setattr(statistics, "TAPPED", 1)  # one sample at a time
    channels = channels_of(convs())
    data = images(channels)
    first, again, other = (collect(channels, data, seed=seed) for seed in (0, 0, 1))
    reader = first.readers[0]
    assert first.inputs(reader).rows == 300 == SAMPLES * 10
    (mean, _, rows), *_ = by_numpy(channels, data, [reader])
    assert rows == SAMPLES * 144
    np.testing.assert_allclose(first.inputs(reader).mean, mean, atol=0.25 * np.abs(mean).max())
    assert same(first, again)
    assert not np.array_equal(first.inputs(reader).mean, other.inputs(reader).mean)


def test_no_layer_looks_at_more_rows_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LEAST_ROWS", 200), ("ROWS_PER_INPUT", 2), ("MOST_ROWS", 310)):
        monkeypatch.setattr(statistics, name, value)
    channels = channels_of(convs())
    found = collect(channels, images(channels))
    wide, widest, head = (found.inputs(reader) for reader in found.readers)
    assert (wide.mean.shape[1], widest.mean.shape[1]) == (144, 216)
    assert wide.rows == 2 * 144 // SAMPLES * SAMPLES + SAMPLES  # as many of each sample, rounded up
    assert widest.rows == -(-310 // SAMPLES) * SAMPLES
    assert head.rows == SAMPLES  # all there are


def test_the_number_of_samples_in_a_batch_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(mixed())
    data = images(channels)
    found = []
    for most in (1, 10**9):
        monkeypatch.setattr(statistics, "TAPPED", most)
        found.append(kept_aside(home, collect(channels, data)))
    assert same(*found, tolerance=1e-4)


class Told(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))


def test_progress_counts_the_samples_of_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "HELD_BYTES", 1)
    monkeypatch.setattr(statistics, "TAPPED", 1)
    channels, told = channels_of(convs()), Told()
    collect(channels, images(channels), progress=told)
    assert told.steps == [(done + 1, 3 * SAMPLES) for done in range(3 * SAMPLES)]


# ------------------------------------------------------------------------------------------ what is kept on disk


def test_numbers_that_are_kept_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(mixed())
    data = images(channels)
    first = collect(channels, data)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a model runs")

    monkeypatch.setattr(runtime, "Session", fail)
    second = collect(channels_of(mixed()), images(channels))
    assert same(first, second)
    np.testing.assert_allclose(
        second.inputs(second.readers[0]).mean, by_numpy(channels, data, second.readers[:1])[0][0], rtol=1e-4, atol=1e-5
    )


def change_weight(channels: Channels, data: Data) -> tuple[Channels, Data, int]:
    model = mixed()
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values.flat[0] += 1
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))
    return channels_of(model), data, 0


CHANGES: dict[str, Callable[[Channels, Data], tuple[Channels, Data, int]]] = {
    "weight": change_weight,
    "samples": lambda channels, _: (channels, images(channels, seed=1), 0),
    "fewer": lambda channels, data: (channels, data.take(np.arange(SAMPLES - 1)), 0),
    "order": lambda channels, data: (channels, data.take(np.arange(SAMPLES)[::-1]), 0),
    "seed": lambda channels, data: (channels, data, 1),
    "groups": lambda channels, data: (find_channels(channels.model, ["Gemm*"]), data, 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_the_numbers_depend_on_is_looked_at_anew(home: Path, sessions: list[object], name: str) -> None:
    channels = channels_of(mixed())
    data = images(channels)
    collect(channels, data)
    assert len(sessions) == len(list(home.iterdir())) == 1
    other, others, seed = CHANGES[name](channels, data)
    sessions.clear()
    found = collect(other, others, seed=seed)
    assert len(sessions) == 1
    assert len(list(home.iterdir())) == 2
    expected = by_numpy(other, others, found.readers)
    for reader, (mean, _, _) in zip(found.readers, expected, strict=True):
        np.testing.assert_allclose(found.inputs(reader).mean, mean, rtol=1e-4, atol=1e-5)


def test_weights_outside_the_model_are_looked_at_too(tmp_path: Path, sessions: list[object]) -> None:
    def outside(folder: Path, seed: int) -> Channels:
        folder.mkdir()
        proto = onnx.load(str(write_outside(convs(seed=seed), folder / "net.onnx")), load_external_data=False)
        return channels_of(proto, folder)

    one, same_one, other = (outside(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 5)))
    assert one.model.proto.SerializeToString() == other.model.proto.SerializeToString()
    data, counts = images(one), []
    for channels in (one, same_one, other):
        sessions.clear()
        collect(channels, data)
        counts.append(len(sessions))
    assert counts == [1, 0, 1]


def test_without_a_place_to_keep_them_the_numbers_are_there_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = channels_of(mixed())
    data = images(channels)
    kept = collect(channels, data)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(statistics, "user_cache_path", lambda name: tmp_path / "file" / name)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    assert same(kept, collect(channels, data))
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_run_that_fails_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(convs())

    def fail(*_: Any, **__: Any) -> None:
        raise InputError("broken")

    monkeypatch.setattr(runtime, "Session", fail)
    with pytest.raises(InputError, match="broken"):
        collect(channels, images(channels))
    assert not list(home.iterdir())
    assert {value.name for value in channels.model.proto.graph.output} == {"logits"}


def test_of_two_runs_that_write_the_same_the_slower_takes_what_the_faster_wrote(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = channels_of(convs())

    def late(source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        raise OSError("it is there already")

    monkeypatch.setattr(os, "replace", late)
    found = collect(channels, images(channels))
    assert [folder.name for folder in home.iterdir()] == [folder_of(found).name]


def test_what_was_used_longest_ago_makes_room(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    channels = channels_of(convs())
    data = images(channels)
    folders = []
    for seed in range(4):
        folders.append(folder_of(collect(channels, data, seed=seed)))
        used = time.time() - (10 - seed) * DAY
        os.utime(folders[-1], (used, used))
    size = sum(file.stat().st_size for file in folders[0].iterdir())
    monkeypatch.setattr(statistics, "CACHE_BYTES", 5 * size + size // 2)
    collect(channels, data, seed=4)
    assert len(list(home.iterdir())) == 5  # there is room for all
    collect(channels, data, seed=0)  # which makes it the youngest
    collect(channels, data, seed=5)
    assert [folder.exists() for folder in folders] == [True, False, True, True]
    monkeypatch.setattr(statistics, "CACHE_BYTES", 1)
    last = collect(channels, data, seed=6)
    assert [folder.exists() for folder in folders] == [True, False, False, False]  # the first may be in use still
    assert folder_of(last).exists()
    assert last.inputs(last.readers[0]).rows


def test_what_another_run_is_writing_stays_for_a_day(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CACHE_BYTES", 1)
    channels = channels_of(convs())
    for name, age in (("new.young", DAY / 2), ("new.old", 2 * DAY)):
        (home / name).mkdir(parents=True)
        (home / name / "0.npz").write_bytes(b"half")
        os.utime(home / name, (time.time() - age,) * 2)
    collect(channels, images(channels))
    assert sorted(f.name for f in home.iterdir() if f.name.startswith("new.")) == ["new.young"]


# ------------------------------------------------------------------------------------------------- to be inverted


def inputs_of(x: Array, rows: int | None = None) -> Inputs:
    """What a layer that reads these rows (rows, numbers) has for inputs."""
    covariance = np.atleast_2d(np.cov(x.T, bias=True))
    return Inputs(x.mean(axis=0)[None], covariance[None, None], len(x) if rows is None else rows)


def correlated(rows: int, size: int, share: float, seed: int = 0) -> Array:
    """Normal numbers of unlike spread that have a share of their variance in common."""
    rng = np.random.default_rng(seed)
    common, own = rng.standard_normal((rows, 1)), rng.standard_normal((rows, size))
    return (np.sqrt(share) * common + np.sqrt(1 - share) * own) * rng.uniform(0.2, 5, size)


def test_constant_and_dependent_inputs_can_be_inverted() -> None:
    x = correlated(400, 6, 0.5)
    x = np.column_stack([x, x[:, 0], x[:, 1] + x[:, 2], np.full(400, 3.0), np.zeros(400)])
    regular = inputs_of(x).regular()[0, 0]
    np.testing.assert_allclose(np.linalg.inv(regular) @ regular, np.eye(10), atol=1e-6)
    assert np.linalg.eigvalsh(regular).min() > 0
    assert np.linalg.matrix_rank(np.cov(x.T)) == 6
    silent = inputs_of(np.ones((50, 4))).regular()[0, 0]
    assert np.isfinite(np.linalg.inv(silent)).all()


@pytest.mark.parametrize("constant", [0, 1, 30])
def test_of_many_rows_the_covariance_is_believed(constant: int) -> None:
    x = np.column_stack([correlated(500, 6, 0.4), np.zeros((500, constant))])
    inputs = inputs_of(x, rows=10**9)
    covariance = inputs.covariance[0, 0]
    ridge = RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    np.testing.assert_allclose(inputs.regular()[0, 0], covariance + ridge, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("constant", [0, 50])
@pytest.mark.parametrize("rows", [20, 60, 300])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_of_few_rows_correlations_shrink_as_sklearn_shrinks_them(rows: int, share: float, constant: int) -> None:
    x = correlated(rows, 100, share)
    standard = OAS().fit((x - x.mean(axis=0)) / x.std(axis=0))
    shares = standard.shrinkage_
    inputs = inputs_of(np.column_stack([x, np.full((rows, constant), 2.0)]))
    spread = x.std(axis=0)
    off = ~np.eye(100, dtype=bool)
    expected = (standard.covariance_ * np.outer(spread, spread))[off]
    found = inputs.regular()[0, 0][:100, :100][off]
    assert 0.01 < shares < 0.95
    np.testing.assert_allclose(found / expected, np.median(found / expected), rtol=1e-5)  # one share for all
    kept = 1 - float(np.median(found / expected)) * (1 - shares)
    assert kept == pytest.approx(shares, rel=0.025)  # sklearn leaves a term of 2 / size out


def test_the_rounding_of_constants_is_no_correlation() -> None:
    x = correlated(60, 40, 0.3)
    inputs = inputs_of(np.column_stack([x, np.full((60, 20), 2.0)]))
    rounded = inputs.covariance.copy()
    rounded[:, :, 40:, 40:] += np.random.default_rng(0).uniform(-1e-7, 1e-7, (20, 20))
    found = Inputs(inputs.mean, rounded, 60).regular()[0, 0]
    np.testing.assert_allclose(found[:40, :40], inputs.regular()[0, 0][:40, :40], rtol=1e-6)


def test_shrinking_leaves_each_variance_what_it_was() -> None:
    inputs = inputs_of(correlated(10, 30, 0.2))
    covariance, regular = inputs.covariance[0, 0], inputs.regular()[0, 0]
    ridge = RIDGE * np.trace(covariance) / 30
    np.testing.assert_allclose(np.diag(regular), np.diag(covariance) + ridge, rtol=1e-9)
    off = ~np.eye(30, dtype=bool)
    assert (np.abs(regular[off]) < np.abs(covariance[off])).all()


def test_correlations_do_not_depend_on_units() -> None:
    x = correlated(25, 10, 0.3)
    scale = np.geomspace(0.1, 10, 10)
    ours, scaled = (inputs_of(v).regular()[0, 0] for v in (x, x * scale))
    off = ~np.eye(10, dtype=bool)
    np.testing.assert_allclose((scaled / np.outer(scale, scale))[off], ours[off], rtol=1e-9)


def test_second_moments_add_the_means_to_what_is_left_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    covariance = np.stack([inputs_of(correlated(40, 4, 0.5, seed)).covariance[0, 0] for seed in range(4)])
    covariance = covariance.reshape(2, 2, 4, 4)
    covariance[:, 1, 3], covariance[:, 1, :, 3] = 0, 0  # filled up
    inputs = Inputs(rng.normal(size=(2, 7)), covariance, 40)
    for group, mean in enumerate(inputs.mean):
        for block, part in enumerate((mean[:4], np.r_[mean[4:], 0])):
            added = inputs.regular(False)[group, block] - inputs.regular()[group, block]
            np.testing.assert_allclose(added, np.outer(part, part), atol=1e-12)


def test_each_group_and_block_shrinks_by_itself() -> None:
    parts = [inputs_of(correlated(30, 8, share, seed)) for share, seed in ((0.1, 1), (0.5, 2), (0.9, 3), (0.3, 4))]
    covariance = np.stack([p.covariance[0, 0] for p in parts]).reshape(2, 2, 8, 8)
    together = Inputs(np.zeros((2, 16)), covariance, 30).regular().reshape(4, 8, 8)
    for found, part in zip(together, parts, strict=True):
        np.testing.assert_allclose(found, part.regular()[0, 0], rtol=1e-12)
