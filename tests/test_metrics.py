"""Costs of plans by counting, against files and networks that were really cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import onnx
import oracle
import pytest
from nets import NETS
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune import CompressSettings, channels, metrics, model, models, plan, runtime, surgery
from onnxprune.plan import whole


def analysed(proto: ModelProto) -> channels.Channels:
    return channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> channels.Channels:
    path = tmp_path_factory.mktemp("metrics") / "net.onnx"
    models.export("cifar_resnet20", path)
    return channels.find_channels(model.load(path, runtime.evaluate))


def test_many_plans_at_once_cost_what_each_costs_alone(resnet: channels.Channels) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, np.asarray(oracle.widths(resnet)) + 1, (40, len(resnet.groups)))
    costs = metrics.Costs(resnet)
    together = costs.of(counts)
    assert set(together) == set(metrics.METRICS)
    for name, values in together.items():
        np.testing.assert_array_equal(values, np.concatenate([costs.of(row)[name] for row in counts]))


def test_a_table_of_plans_is_costed_in_parts(resnet: channels.Channels, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(0).integers(1, 16, (50, len(resnet.groups)))
    costs = metrics.Costs(resnet)
    expected = dict(costs.of(counts))
    monkeypatch.setattr(metrics, "CHUNK", 1)
    for name, values in costs.of(counts).items():
        np.testing.assert_array_equal(values, expected[name])


def test_a_cost_that_nobody_looks_at_is_not_computed_and_one_looked_at_only_once(resnet: channels.Channels) -> None:
    asked, costs = list[int](), metrics.Costs(resnet)

    def slow(counts: metrics.Floats) -> metrics.Floats:
        asked.append(len(counts))
        return np.zeros(len(counts))

    costs.predicted["slow"] = slow
    found = costs.of(np.ones((3, len(resnet.groups))))
    assert list(found) == [*metrics.METRICS, "slow"]
    assert found["macs"].shape == (3,)
    assert not asked
    assert found["slow"].tolist() == found["slow"].tolist() == [0, 0, 0]
    assert asked == [3]


def test_a_fraction_of_a_channel_costs_a_fraction(resnet: channels.Channels) -> None:
    full = np.asarray(oracle.widths(resnet), float)
    changed = np.stack([full - [step / 4 if group == 3 else 0 for group in range(len(full))] for step in range(5)])
    for values in metrics.Costs(resnet).of(changed).values():
        np.testing.assert_allclose(np.diff(values), (values[-1] - values[0]) / 4)


def test_fewer_channels_never_cost_more(resnet: channels.Channels) -> None:
    full = np.asarray(oracle.widths(resnet), float)
    table = np.stack([np.maximum(full * share, 1) for share in np.linspace(0.1, 1, 10)])
    for name, values in metrics.Costs(resnet).of(table).items():
        assert (np.diff(values) >= 0).all(), name
        assert values[0] < values[-1], name


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
def test_predicted_bytes_are_those_of_the_file_to_two_percent_of_the_original(
    resnet: channels.Channels, share: float, tmp_path: Path
) -> None:
    kept = oracle.even_plan(resnet, share)
    model.save(surgery.cut(resnet, kept, runtime.evaluate), tmp_path / "small.onnx", tmp_path)
    original, predicted = metrics.Costs(resnet).of([oracle.widths(resnet), kept.counts])["file_bytes"]
    assert abs(predicted - (tmp_path / "small.onnx").stat().st_size) < 0.02 * original


def test_params_of_the_zoo_are_those_of_the_registry(resnet: channels.Channels) -> None:
    graph = resnet.model.proto.graph
    biases = [resnet.model.shapes[node.input[2]][0] for node in graph.node if node.op_type == "Conv"]
    counted = metrics.Costs(resnet).of(oracle.widths(resnet))["params"][0]
    assert counted == models.describe("cifar_resnet20").params - sum(biases)  # of scale and shift one is left, as bias


def stored_params(proto: ModelProto) -> int:
    small = ("f2", "f4", "f8", "i1", "u1")  # floats, and quantised numbers; what is wider describes shapes
    tensors = oracle.stored_by_name(proto).values()
    return sum(oracle.volume(t.dims) for t in tensors if numpy_helper.to_array(t).dtype.str[1:] in small)


@pytest.mark.parametrize("name", sorted(set(NETS) - {name for name in NETS if "shared" in name or "merged" in name}))
def test_predicted_params_are_those_of_the_cut_net(name: str) -> None:
    proto = NETS[name].build()
    found = analysed(proto)
    kept = oracle.random_plan(found, 3)
    small = surgery.cut(found, kept, runtime.evaluate)
    predicted = metrics.Costs(found).of([oracle.widths(found), kept.counts])["params"]
    added = {tensor.name for tensor in small.graph.initializer} - {tensor.name for tensor in proto.graph.initializer}
    frees = sum(oracle.volume(t.dims) for t in small.graph.initializer if t.name in added and t.data_type == 1)
    assert list(predicted) == [stored_params(proto), stored_params(small) - frees]


def one_bias_for_all(layers: int = 4, width: int = 32) -> ModelProto:
    b = nets.Builder()
    x, before, bias = b.input("N", 3, 6, 6), 3, b.positive(width)
    for _ in range(layers):
        x, before = b.relu(b.node("Conv", x, b.weight(width, before, 1, 1), bias)), width
    return b.done(b.head(x, width))


def norms_of_equal_numbers() -> ModelProto:
    b = nets.Builder()
    vectors = [b.positive(16) for _ in range(4)]
    x = b.node("Conv", b.input("N", 3, 6, 6), b.weight(16, 3, 1, 1))
    for _ in range(2):
        x = b.relu(b.node("BatchNormalization", x, *vectors))
        x = b.node("Conv", x, b.weight(16, 16, 1, 1))
    return b.done(b.head(b.relu(b.node("BatchNormalization", x, *vectors)), 16))


SHARING = [one_bias_for_all, norms_of_equal_numbers, nets.merged_biases]


@pytest.mark.parametrize("build", SHARING, ids=lambda build: build.__name__)
def test_each_copy_that_a_shared_parameter_becomes_is_counted(build: Callable[[], ModelProto]) -> None:
    proto = build()
    found = analysed(proto)
    costs = metrics.Costs(found)
    assert costs.of(oracle.widths(found))["params"][0] == stored_params(proto)
    for seed in range(5):
        kept = oracle.random_plan(found, seed)
        small = surgery.cut(found, kept, runtime.evaluate)
        masks = {g.tobytes() for g in kept.kept}
        predicted = costs.of(kept.counts)["params"][0]
        assert predicted >= stored_params(small)
        assert predicted == stored_params(small) or len(masks) < len(kept.kept)


def test_nodes_that_lose_nothing_go_on_sharing_one_tensor() -> None:
    proto = one_bias_for_all()
    found = analysed(proto)
    kept = whole(found)
    kept = plan.Plan((kept.kept[0][1:], *kept.kept[1:]))
    small = surgery.cut(found, kept, runtime.evaluate)
    width = found.groups[0].width
    whole_params, counted = metrics.Costs(found).of([oracle.widths(found), kept.counts])["params"]
    assert counted == stored_params(small) == whole_params - 3 - width + (width - 1)


def test_bytes_count_the_copies_of_a_shared_parameter(tmp_path: Path) -> None:
    width = 2000
    found = analysed(one_bias_for_all(3, width))
    kept = plan.Plan(tuple(np.arange(start, width - 100 + start) for start in range(3)))
    onnx.save(surgery.cut(found, kept, runtime.evaluate), tmp_path / "small.onnx")
    predicted = metrics.Costs(found).of(kept.counts)["file_bytes"][0]
    assert abs(predicted - (tmp_path / "small.onnx").stat().st_size) < 4 * width


def test_a_target_for_parameters_is_met_though_copies_are_made(tmp_path: Path) -> None:
    proto = one_bias_for_all(4, 64)
    onnx.save(proto, tmp_path / "net.onnx")
    asked = CompressSettings({"params": "0.1"}, align=1, criterion="random", verify="fast")
    report = onnxprune.compress(tmp_path / "net.onnx", tmp_path / "small.onnx", asked)
    assert report.after.params == stored_params(onnx.load(tmp_path / "small.onnx")) <= 0.1 * stored_params(proto)


@pytest.mark.parametrize(("share", "is_met"), [("0.6", False), ("0.71", True)])
def test_what_a_repair_gives_to_layers_that_shared_it_is_counted(share: str, is_met: bool, tmp_path: Path) -> None:
    b = nets.Builder()
    x, bias = b.stem(32), b.positive(64)
    layers = [b.relu(b.conv(x, 32, 32)) for _ in range(4)]
    proto = b.done(*(b.node("Conv", layer, b.weight(64, 32, 1, 1), bias) for layer in layers))
    onnx.save(proto, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 3, 6, 6)).astype(np.float32))
    asked = CompressSettings({"params": share}, align=1 if not is_met else 8, search="uniform")
    report = onnxprune.compress(tmp_path / "net.onnx", tmp_path / "small.onnx", asked, data=tmp_path / "x.npy")
    counted = stored_params(onnx.load(tmp_path / "small.onnx"))
    assert report.after.params == report.target["params"]["reached"] == counted
    assert (counted <= report.target["params"]["limit"]) == is_met
    assert any("have their own since the repair, 192 in all" in note for note in report.notes)
    assert any("the target for parameters is missed" in note for note in report.notes) != is_met


def small_sizes(proto: ModelProto) -> set[str]:
    """Name the results of shape arithmetic: a few bytes each, which nobody needs to count."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    return {name for name in oracle.from_sizes(proto) if makers[name].op_type != "ConstantOfShape"}


