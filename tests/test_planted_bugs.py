"""The oracle is only worth what it catches: rules and surgery are made wrong on purpose, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import oracle
import pytest
from nets import MODES, NETS

from onnxprune import balancing, channels, model, plan, regrouping, runtime, surgery
from onnxprune.ops import (
    RULES,
    conv,
    elementwise,
    layout,
    linear,
    normalization,
    quantization,
    reduction,
    slicing,
)
from onnxprune.ops.factors import Factor, Place
from onnxprune.ops.rule import Atoms, Axes, Balance, Resize, Ties, View
from onnxprune.ops.shuffle import Shuffle
from onnxprune.surgery import _Cut

Patch = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, tuple[Patch, str, str]] = {}


def bug(caught_by: str, mode: str = "default") -> Callable[[Patch], Patch]:
    """Enter a bug in the table, with the net that shows it, and what has to be asked for."""

    def enter(patch: Patch) -> Patch:
        BUGS[patch.__name__] = (patch, caught_by, mode)
        return patch

    return enter


def leave_as_it_is(*_: Any) -> None:
    """Rewrite nothing."""


# ------------------------------------------------------------------------------------------------ wrong ties


@bug("concat")
def concat_ties_its_inputs_in_reverse(patch: pytest.MonkeyPatch) -> None:
    def ties(self: slicing.Concat, node: Ties) -> None:
        y, start = node.y, 0
        for x in reversed(node.inputs):
            assert x is not None
            for other in (0, 2, 3):
                node.tie(x[other], y[other])
            node.tie(x[1], y[1][start : start + x.shape[1]])
            start += x.shape[1]

    patch.setattr(slicing.Concat, "ties", ties)


@bug("flatten")
def flatten_counts_channels_last(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(regrouping, "index_of", lambda place, factor, axis: np.arange(len(axis)) % factor.size)


@bug("residual")
def sums_leave_their_operands_alone(patch: pytest.MonkeyPatch) -> None:
    tie_all = elementwise.tie_broadcast

    def tie_first(node: Ties, inputs: Sequence[Axes], y: Axes, *rest: Any, **options: Any) -> None:
        tie_all(node, inputs[:1], y, *rest, **options)
        for x in inputs[1:]:
            for axis in range(len(x)):
                node.free(x[axis])

    patch.setattr(elementwise, "tie_broadcast", tie_first)


@bug("batch_norm")
def the_variance_of_a_batch_norm_is_free(patch: pytest.MonkeyPatch) -> None:
    def ties(self: normalization.BatchNormalization, node: Ties) -> None:
        for axis in range(len(node.y)):
            node.tie(node.x[axis], node.y[axis])
        for position in (1, 2, 3):
            node.tie(node.input(position)[0], node.y[1])

    patch.setattr(normalization.BatchNormalization, "ties", ties)


@bug("grouped_conv")
def a_grouped_convolution_ties_one_channel_a_group(patch: pytest.MonkeyPatch) -> None:
    def tie_blocks(node: Ties, left: Atoms, right: Atoms, blocks: int) -> None:
        node.tie(left.reshape(blocks, -1)[:, 0], right.reshape(blocks, -1)[:, 0])
        node.free(left)
        node.free(right)

    patch.setattr(conv, "tie_blocks", tie_blocks)


@bug("gather_other_order")
def a_gather_ties_in_order(patch: pytest.MonkeyPatch) -> None:
    def ties(self: slicing.Gather, node: Ties) -> None:
        for axis in range(len(node.y)):
            node.tie(node.x[axis], node.y[axis])

    patch.setattr(slicing.Gather, "ties", ties)


@bug("gated_halves")
def a_split_ties_every_part_to_the_front(patch: pytest.MonkeyPatch) -> None:
    def ties(self: slicing.Split, node: Ties) -> None:
        for y in node.outputs:
            assert y is not None
            for axis in (0, 2, 3):
                node.tie(node.x[axis], y[axis])
            node.tie(node.x[1][: y.shape[1]], y[1])
        node.free(node.x[1])

    patch.setattr(slicing.Split, "ties", ties)


@bug("softmax_over_channels")
def a_softmax_lets_its_axis_go(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, "Softmax", RULES["Relu"])


@bug("operator_without_a_rule")
def an_unknown_operator_is_taken_as_element_wise(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, "own.Shares", RULES["Relu"])


# ------------------------------------------------------------------------- shuffles and split axes


@bug("shuffled")
def a_shuffle_goes_the_other_way(patch: pytest.MonkeyPatch) -> None:
    def ties(self: Shuffle, node: Ties) -> None:
        for axis in range(len(node.x)):
            atoms = node.x[axis]
            node.tie(atoms[np.argsort(self.order)] if axis == self.axis else atoms, node.y[axis])

    patch.setattr(Shuffle, "ties", ties)


@bug("shuffled")
def a_shuffle_ties_every_channel_to_its_own_place(patch: pytest.MonkeyPatch) -> None:
    def ties(self: Shuffle, node: Ties) -> None:
        for axis in range(len(node.x)):
            node.tie(node.x[axis], node.y[axis])

    patch.setattr(Shuffle, "ties", ties)


@bug("shuffled")
def what_is_left_of_a_shuffle_keeps_its_old_numbers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shuffle, "order_of", lambda self, kept: self.order[kept[self.order]])


@bug("shuffled_three_times")
def what_is_left_of_a_shuffle_is_left_in_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shuffle, "order_of", lambda self, kept: np.arange(kept.sum()))


@bug("shuffled")
def what_is_left_of_a_shuffle_is_split_as_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shuffle, "split_for", lambda self, order: self.split)


@bug("packed_attention_by_part_and_head")
def keys_and_values_lose_other_heads_than_queries(patch: pytest.MonkeyPatch) -> None:
    def index_of(place: Place, factor: Factor, axis: Atoms) -> Any:
        index = np.arange(len(axis))
        return (index // place.inner + index // (place.inner * factor.size)) % factor.size

    patch.setattr(regrouping, "index_of", index_of)


# --------------------------------------------------------------------------- the inside of groups


@bug("shuffled_between_two_groups")
def channels_are_bundled_as_one_layer_needs_them(patch: pytest.MonkeyPatch) -> None:
    def bundles(cluster: Sequence[Balance], label: Any, *_: Any) -> list[Any]:
        return [np.unique(column) for column in label[cluster[0].blocks].T]

    patch.setattr(balancing, "_bundles", bundles)


@bug("two_groups")
def nothing_is_bundled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(balancing, "_bundles", lambda cluster, label, *_: np.unique(label[cluster[0].blocks])[:, None])


@bug("two_groups")
def every_group_of_a_weight_loses_the_slots_of_the_first(patch: pytest.MonkeyPatch) -> None:
    right = plan.kept_slots

    def wrong(*arguments: Any) -> Any:
        kept = right(*arguments)
        return None if kept is None else np.repeat(kept[:1], len(kept), axis=0)

    for module in (plan, surgery):
        patch.setattr(module, "kept_slots", wrong)


@bug("two_groups")
def the_slots_of_a_weight_are_not_those_of_the_plan(patch: pytest.MonkeyPatch) -> None:
    right = surgery.kept_slots

    def wrong(*arguments: Any) -> Any:
        kept = right(*arguments)
        return None if kept is None else kept[::-1]

    patch.setattr(surgery, "kept_slots", wrong)


@bug("group_norm")
def a_group_norm_ties_one_channel_a_group(patch: pytest.MonkeyPatch) -> None:
    def tie_blocks(node: Ties, left: Atoms, right: Atoms, blocks: int) -> None:
        node.tie(left.reshape(blocks, -1)[:, 0], right.reshape(blocks, -1)[:, 0])
        node.tie(left, right)

    patch.setattr(normalization, "tie_blocks", tie_blocks)


# ----------------------------------------------------------------------- sums that nothing zeroes


@bug("products_of_what_is_not_zero")
def a_product_of_two_activations_takes_everything_for_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ties, "is_zero", lambda self, atoms: True)


@bug("products_by_einsum_of_what_is_not_zero")
def an_einsum_takes_everything_for_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ties, "is_zero", lambda self, atoms: True)


@bug("reduce_over_channels_that_are_not_zero")
def a_sum_lets_its_axis_go_whatever_lies_there(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reduction.ReduceSum, "_reduced", lambda self, node, atoms: node.free(atoms))


@bug("linear_attention", "slots")
def an_addition_makes_zero_of_zero_and_anything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(elementwise.Sum, "zero_operands", slice(0, 1))


@bug("products_of_what_is_not_zero")
def a_sigmoid_makes_zero_of_zero(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(RULES, "Sigmoid", RULES["Relu"])


@bug("attention_of_heads_normalised_by_one_scale", "both")
def a_norm_makes_zero_of_anything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(normalization, "vanishes", lambda *_: True)


@bug("attention")
def a_product_of_two_activations_ties_its_heads_in_reverse(patch: pytest.MonkeyPatch) -> None:
    def tie(node: Ties, inputs: Sequence[Axes], y: Axes, **_: Any) -> None:
        for axis in (0, 1):
            node.tie(inputs[0][axis], y[axis])
            node.tie(inputs[1][axis][::-1], y[axis])

    right = linear.tie_broadcast
    patch.setattr(linear, "tie_broadcast", lambda n, i, y, **o: (tie if min(map(len, i)) == 4 else right)(n, i, y, **o))


@bug("attention_by_einsum")
def an_einsum_ties_its_second_operand_in_reverse(patch: pytest.MonkeyPatch) -> None:
    right = linear.contract
    patch.setattr(linear, "contract", lambda node, one, two, *rest: right(node, one, two[::-1], *rest))


@bug("attention_scaled_by_its_size", "slots")
def the_scale_of_attention_follows_the_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Cut, "_keep_value", leave_as_it_is)


# --------------------------------------------------------------------------------------- averages


@bug("layer_norm")
def a_layer_norm_averages_over_less_though_nobody_allowed_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ties, "approximate", lambda self, atoms, why: self.free(atoms))


@bug("layer_norm", "approximate")
def channels_that_are_averaged_over_are_not_marked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ties, "approximate", lambda self, atoms, why: self.free(atoms))


@bug("layer_norm_written_out", "approximate")
def a_mean_becomes_a_sum(patch: pytest.MonkeyPatch) -> None:
    right = _Cut._node

    def wrong(self: _Cut, node: Any) -> Any:
        proto = right(self, node)
        if proto.op_type == "ReduceMean":
            proto = onnx.NodeProto.FromString(proto.SerializeToString())
            proto.op_type = "ReduceL1"
        return proto

    patch.setattr(_Cut, "_node", wrong)


@bug("quantised_weights")
def quantised_weights_are_tied_to_no_zero_points(patch: pytest.MonkeyPatch) -> None:
    def tie_parameter(node: Ties, position: int, atoms: Atoms) -> None:
        node.tie(atoms[::-1], node.input(position)[0]) if len(node.input(position)) else None

    patch.setattr(quantization, "tie_parameter", tie_parameter)


# ---------------------------------------------------------------------------------------------- wrong sizes


@bug("pad_channels")
def a_pad_keeps_its_amounts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slicing.Pad, "resize", leave_as_it_is)


@bug("slice_by_input")
def a_slice_keeps_its_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slicing.Slice, "resize", leave_as_it_is)


@bug("gather_other_order")
def a_gather_keeps_its_indices(patch: pytest.MonkeyPatch) -> None:
    def resize(self: slicing.Gather, node: Resize) -> None:
        indices = node.value(1)
        assert indices is not None
        node.set_value(1, np.arange(node.size(node.y[1])))

    patch.setattr(slicing.Gather, "resize", resize)


@bug("split_by_input")
def a_split_keeps_its_sizes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(slicing.Split, "resize", leave_as_it_is)


@bug("depthwise_conv")
def a_convolution_keeps_its_groups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(conv.Conv, "resize", leave_as_it_is)


@bug("reshape_keeps_channels")
def a_reshape_keeps_its_target(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout.Reshape, "resize", leave_as_it_is)


@bug("size_as_a_number")
def a_size_used_as_a_number_follows_the_cut(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Cut, "_keep_value", leave_as_it_is)


@bug("channels_times_batch_as_a_number")
def a_computed_size_is_written_down_for_batch_1(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_Cut, "_varying", lambda self: set())


# ------------------------------------------------------------------------------- wrong numbers and texts


@bug("plain_conv")
def the_wrong_slices_are_kept(patch: pytest.MonkeyPatch) -> None:
    right = _Cut._slice

    def wrong(self: _Cut, values: Any, axes: Axes) -> Any:
        result = right(self, values, axes)
        return result if result.shape == values.shape or values.ndim < 2 else np.roll(result, 1, 0)

    patch.setattr(_Cut, "_slice", wrong)


@bug("merged_biases")
def a_shared_parameter_is_sliced_for_its_first_reader(patch: pytest.MonkeyPatch) -> None:
    right = _Cut._slice_shared
    patch.setattr(_Cut, "_slice_shared", lambda self, name, readers: right(self, name, readers[:1]))


@bug("conv_transpose")
def a_transposed_convolution_is_counted_like_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(conv.ConvTranspose, "macs", conv.Conv.macs)


@bug("gemm_weight_first")
def the_contracted_axis_is_mistaken_in_counting(patch: pytest.MonkeyPatch) -> None:
    def macs(self: linear.Gemm, node: View) -> list[list[tuple[Axes, int]]]:
        return [[(node.y, 1), (node.y, 0), (node.x, 1)]]

    patch.setattr(linear.Gemm, "macs", macs)


@bug("inverted_residual")
def weights_that_lose_nothing_are_written_anew(patch: pytest.MonkeyPatch) -> None:
    right = _Cut._slice_stored

    def wrong(self: _Cut) -> None:
        right(self)
        name = self.model.proto.graph.node[-1].input[2]
        self.replaced[name] = self.model.array(name) + np.float32(1e-7)

    patch.setattr(_Cut, "_slice_stored", wrong)


@bug("merged_biases")
def nodes_lose_their_names(patch: pytest.MonkeyPatch) -> None:
    right = _Cut._node

    def wrong(self: _Cut, node: Any) -> Any:
        proto = right(self, node)
        if id(node) in self.changed:
            proto.name = ""
        return proto

    patch.setattr(_Cut, "_node", wrong)


@bug("channels_last_island")
def outputs_lose_their_free_batch(patch: pytest.MonkeyPatch) -> None:
    right = _Cut._export

    def wrong(self: _Cut) -> Any:
        proto = right(self)
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
        return proto

    patch.setattr(_Cut, "_export", wrong)


@pytest.mark.parametrize("name", BUGS)
def test_the_oracle_catches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, net, mode = BUGS[name]
    proto = NETS[net].build()
    plans = range(5)
    for seed in plans:
        oracle.check(proto, seed=seed, **MODES[mode])
    plant(monkeypatch)
    caught = 0
    for seed in plans:
        try:
            oracle.check(proto, seed=seed, **MODES[mode])
        except (AssertionError, ValueError):  # ValueError: groups of unequal size cannot even be cut
            caught += 1
    assert caught > len(plans) / 2


def test_the_oracle_catches_an_original_that_is_changed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    right = surgery.cut

    def wrong(found: channels.Channels, *rest: Any) -> Any:
        found.model.proto.graph.doc_string = "cut"
        return right(found, *rest)

    monkeypatch.setattr(surgery, "cut", wrong)
    with pytest.raises(AssertionError, match="the original was changed"):
        oracle.check(nets.residual())


def test_ties_in_a_wrong_order_do_not_show_in_the_widths_but_in_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ties(self: normalization.BatchNormalization, node: Ties) -> None:
        for axis in range(len(node.y)):
            node.tie(node.x[axis], node.y[axis])
        for position in range(1, 5):
            node.tie(np.roll(node.input(position)[0], position), node.y[1])

    monkeypatch.setattr(normalization.BatchNormalization, "ties", ties)
    found = channels.find_channels(model.analyse(nets.batch_norm(), Path(), runtime.evaluate, {}))
    assert sorted(oracle.widths(found)) == [6, 8]  # each vector has one reader: no width tells that its order is wrong
    with pytest.raises(AssertionError, match="off by"):
        oracle.check(nets.batch_norm())
