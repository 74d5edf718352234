"""What is found in a network: groups, their names, and why the rest stays."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import pytest
from nets import NETS, Builder
from onnx import ModelProto

from onnxprune import channels, model, runtime
from onnxprune.channels import FROZEN
from onnxprune.errors import InputError


def analysed(proto: ModelProto, keep: list[str] | None = None) -> channels.Channels:
    return channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}), keep or [])


def reason(found: channels.Channels, tensor: str, axis: int = 1) -> tuple[str, str]:
    """The text of the reason why an axis stays, and the operator that holds it."""
    held = found.reason(found.axes[tensor][axis])
    assert held is not None, f"{tensor} is free"
    return held.text, found.model.graph.nodes[held.node].op if held.node >= 0 else ""


def output_of(proto: ModelProto, op: str, which: int = 0) -> str:
    return str([node for node in proto.graph.node if node.op_type == op][which].output[0])


@pytest.mark.parametrize("name", NETS)
def test_the_channels_of_a_group_touch_the_same_axes_equally_often(name: str) -> None:
    found = analysed(NETS[name].build())
    seen: set[int] = set()
    for group in found.groups:
        assert group.width > 1
        assert not seen & set(group.channels)
        seen |= set(group.channels)
        for channel in group.channels:
            axes, counts = np.unique(found.axis_of[found.channel_of == channel], return_counts=True)
            np.testing.assert_array_equal(axes, group.axes)
            np.testing.assert_array_equal(counts, group.multiplicity)
    assert seen == set(range(found.count))


@pytest.mark.parametrize("name", NETS)
def test_every_atom_is_free_or_has_a_reason(name: str) -> None:
    found = analysed(NETS[name].build())
    free = found.channel_of != FROZEN
    assert np.array_equal(free, found.reason_of < 0)
    assert all(entry.text for entry in found.reasons)


@pytest.mark.parametrize("name", NETS)
def test_inputs_and_outputs_stay(name: str) -> None:
    proto = NETS[name].build()
    found = analysed(proto)
    for value in [*proto.graph.output, *(v for v in proto.graph.input if v.name in found.model.bound)]:
        if value.name in found.model.size_values:  # sizes have no atoms; what they measure stays
            continue
        axes = found.axes.get(value.name)
        assert axes is not None
        assert (found.channel_of[axes.start : axes.end] == FROZEN).all()


def test_groups_are_named_after_the_node_that_makes_their_channels_in_the_order_of_the_graph() -> None:
    names = [(group.name, group.width) for group in analysed(nets.inverted_residual()).groups]
    assert names == [("Conv_0", 8), ("Conv_2", 12), ("Conv_8", 6)]


def test_groups_of_one_node_are_numbered() -> None:
    assert [group.name for group in analysed(nets.split_by_input()).groups] == ["Conv_0", "Conv_0 #2"]


def test_a_channel_that_feeds_two_places_of_an_axis_counts_twice() -> None:
    (group,) = analysed(nets.concat_twice_the_same()).groups
    assert sorted(group.multiplicity)[-2:] == [2, 2]  # of the concatenation, and of the weight that reads it


def test_flattened_pixels_belong_to_their_channel() -> None:
    found = analysed(nets.flatten())
    assert found.groups[0].multiplicity.max() == 9


def test_a_softmax_an_input_and_an_output_are_given_as_reasons() -> None:
    proto = nets.softmax_over_channels()
    found = analysed(proto)
    assert reason(found, output_of(proto, "Conv")) == ("it sums over this axis", "Softmax")
    assert reason(found, "x") == ("model input 'x'", "")
    assert reason(found, output_of(proto, "Gemm")) == (f"model output {output_of(proto, 'Gemm')!r}", "")


def test_an_operator_without_a_rule_is_named_as_the_reason() -> None:
    proto = nets.operator_of_another_domain()
    text, op = reason(analysed(proto), output_of(proto, "Conv"))
    assert (text, op) == ("there is no rule for com.microsoft.ExpandDims", "ExpandDims")


def test_a_function_of_the_model_is_named_with_what_opens_it() -> None:
    for build, name in ((nets.operator_without_a_rule, "own.Shares"), (nets.local_function, "own.Twice")):
        proto = build()
        text, op = reason(analysed(proto), output_of(proto, "Conv"))
        opened = "which onnx.inliner.inline_local_functions opens"
        assert (text, op) == (f"{name} is a function of the model, {opened}", name.split(".")[-1])


def test_what_a_body_captures_stays() -> None:
    proto = nets.branch_captures_a_weight()
    found = analysed(proto)
    text, op = reason(found, output_of(proto, "Relu"))
    assert (text, op) == ("used inside its body", "If")


def test_channels_tied_into_one_are_no_group() -> None:
    b = Builder()
    x = b.stem(8)
    joined = b.node("Add", x, b.node("Gather", x, b.integers(1, 2, 3, 4, 5, 6, 7, 0), axis=1))
    proto = b.done(b.conv(joined, 8, 4))
    found = analysed(proto)
    assert not found.groups
    assert reason(found, output_of(proto, "Add")) == ("all its channels are tied into one", "")


def test_stored_numbers_that_nothing_computes_with_are_no_channels() -> None:
    proto = nets.weights_computed_from_weights()
    found = analysed(proto)
    picked = next(node for node in proto.graph.node if node.op_type == "Slice").input[0]
    left, taken = found.axes[picked][0][:3], found.axes[picked][0][3:9]
    held = found.reason(left)
    assert held is not None
    assert held.text == "only stored numbers have it, nothing is computed with it"
    assert (found.channel_of[taken] != FROZEN).all()


def test_a_tensor_of_unknown_shape_holds_what_it_touches() -> None:
    b = Builder()
    x = b.stem(8)
    b.domains.append(nets.helper.make_opsetid("nowhere", 1))
    unknown = b.node("Mystery", b.inputs[0].name, domain="nowhere")
    x = b.conv(x, 8, 6)
    found = analysed(b.done(b.node("Add", x, unknown)))
    assert [group.width for group in found.groups] == [8]
    assert reason(found, x) == (f"the shape of {unknown!r} is unknown", "Add")
    assert any("unknown shapes" in note for note in found.model.notes)


def test_nodes_can_be_kept_by_name_and_by_pattern() -> None:
    proto = nets.inverted_residual()
    assert [group.width for group in analysed(proto, ["Conv_2"]).groups] == [6]
    assert [group.width for group in analysed(proto, ["Conv_8"]).groups] == [12]
    assert not analysed(proto, ["Conv_[28]"]).groups
    found = analysed(proto, ["Conv_[48]"])
    assert reason(found, output_of(proto, "Conv", 4)) == ("kept as asked", "Conv")


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"--keep 'conv\*' matches no node"):
        analysed(nets.residual(), ["Conv*", "conv*"])