def most_alive(proto: ModelProto, feed: oracle.Values) -> int:
    """Walk through a network node by node, and find the most bytes that are held at once."""
    skipped = small_sizes(proto) | set(oracle.aliases(proto))
    made = [name for node in proto.graph.node for name in node.output if name and name not in skipped]
    results = oracle.run_model(oracle.with_outputs(proto, made), feed)
    held = {name: value.nbytes for name, value in feed.items()}
    large = held | {name: np.asarray(value).nbytes for name, value in zip(made, results, strict=True)}
    outputs = {value.name for value in proto.graph.output}
    most = 0
    for step, node in enumerate(proto.graph.node):
        held |= {name: large[name] for name in node.output if name in large}
        most = max(most, sum(held.values()))
        later = {name for after in proto.graph.node[step + 1 :] for name in after.input}
        held = {name: size for name, size in held.items() if name in later or name in outputs}
    return most


@pytest.mark.parametrize("name", sorted(NETS))
def test_predicted_activation_bytes_are_the_most_that_is_alive(name: str) -> None:
    proto = NETS[name].build()
    found = analysed(proto)
    costs = metrics.Costs(found)
    feed = oracle.random_feeds(proto, found.model.bound, 0)[0]
    for kept in (whole(found), oracle.even_plan(found, 0.5)):
        alive = most_alive(surgery.cut(found, kept, runtime.evaluate), feed)
        assert 0 <= costs.of(kept.counts)["activation_bytes"][0] - alive <= 32 * len(small_sizes(proto))


