"""The multi-stage graph: what it is made of, what repeats in it, and what it must not depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from nets import MODES, NETS, Builder
from onnx import ModelProto

from onnxprune import channels, metrics, model, models, runtime
from onnxprune.blocks import FAMILIES, LARGE, family_of
from onnxprune.groups import EXTRA, GROUP_EDGE_FEATURES, GROUP_FEATURES
from onnxprune.ops import RULES
from onnxprune.stages import (
    OPERATION_FEATURES,
    PRIMITIVE_EDGE_FEATURES,
    PRIMITIVE_FEATURES,
    TENSOR_FEATURES,
    Stage,
    Stages,
)

Array = npt.NDArray[Any]
CORPUS = Path(__file__).parents[1].parent / "shared" / "onnx"
WIDTHS = {
    "primitive": (len(PRIMITIVE_FEATURES), len(PRIMITIVE_EDGE_FEATURES)),
    "operation": (len(TENSOR_FEATURES), len(OPERATION_FEATURES)),
    "group": (len(GROUP_FEATURES), len(GROUP_EDGE_FEATURES)),
}


def analysed(proto: ModelProto, **mode: Any) -> channels.Channels:
    return channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}), **mode)


def staged(proto: ModelProto, importance: Sequence[Array] = (), **mode: Any) -> Stages:
    found = analysed(proto, **mode)
    return Stages(found, metrics.Costs(found), importance)


def widths(stages: Stages) -> Array:
    return np.asarray([group.width for group in stages.channels.groups], np.int64)


def some_counts(stages: Stages) -> list[Array]:
    """The network whole, cut at random, cut to the least, and without any channels."""
    full = widths(stages)
    some = np.random.default_rng(0).integers(1, full + 1) if len(full) else full
    return [full, some, np.minimum(full, 1), full * 0]


def column(stage: Stage, name: str) -> Array:
    names = {"group": GROUP_FEATURES, "operation": TENSOR_FEATURES, "primitive": PRIMITIVE_FEATURES}[stage.name]
    return np.asarray(stage.nodes[:, names.index(name)], np.float64)


def families(stages: Stages) -> list[list[str]]:
    """The families of the operations of each block."""
    found: list[list[str]] = [[] for _ in range(stages.blocks.count)]
    for operation, block in zip(stages.blocks.operations, stages.blocks.block, strict=True):
        found[block].append(operation.family)
    return found


def check(drawn: Sequence[Stage]) -> None:
    """Make sure that stages are what their type promises."""
    before = 0
    for stage in drawn:
        nodes, edges = len(stage.nodes), stage.edges.shape[1]
        assert stage.nodes.shape == (nodes, WIDTHS[stage.name][0])
        assert stage.features.shape == (edges, WIDTHS[stage.name][1])
        assert stage.nodes.dtype == stage.features.dtype == np.float32
        assert stage.edges.dtype == stage.part.dtype == stage.graph.dtype == np.int64
        for features in (stage.nodes, stage.features):
            assert np.isfinite(features).all()
            assert np.abs(features).max(initial=0) < 4
        assert stage.edges.shape[0] == 2
        assert ((stage.edges >= 0) & (stage.edges < max(nodes, 1))).all()
        assert (stage.graph[stage.edges[0]] == stage.graph[stage.edges[1]]).all()
        assert stage.part.shape == (edges,)
        assert ((stage.part >= -1) & (stage.part < before)).all()
        assert stage.graph.shape == (nodes,)
        if nodes:
            np.testing.assert_array_equal(np.unique(stage.graph), np.arange(stage.count))
        before = stage.count
    used = drawn[1].part
    np.testing.assert_array_equal(np.unique(used[used >= 0]), np.arange(drawn[0].count))


CASES = [pytest.param(name, mode, id=f"{name}-{mode}") for name, net in NETS.items() for mode in net.modes]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_every_network_has_stages_and_they_count_as_costs_do(name: str, mode: str) -> None:
    stages = staged(NETS[name].build(), **MODES[mode])
    costs = metrics.Costs(stages.channels)
    for counts in some_counts(stages):
        check(stages.at(counts))
        extent, now = stages.extents.of(counts), costs.of(counts)
        places = {operation.node for operation in stages.blocks.operations}
        if all(node.node in places for node in costs.per_node()):
            np.testing.assert_allclose(extent.macs.sum(), now["macs"][0])
        rows = np.tile(counts, (len(counts), 1))
        np.fill_diagonal(rows, 0)
        if len(counts):
            without = costs.of(rows)
            np.testing.assert_allclose(extent.group_macs, now["macs"][0] - without["macs"], atol=1e-6)
            gone = now["params"][0] - without["params"]
            assert (extent.group_params >= gone - 1e-6).all()
            if not stages.channels.readers:  # else they count for each reader, also where a copy comes into being
                np.testing.assert_allclose(extent.group_params, gone, atol=1e-6)
            less = costs.of(rows * 0 + counts - np.diag(np.minimum(counts, 1)))
            np.testing.assert_allclose(extent.next_macs, now["macs"][0] - less["macs"], atol=1e-6)


@pytest.mark.shared
@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.onnx")), ids=lambda file: file.stem)
@pytest.mark.filterwarnings("ignore")
def test_models_from_elsewhere_have_stages(file: Path) -> None:
    try:
        found = channels.find_channels(model.load(file, runtime.evaluate))
    except channels.InputError as error:
        pytest.skip(str(error))
    stages = Stages(found, metrics.Costs(found))
    for counts in some_counts(stages):
        check(stages.at(counts))


# ------------------------------------------------------------------------------------------- whole networks


def exported(name: str, folder: Path) -> Stages:
    models.export(name, folder / f"{name}.onnx")
    found = channels.find_channels(model.load(folder / f"{name}.onnx", runtime.evaluate))
    return Stages(found, metrics.Costs(found))


@pytest.fixture(scope="module")
def resnet56(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return exported("cifar_resnet56", tmp_path_factory.mktemp("stages"))


def test_resnet56_has_a_handful_of_unlike_blocks(resnet56: Stages) -> None:
    motifs = resnet56.motifs()
    stem, first, second, third, last = 0, 1, 3, 5, 6
    middle = [first] * 9 + [2] + [second] * 8 + [4] + [third] * 7  # 2 and 4 halve the map
    assert motifs.tolist() == [stem, *middle, last, 7]
    assert resnet56.at()[1].count == 8
    assert families(resnet56)[1] == ["conv", "elementwise", "conv", "add", "elementwise"]
    assert families(resnet56)[-1] == ["product"]


def test_a_cut_splits_a_motif_where_it_cuts_and_nowhere_else(resnet56: Stages) -> None:
    counts = widths(resnet56)
    counts[[2, 4]] = 12  # what the second and the fourth block have inside
    before, after = resnet56.motifs(), resnet56.motifs(counts)
    assert resnet56.channels.groups[2].name.startswith("/layer1/layer1.1/")
    assert after[2] == after[4] != after[1]
    assert len(np.unique(after)) == len(np.unique(before)) + 1
    others = np.delete(np.arange(len(before)), [2, 4])
    alike = before[others][:, None] == before[others]
    np.testing.assert_array_equal(after[others][:, None] == after[others], alike)


@pytest.mark.parametrize(
    ("name", "blocks", "motifs"), [("mobilenet_v2_cifar", 33, 28), ("shufflenet_v1_g3_cifar", 18, 9), ("unet", 16, 15)]
)
def test_networks_of_the_zoo_fall_into_blocks(name: str, blocks: int, motifs: int, tmp_path: Path) -> None:
    stages = exported(name, tmp_path)
    assert (stages.blocks.count, stages.at()[1].count) == (blocks, motifs)
    for counts in some_counts(stages):
        check(stages.at(counts))


def test_a_vit_has_two_kinds_of_blocks_beside_its_ends(tmp_path: Path) -> None:
    assert exported("vit_tiny_cifar", tmp_path).motifs().tolist() == [0, *[1, 2] * 5, 1, 3, 4]


# ------------------------------------------------------------------------------------------- blocks


def bottleneck(b: Builder, x: str, inside: int = 4, kernel: int = 3, act: str = "Relu", size: int = 8) -> str:
    y = b.node(act, b.conv(x, size, inside))
    y = b.conv(y, inside, size, kernel, kernel, pads=[kernel // 2] * 4)
    return b.relu(b.node("Add", x, y))


def tower(*kernels: int, inside: int = 4, act: str = "Relu") -> ModelProto:
    """A stem and residual blocks."""
    b = Builder()
    x = b.stem(8)
    for kernel in kernels:
        x = bottleneck(b, x, inside, kernel, act)
    return b.done(b.head(x, 8))


def test_blocks_that_differ_in_names_and_weights_alone_are_alike() -> None:
    assert staged(tower(3, 3, 3)).motifs().tolist() == [0, 1, 1, 2, 3]  # the last one is pooled as well


def test_what_repeats_is_drawn_once() -> None:
    short, long = staged(tower(3, 3)).at(), staged(tower(*[3] * 9)).at()
    for before, after in zip(short[:2], long[:2], strict=True):
        assert (before.count, len(before.nodes), before.edges.shape) == (
            after.count,
            len(after.nodes),
            after.edges.shape,
        )


def test_a_block_with_another_kernel_is_another() -> None:
    assert staged(tower(3, 1, 3, 1, 3)).motifs().tolist() == [0, 1, 2, 1, 2, 3, 4]


def test_blocks_of_the_same_parts_in_another_order_are_unlike() -> None:
    b = Builder()
    x = b.stem(8)
    for first, second in ((1, 3), (3, 1), (1, 3)):
        y = b.relu(b.conv(x, 8, 8, first, first, pads=[first // 2] * 4))
        x = b.relu(b.node("Add", x, b.conv(y, 8, 8, second, second, pads=[second // 2] * 4)))
    motifs = staged(b.done(b.conv(x, 8, 4))).motifs().tolist()
    assert motifs == [0, 1, 2, 1, 3]


def test_in_a_chain_a_block_begins_with_each_operation_that_multiplies() -> None:
    b = Builder()
    x = b.input("N", 3, 12, 12)
    x = b.node("Sub", x, b.store([0.5]))
    for before, after in ((3, 8), (8, 8), (8, 8)):
        x = b.relu(b.norm(b.conv(x, before, after, 3, 3, pads=[1] * 4), after))
    assert families(staged(b.done(b.head(x, 8)))) == [
        ["elementwise" if name == "sub" else name for name in ("add", "conv", "norm", "elementwise")],
        ["conv", "norm", "elementwise"],
        ["conv", "norm", "elementwise", "pool", "reshape"],
        ["product"],
    ]


def masked(blocks: int) -> ModelProto:
    """Residual blocks each of which reads a second input, so that two tensors are alive all the way."""
    b = Builder()
    x, mask = b.stem(8, batch=1), b.node("Sigmoid", b.input(1, 1, 6, 6))
    for _ in range(blocks):
        y = b.node("Mul", b.conv(b.relu(b.conv(x, 8, 4)), 4, 8), mask)
        x = b.relu(b.node("Add", x, y))
    return b.done(b.head(x, 8))


def test_what_all_blocks_read_does_not_make_them_one() -> None:
    stages = staged(masked(LARGE))
    motifs = stages.motifs().tolist()
    assert len(set(motifs[1:-2])) < 4
    assert stages.blocks.count >= LARGE


def test_a_head_on_the_way_does_not_join_the_blocks_after_it() -> None:
    b = Builder()
    x = bottleneck(b, b.stem(8))
    early = b.head(b.relu(b.conv(x, 8, 6)), 6)
    for _ in range(2):
        x = bottleneck(b, x)
    proto = b.done(early, b.conv(x, 8, 4), rank=2)
    residual = ["conv", "elementwise", "conv", "add", "elementwise"]
    for seed in range(4):
        assert families(staged(shuffled(proto, seed)))[-3:] == [residual, residual, ["conv"]]


@pytest.mark.parametrize("steps", [0, 3])
def test_an_input_that_is_read_late_does_not_join_the_blocks_before(steps: int) -> None:
    b = Builder()
    x, other = b.stem(8, batch=1), b.input(1, 8, 6, 6)
    for _ in range(3):
        x = bottleneck(b, x)
    for _ in range(steps):
        other = b.node("Tanh", other)
    x = b.node("Add", x, other)
    for _ in range(2):
        x = bottleneck(b, x)
    motifs = staged(b.done(b.conv(x, 8, 4))).motifs().tolist()
    assert motifs == [0, 1, 1, 2, 1, 1, 3]


def test_small_branches_stay_in_one_block() -> None:
    b = Builder()
    x = b.stem(8)
    for _ in range(2):
        branches = [b.conv(x, 8, 4), b.relu(b.conv(b.conv(x, 8, 4), 4, 4, 3, 3, pads=[1] * 4))]
        x = b.node("Concat", *branches, axis=1)
    assert [sorted(block) for block in families(staged(b.done(b.head(x, 8))))][1] == sorted(
        ["conv", "conv", "conv", "elementwise", "concat"]
    )


def test_what_is_computed_from_sizes_or_stored_numbers_is_no_operation() -> None:
    b = Builder()
    x = b.linear_rows(b.input("N", 5, 6), 6, 8)
    size = b.node("Gather", b.node("Shape", x), b.integers(0))
    x = b.node("Reshape", x, b.node("Concat", size, b.integers(40), axis=0))
    weight = b.node("Transpose", b.weight(4, 40), perm=[1, 0])
    found = staged(b.done(b.node("MatMul", x, weight), rank=2)).blocks
    assert sorted(operation.family for operation in found.operations) == ["add", "product", "product", "reshape"]


def test_every_rule_belongs_to_a_family_and_nothing_else_does() -> None:
    class Node:
        def __init__(self, op: str, domain: str) -> None:
            self.op, self.domain = op, domain

    for name in RULES:
        domain, _, op = name.rpartition(".")
        assert family_of(Node(op, domain)) in FAMILIES[:-1], name
    assert family_of(Node("Conv", "of.strangers")) == family_of(Node("Unheard", "")) == "other"


def test_an_operation_of_many_inputs_and_outputs_has_an_edge_for_each() -> None:
    b = Builder()
    parts = b.nodes_of("Split", b.stem(8), outputs=4, axis=1)
    net = b.done(b.head(b.node("Concat", *parts, axis=1), 8))
    stages = staged(net)
    kinds = stages.at()[1].features[:, : len(FAMILIES)].sum(axis=0)
    assert kinds[FAMILIES.index("select")] == kinds[FAMILIES.index("concat")] == 4


# ------------------------------------------------------------------------------------------- what must not matter


def renamed(proto: ModelProto) -> ModelProto:
    """The same model with other names everywhere."""
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return names.setdefault(name, f"n{len(names) * 7919 % 1009}") if name else ""

    made = ModelProto()
    made.CopyFrom(proto)
    for node in made.graph.node:
        node.name = f"/{new(node.name)}"
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for value in (*made.graph.input, *made.graph.output, *made.graph.initializer):
        value.name = new(value.name)
    del made.graph.value_info[:]
    return made


def shuffled(proto: ModelProto, seed: int) -> ModelProto:
    """The same model with its nodes in another order in which they can run."""
    rng = np.random.default_rng(seed)
    made = {name for node in proto.graph.node for name in node.output}
    left = list(proto.graph.node)
    order: list[Any] = []
    known: set[str] = set()
    while left:
        ready = [node for node in left if all(name in known or name not in made for name in node.input)]
        order.append(ready[rng.integers(len(ready))])
        known.update(order[-1].output)
        left.remove(order[-1])
    result = ModelProto()
    result.CopyFrom(proto)
    del result.graph.node[:]
    result.graph.node.extend(order)
    return result


def fold(drawn: Sequence[Stage], rounds: int = 3) -> Array:
    """Embed stage after stage as a consumer would, with fixed weights, and give the embeddings of the last nodes."""
    size = 16
    below = np.zeros((1, size))
    hidden = below
    for stage in drawn:
        rng = np.random.default_rng(len(stage.name))

        def layer(before: int, rng: np.random.Generator = rng) -> Array:
            return rng.standard_normal((before, size)) / np.sqrt(before)

        features = np.concatenate([stage.features, np.where(stage.part[:, None] >= 0, below[stage.part], 0)], axis=1)
        hidden = np.tanh(stage.nodes.astype(np.float64) @ layer(stage.nodes.shape[1]))
        for _ in range(rounds):
            message = np.tanh(
                np.concatenate([hidden[stage.edges[0]], features], axis=1) @ layer(size + features.shape[1])
            )
            gathered = np.zeros_like(hidden)
            np.add.at(gathered, stage.edges[1], message)
            hidden = np.tanh(np.concatenate([hidden, gathered], axis=1) @ layer(2 * size))
        below = np.zeros((max(stage.count, 1), size))
        np.add.at(below, stage.graph, hidden)
    return hidden


def embedded(stages: Stages, counts: dict[str, int]) -> dict[str, Array]:
    names = [group.name for group in stages.channels.groups]
    kept = np.asarray([counts.get(n, w) for n, w in zip(names, widths(stages), strict=True)])
    return dict(zip(names, fold(stages.at(kept)), strict=True))


def two_heads() -> ModelProto:
    """Branches of unlike length, a head on the way, and two inputs."""
    b = Builder()
    x, other = b.stem(8, batch=1), b.input(1, 4, 6, 6)
    x = bottleneck(b, x)
    early = b.head(b.relu(b.conv(x, 8, 6)), 6)
    branches = [b.conv(x, 8, 4), b.relu(b.conv(b.relu(b.conv(x, 8, 6)), 6, 4, 3, 3, pads=[1] * 4)), b.conv(other, 4, 4)]
    x = b.node("Concat", *branches, axis=1)
    return b.done(early, b.head(bottleneck(b, x, 4, size=12), 12), rank=2)


def test_names_mean_nothing() -> None:
    proto = two_heads()
    first, second = staged(proto), staged(renamed(proto))
    for counts in some_counts(first):
        for before, after in zip(first.at(counts), second.at(counts), strict=True):
            for field in dataclasses.fields(Stage):
                np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_independent_branches_in_the_file_means_nothing(seed: int) -> None:
    first, second = staged(two_heads()), staged(shuffled(two_heads(), seed))
    for counts in ({}, {first.channels.groups[number].name: number + 1 for number in range(4)}):
        before, after = embedded(first, counts), embedded(second, counts)
        assert before.keys() == after.keys()
        for name, values in before.items():
            np.testing.assert_allclose(after[name], values, atol=1e-6, err_msg=name)
    assert first.blocks.count == second.blocks.count


def test_what_is_embedded_tells_widths_apart() -> None:
    stages = staged(two_heads())
    before = embedded(stages, {})
    after = embedded(stages, {stages.channels.groups[1].name: 2})
    assert all(np.abs(before[name] - after[name]).max() > 1e-3 for name in before)


def test_the_same_is_drawn_each_time(resnet56: Stages) -> None:
    again = Stages(resnet56.channels, metrics.Costs(resnet56.channels))
    for counts in some_counts(resnet56):
        for one in (resnet56, again):
            for before, after in zip(resnet56.at(counts), one.at(counts), strict=True):
                for field in dataclasses.fields(Stage):
                    np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))


# ------------------------------------------------------------------------------------------- primitives


def test_operations_of_the_same_numbers_are_one_primitive() -> None:
    stages = staged(tower(3, 3, 3))
    primitives, operations, _ = stages.at()
    edges = [(operation.family, operation.kernel) for operation in stages.blocks.operations]
    assert primitives.count < len(edges) / 2
    roles = np.eye(4)[np.arange(len(primitives.nodes)) % 4]
    np.testing.assert_array_equal(primitives.nodes[:, :4], roles)
    pools = operations.features[:, FAMILIES.index("reshape")] > 0
    assert (operations.part[pools] == -1).all()
    assert (operations.part[~pools] >= 0).all()


def test_a_primitive_says_how_many_channels_filters_and_terms_there_are() -> None:
    b = Builder()
    x = b.relu(b.conv(b.stem(8), 8, 16, 3, 3, group=8, pads=[1] * 4))
    stages = staged(b.done(b.head(x, 16)))
    for kept in (8, 4):
        primitives, operations, _ = stages.at([kept])
        part = operations.part[operations.features[:, FAMILIES.index("depthwise")] > 0]
        nodes = primitives.nodes[primitives.graph == part[0]]
        np.testing.assert_allclose(2 ** (4 * nodes[:, 4]), [1, kept, 2 * kept, 1], rtol=1e-5)
        edges = primitives.features[primitives.graph[primitives.edges[0]] == part[0]]
        np.testing.assert_allclose(2 ** (4 * edges[:, 0]), [1, 1, 2 * kept], rtol=1e-5)
        np.testing.assert_allclose(2 ** (3 * edges[:, 1]), [1, 9, 1], rtol=1e-5)


# ------------------------------------------------------------------------------------------- groups


def connections(stages: Stages, kind: str) -> set[tuple[str, str]]:
    """What is connected in a way, from and to, by the names of groups; drawn forth and back."""
    groups, drawn = stages.channels.groups, stages.at()[2]
    of_kind = drawn.features[:, GROUP_EDGE_FEATURES.index(kind)] > 0
    forth = drawn.features[:, GROUP_EDGE_FEATURES.index("reversed")] == 0
    found = {(groups[a].name, groups[b].name) for a, b in drawn.edges[:, of_kind & forth].T}
    back = {(groups[b].name, groups[a].name) for a, b in drawn.edges[:, of_kind & ~forth].T}
    assert back == {pair for pair in found if pair[0] != pair[1]}
    return found


def test_groups_are_connected_by_the_operations_that_read_one_and_make_the_other() -> None:
    b = Builder()
    stem = b.stem(8)
    x = b.relu(b.conv(stem, 8, 8, 3, 3, group=8, pads=[1] * 4))
    x = b.node("Concat", b.conv(x, 8, 4), b.conv(x, 8, 6), axis=1)
    stages = staged(b.done(b.head(x, 10)))
    a, c, d = (group.name for group in stages.channels.groups)
    assert [group.width for group in stages.channels.groups] == [8, 4, 6]
    assert connections(stages, "mixes") == {(a, c), (a, d)}
    assert connections(stages, "passes") == connections(stages, "from frozen") == {(a, a)}
    assert connections(stages, "into frozen") == {(c, c), (d, d)}
    assert connections(stages, "meets") == {(c, d)}
    assert connections(stages, "next") == {(a, c), (a, d)}


def test_groups_that_pass_an_operation_side_by_side_are_not_mixed_by_it() -> None:
    b = Builder()
    x = b.node("Concat", b.stem(4), b.conv(b.input("N", 3, 6, 6), 3, 6), axis=1)
    x = b.conv(x, 10, 10, 3, 3, group=10, pads=[1] * 4)
    stages = staged(b.done(b.head(x, 10)))
    a, c = (group.name for group in stages.channels.groups)
    assert connections(stages, "passes") == {(a, a), (c, c)}
    assert connections(stages, "mixes") == set()


def test_every_group_hears_of_every_other(resnet56: Stages) -> None:
    edges = resnet56.at()[2].edges
    reached = np.eye(len(widths(resnet56)), dtype=bool)
    for _ in range(len(reached)):
        reached[edges[1]] |= reached[edges[0]]
    assert reached.all()


def test_an_edge_belongs_to_the_block_of_its_operation(resnet56: Stages) -> None:
    drawn = resnet56.at()[2]
    found = resnet56.groups.operation >= 0
    block = resnet56.blocks.block[resnet56.groups.operation[found]]
    np.testing.assert_array_equal(drawn.part[found], resnet56.motifs()[block])
    assert (drawn.part[~found] == -1).all()


def test_a_group_that_shrinks_changes_what_it_shares_operations_with() -> None:
    b = Builder()
    x = b.stem(8)
    for _ in range(5):
        x = b.relu(b.conv(x, 8, 8, 3, 3, pads=[1] * 4))
    importance = [np.arange(1.0, 9) for _ in range(6)]
    stages = staged(b.done(b.head(x, 8)), importance)
    counts = widths(stages)
    counts[2] = 3
    before, after = stages.at()[2], stages.at(counts)[2]
    changed = {
        (int(group), GROUP_FEATURES[feature])
        for group, feature in zip(*np.nonzero(before.nodes != after.nodes), strict=True)
    }
    costs = {(group, name) for group in (1, 3) for name in ("macs", "params", "macs of one channel")}
    own = {"kept width", "kept share", "macs", "params", "lost worth", "next worth"}
    assert {pair for pair in changed if pair[1] != "next worth for its macs"} == costs | {(2, name) for name in own}
    moved = (before.features != after.features).any(axis=1)
    touching = [{int(a), int(b)} & {2} for a, b in before.edges.T]
    by_operation = stages.groups.operation >= 0
    np.testing.assert_array_equal(moved, np.asarray(list(map(bool, touching))) & by_operation)


def test_worths_are_seen_against_the_usual_group() -> None:
    b = Builder()
    x = b.stem(8)
    for _ in range(2):
        x = b.relu(b.conv(x, 8, 8, 3, 3, pads=[1] * 4))
    importance = [np.full(8, 1.0), np.arange(8.0) * 10, np.full(8, 100.0)]
    stages = staged(b.done(b.head(x, 8)), importance)
    drawn = stages.at([8, 6, 8])[2]
    np.testing.assert_allclose(column(drawn, "median worth"), np.log10([1 / 35, 1, 100 / 35]), rtol=1e-6)
    np.testing.assert_allclose(column(drawn, "lost worth"), [0, 10 / 280, 0], rtol=1e-6)
    np.testing.assert_allclose(column(drawn, "next worth"), np.log10([1 / 35, 20 / 35, 100 / 35]), rtol=1e-6)
    price = np.asarray([1, 20, 100]) / stages.extents.of(np.asarray([8, 6, 8])).next_macs
    np.testing.assert_allclose(column(drawn, "next worth for its macs"), np.log10(price / np.median(price)), rtol=1e-5)


@pytest.mark.parametrize("worth", [0.0, np.nan, np.inf, -1.0, 1e-300])
def test_worths_that_tell_nothing_do_no_harm(worth: float) -> None:
    proto = tower(3, 3)
    count = len(analysed(proto).groups)
    stages = staged(proto, [np.full(group.width, worth) for group in analysed(proto).groups])
    for counts in some_counts(stages):
        check(stages.at(counts))
    mixed = [np.where(np.arange(group.width) % 2, worth, 1.0) for group in analysed(proto).groups]
    check(staged(proto, mixed).at(np.ones(count)))


def test_a_caller_adds_what_it_knows() -> None:
    stages = staged(tower(3, 3))
    extra = np.random.default_rng(0).random((len(widths(stages)), EXTRA))
    drawn = stages.at(extra=extra)[2]
    for number in range(EXTRA):
        np.testing.assert_allclose(column(drawn, f"extra {number}"), extra[:, number], rtol=1e-6)
        assert not column(stages.at()[2], f"extra {number}").any()


def test_residual_streams_and_the_inside_of_blocks_are_told_apart() -> None:
    stages = staged(tower(3, 3))
    drawn = stages.at()[2]
    stream = [len(group.axes) > 5 for group in stages.channels.groups]
    np.testing.assert_array_equal(column(drawn, "residual"), stream)
    first, mean, last = (column(drawn, f"{which} place") for which in ("first", "mean", "last"))
    assert (first <= mean).all()
    assert (mean <= last).all()
    assert first[stream] == 0
    assert last[stream] == 1


def test_a_bias_that_is_added_is_no_residual_connection() -> None:
    b = Builder()
    x = b.relu(b.linear_rows(b.input("N", 5, 6), 6, 8))
    drawn = staged(b.done(b.linear_rows(x, 8, 4), rank=3)).at()[2]
    assert column(drawn, "product").tolist() == [1]
    assert column(drawn, "residual").tolist() == [0]


def test_attention_and_gates_are_noticed() -> None:
    b = Builder()
    x = b.stem(8)
    gate = b.node("Sigmoid", b.conv(b.relu(b.conv(b.node("GlobalAveragePool", x), 8, 4)), 4, 8))
    gated = staged(b.done(b.head(b.node("Mul", x, gate), 8)))
    assert column(gated.at()[2], "gated").tolist() == [1, 0]
    heads = staged(NETS["attention"].build())
    assert column(heads.at()[2], "attention").any()
