"""Surgery changes what the plan says, and nothing else."""

from __future__ import annotations

from pathlib import Path

import nets
import numpy as np
import onnx
import oracle
import pytest
from nets import NETS, Builder
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import channels, model, runtime, surgery
from onnxprune.channels import FEW_GROUPS
from onnxprune.errors import InputError
from onnxprune.plan import Plan, whole


def analysed(proto: ModelProto) -> channels.Channels:
    return channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}))


def cut_to(proto: ModelProto, share: float) -> ModelProto:
    found = analysed(proto)
    return surgery.cut(found, oracle.even_plan(found, share), runtime.evaluate)


@pytest.mark.parametrize("name", NETS)
def test_a_plan_that_keeps_all_gives_the_same_file(name: str) -> None:
    proto = NETS[name].build()
    found = analysed(proto)
    same = surgery.cut(found, whole(found), runtime.evaluate)
    assert same.SerializeToString(deterministic=True) == proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", NETS)
def test_the_cut_model_has_as_many_channels_as_were_kept(name: str) -> None:
    found = analysed(NETS[name].build())
    least = FEW_GROUPS if "group" in name else 2  # fewer whole groups are no choice, and the inside is cut instead
    kept = Plan(tuple(np.arange(group.width)[-max(least, group.width // 2) :] for group in found.groups))
    small = analysed(surgery.cut(found, kept, runtime.evaluate))
    assert sorted(oracle.widths(small)) == sorted(kept.counts)


def decorated() -> ModelProto:
    """A net that carries everything a tool likes to lose."""
    proto = nets.residual()
    helper.set_model_props(proto, {"author": "somebody", "task": "none"})
    proto.producer_version, proto.domain, proto.model_version, proto.doc_string = "1.5", "org.nowhere", 7, "a net"
    graph = proto.graph
    graph.doc_string = "its graph"
    graph.initializer.append(numpy_helper.from_array(np.arange(3.0), "read_by_nobody"))
    graph.initializer[0].doc_string = "first weights"
    graph.input[0].doc_string = "an image"
    for node in graph.node:
        node.doc_string = f"about {node.name}"
        node.metadata_props.add(key="torch.module", value=node.name)
    note = graph.quantization_annotation.add(tensor_name=graph.input[0].name)
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="read_by_nobody")
    return proto


def test_texts_metadata_and_unread_weights_survive() -> None:
    checked = oracle.check(decorated())
    first = checked.small.graph.initializer[0]
    assert (first.name, first.doc_string) == (checked.original.graph.initializer[0].name, "first weights")
    assert "read_by_nobody" in {tensor.name for tensor in checked.small.graph.initializer}
    assert checked.small.metadata_props == checked.original.metadata_props


def test_the_recorded_shapes_of_intermediate_tensors_are_dropped_as_they_no_longer_hold() -> None:
    proto = onnx.shape_inference.infer_shapes(nets.residual())
    assert len(proto.graph.value_info)
    assert not cut_to(proto, 0.5).graph.value_info


def test_wrong_recorded_shapes_do_no_harm() -> None:
    proto = nets.channels_last_island()
    for node in proto.graph.node:
        wrong = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [1, 2, 3])
        proto.graph.value_info.append(wrong)
    found = analysed(proto)
    assert sorted(oracle.widths(found)) == [6, 8]
    small = surgery.cut(found, oracle.even_plan(found, 0.5), runtime.evaluate)
    del proto.graph.value_info[:]
    assert small == surgery.cut(analysed(proto), oracle.even_plan(found, 0.5), runtime.evaluate)


def test_readers_of_a_shared_bias_that_lose_the_same_go_on_sharing_it() -> None:
    b = Builder()
    shared = b.positive(8)
    x = b.relu(b.node("Conv", b.input("N", 3, 6, 6), b.weight(8, 3, 3, 3), shared))
    x = b.node("BatchNormalization", x, shared, shared, shared, shared)
    x = b.relu(b.node("Conv", x, b.weight(8, 8, 3, 3), shared))
    small = oracle.check(b.done(b.conv(x, 8, 4)), kept=Plan((np.arange(5), np.arange(2, 6)))).small
    readers = [list(node.input) for node in small.graph.node if node.op_type != "Relu"]
    assert len({readers[0][2], *readers[1][1:]}) == 1
    assert readers[0][2] != readers[2][2]
    assert len(small.graph.initializer) == 6


def test_new_tensors_avoid_the_names_inside_bodies() -> None:
    b = Builder()
    x, shared = b.input("N", 3, 6, 6), b.positive(8)
    y = b.relu(b.node("Conv", x, b.weight(8, 3, 3, 3), shared))
    y = b.conv(b.relu(b.node("Conv", y, b.weight(8, 8, 3, 3), shared)), 8, 4)
    switch = b.node("Greater", b.node("ReduceSum", x, keepdims=0), b.store(0))
    taken = [helper.make_tensor_value_info(f"{shared}_{number}", TensorProto.FLOAT, None) for number in (1, 2)]
    bodies = [helper.make_graph([helper.make_node("Abs", [y], [value.name])], "body", [], [value]) for value in taken]
    oracle.check(b.done(b.node("If", switch, then_branch=bodies[0], else_branch=bodies[1])))


def test_constants_that_nothing_reads_any_more_are_removed_with_their_shape_arithmetic() -> None:
    proto = nets.chunks_of_half_the_shape()
    small = oracle.check(proto, kept=Plan((np.arange(3), np.arange(1)))).small
    read = {name for node in small.graph.node for name in node.input}
    assert {tensor.name for tensor in small.graph.initializer} <= read
    assert {node.output[0] for node in small.graph.node} - read == {value.name for value in small.graph.output}


def test_a_size_used_as_a_number_keeps_its_value() -> None:
    checked = oracle.check(nets.size_as_a_number(), kept=Plan((np.arange(3), np.arange(6))))
    name = next(node.name for node in checked.original.graph.node if node.op_type == "Div")
    divisor = next(node.input[1] for node in checked.small.graph.node if node.name == name)
    tapped = oracle.with_outputs(checked.small, [divisor])
    np.testing.assert_allclose(oracle.run_model(tapped, checked.feeds[0])[0], np.sqrt(8), rtol=1e-6)


@pytest.mark.parametrize("name", ["view_with_dynamic_batch", "channels_times_batch_as_a_number", "torch_expand"])
def test_a_free_batch_stays_free(name: str) -> None:
    small = cut_to(NETS[name].build(), 0.5)
    for batch in (1, 2, 5):
        feed = oracle.draw(small.graph.input, {"x": (batch, *oracle_shape(small)[1:])}, 0)
        assert oracle.run_model(small, feed)[0].shape[0] == batch


def oracle_shape(proto: ModelProto) -> list[int]:
    return [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_an_image_keeps_its_proportions_within_the_sizes_that_were_asked_for(policy: str) -> None:
    b = Builder(opset=18)
    x = b.relu(b.conv(b.input("N", 3, "H", "W"), 3, 8))
    x = b.node("Resize", x, "", "", b.integers(20, 30), axes=[2, 3], keep_aspect_ratio_policy=policy, mode="linear")
    proto = b.done(b.conv(x, 8, 4))
    small = cut_to(proto, 0.5)
    assert sum(weights_of(small)) < sum(weights_of(proto))
    for sides in ((6, 6), (6, 12), (12, 6)):
        feed = {"x": np.zeros((1, 3, *sides), np.float32)}
        assert oracle.run_model(small, feed)[0].shape == oracle.run_model(proto, feed)[0].shape


def weights_of(proto: ModelProto) -> list[int]:
    return [int(np.prod(tensor.dims)) for tensor in proto.graph.initializer]


@pytest.mark.parametrize("left", [6, 4, 3, 1])
def test_sizes_stay_free_where_one_of_them_would_become_zero(left: int) -> None:
    """A view into as many heads as before, each a quotient of the channels: with three heads of 2 left it is 6 // 8."""
    b = Builder()
    x = b.linear_rows(b.input("N", "T", 6), 6, 8)

    def heads(rows: str, order: list[int]) -> str:
        size = b.node("Shape", rows)
        batch, length, width = (b.node("Gather", size, b.integers(axis)) for axis in range(3))
        shape = b.node("Concat", batch, length, b.integers(8), b.node("Div", width, b.integers(8)), axis=0)
        return b.node("Transpose", b.node("Reshape", rows, shape), perm=order)

    query, key, value = (b.linear_rows(x, 8, 16) for _ in range(3))
    weights = b.node("Softmax", b.node("MatMul", heads(query, [0, 2, 1, 3]), heads(key, [0, 2, 3, 1])))
    x = b.node("Transpose", b.node("MatMul", weights, heads(value, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    proto = b.done(b.linear_rows(b.node("Reshape", x, b.integers(0, 0, -1)), 16, 4), rank=3)
    found = channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {"x": (1, 5, 6)}))
    counts = {"MatMul_0": 8, "MatMul_2": left}
    assert {group.name for group in found.groups} == set(counts)
    plan = Plan(tuple(np.arange(counts[group.name]) for group in found.groups))
    small = surgery.cut(found, plan, runtime.evaluate)
    for shape in ((1, 5, 6), (3, 7, 6)):
        assert oracle.run_model(small, {"x": np.ones(shape, np.float32)})[0].shape == (*shape[:2], 4)


def test_weights_made_by_constant_of_shape_shrink_with_their_shape() -> None:
    b = Builder()
    filled = numpy_helper.from_array(np.asarray([0.5], np.float32))
    x, before = b.input("N", 3, 6, 6), 3
    for after in (8, 4):
        weight = b.node("ConstantOfShape", b.integers(after, before, 1, 1), value=filled)
        x, before = b.relu(b.node("Conv", x, weight)), after
    checked = oracle.check(b.done(x), kept=Plan((np.asarray([1, 5]),)), run=False)
    assert checked.macs == (36 * (8 * 3 + 4 * 8), 36 * (2 * 3 + 4 * 2))
    oracle.check(oracle.with_random_weights(checked.original))


def test_weights_that_old_files_list_as_inputs_without_a_shape_are_cut() -> None:
    proto = nets.weights_listed_as_inputs()
    stored = {tensor.name for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        if value.name in stored:
            value.type.tensor_type.ClearField("shape")
    feed = oracle.random_feeds(proto, analysed(proto).model.bound, 0)[0]
    answers = [oracle.run_model(cut_to(model, 0.5), feed)[0] for model in (proto, nets.weights_listed_as_inputs())]
    np.testing.assert_array_equal(*answers)


def test_arithmetic_of_sizes_that_fails_with_fewer_channels_is_told_of() -> None:
    b = Builder()
    x = b.stem(8)
    channels_of_x = b.node("Gather", b.node("Shape", x), b.store(1, np.int64))
    blocks = b.node("Div", b.store(24, np.int64), b.node("Div", channels_of_x, b.store(4, np.int64)))
    x = b.node("Mul", x, b.node("Cast", blocks, to=TensorProto.FLOAT))
    found = analysed(b.done(b.conv(x, 8, 4)))
    with pytest.raises(InputError, match="--min-keep keeps more"):
        surgery.cut(found, Plan((np.arange(3),)), runtime.evaluate)


def test_the_original_can_be_cut_many_times() -> None:
    found = analysed(nets.merged_biases())
    kept = oracle.even_plan(found, 0.5)
    first = surgery.cut(found, kept, runtime.evaluate)
    surgery.cut(found, oracle.even_plan(found, 0.2), runtime.evaluate)
    assert surgery.cut(found, kept, runtime.evaluate) == first


def test_external_weights_that_lose_nothing_stay_in_the_file_of_the_original(tmp_path: Path) -> None:
    onnx.save(nets.residual(), tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.data")
    found = channels.find_channels(model.load(tmp_path / "net.onnx", runtime.evaluate))
    half = Plan(tuple(np.arange(g.width // 2) if i == 1 else np.arange(g.width) for i, g in enumerate(found.groups)))
    small = surgery.cut(found, half, runtime.evaluate)
    places = {tensor.name: tensor.data_location for tensor in small.graph.initializer}
    removed = set(oracle.plan.to_json(found, half, "", {})["removed"])
    assert removed
    assert {name for name, place in places.items() if place == TensorProto.DEFAULT} == removed
    oracle.check(tmp_path / "net.onnx")