@pytest.mark.parametrize("name", NETS)
def test_the_macs_of_the_nodes_add_up_to_those_of_the_net(name: str) -> None:
    found = analysed(NETS[name].build())
    costs = metrics.Costs(found)
    nodes = costs.per_node()
    assert sum(entry.macs for entry in nodes) == round(costs.of(oracle.widths(found))["macs"][0])
    assert len({entry.node for entry in nodes}) == len(nodes)


def test_layers_that_cannot_shrink_are_told_with_what_holds_them() -> None:
    proto = nets.softmax_over_channels()
    found = analysed(proto)
    first, second, last = metrics.Costs(found).per_node()
    assert (first.is_free, found.reasons[first.reason].text) == (False, "it sums over this axis")
    assert (second.is_free, second.reason) == (True, -1)
    assert last.is_free
    assert found.reasons[last.reason].text == f"model output {proto.graph.output[0].name!r}"


def test_operators_that_cannot_be_counted_are_named() -> None:
    assert metrics.Costs(analysed(nets.operator_of_another_domain())).uncounted() == ["com.microsoft.ExpandDims"]
    assert metrics.Costs(analysed(nets.residual())).uncounted() == []


def test_counting_needs_no_numbers(tmp_path: Path) -> None:
    proto = nets.residual()
    onnx.save(proto, tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.data")
    (tmp_path / "net.data").write_bytes(b"")
    found = channels.find_channels(model.load(tmp_path / "net.onnx", runtime.evaluate))
    expected = metrics.Costs(analysed(nets.residual())).of([6, 8])
    for name, values in metrics.Costs(found).of([6, 8]).items():
        tolerance = {"file_bytes": 0.1}.get(name, 0)
        assert values == pytest.approx(expected[name], rel=tolerance), name
