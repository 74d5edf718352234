"""Verification lets a true cut pass and catches every kind of false one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_nets import CLASSES, IMAGE, Array, Draft, branches, convs, dense, residual, write_outside
from onnx import ModelProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.errors import InputError, VerifyError
from onnxprune.metrics import Costs
from onnxprune.model import analyse, load
from onnxprune.plan import Plan, kept_atoms
from onnxprune.surgery import cut
from onnxprune.verify import compare, verify, verify_lossless
from onnxprune.zeroing import zeroed

LEVELS = ["fast", "full"]


def channels_of(model: ModelProto) -> Channels:
    return find_channels(analyse(model, Path(), runtime.evaluate, {}))


def random_plan(channels: Channels, seed: int = 0, share: float = 0.6) -> Plan:
    rng = np.random.default_rng(seed)
    counts = [max(1, int(group.width * share)) for group in channels.groups]
    return Plan(
        tuple(np.sort(rng.permutation(g.width)[:count]) for g, count in zip(channels.groups, counts, strict=True))
    )


def case(model: ModelProto, seed: int = 0) -> tuple[Channels, Plan, ModelProto]:
    """Cut a model at random."""
    channels = channels_of(model)
    plan = random_plan(channels, seed)
    return channels, plan, cut(channels, plan, runtime.evaluate)


def shift(model: ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    """Change one number of a weight."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = change(values.flat[0])
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def special() -> ModelProto:
    """A network with a divisor, an exponent and a variance along channels that can go."""
    draft = Draft()
    rng = draft.rng
    x = draft.relu("relu1", draft.conv("conv1", "image", 3, 16))
    x = draft.add("Div", "div", x, draft.store("divisor", rng.uniform(0.5, 2, (1, 16, 1, 1))))
    x = draft.add("Pow", "pow", x, draft.store("exponent", rng.uniform(1, 2, (1, 16, 1, 1))))
    parameters = [draft.store(name, rng.uniform(0.5, 1.5, 16)) for name in ("scale", "shift", "mean", "variance")]
    x = draft.add("BatchNormalization", "norm", x, *parameters)
    draft.head(draft.relu("relu2", draft.conv("conv2", x, 16, 24)), 24)
    return draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))])


def filled() -> ModelProto:
    """A convolution whose weights ConstantOfShape makes."""
    draft = Draft()
    shape = draft.store("shape", [16, 3, 3, 3], np.int64)
    value = helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [0.25])
    weight = draft.add("ConstantOfShape", "fill", shape, value=value)
    x = draft.add("Conv", "conv1", "image", weight, draft.store("bias", draft.rng.standard_normal(16)), pads=[1] * 4)
    draft.head(draft.relu("relu2", draft.conv("conv2", draft.relu("relu1", x), 16, 24)), 24)
    return draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))])


def saturated() -> ModelProto:
    """A network whose Softmax says 0 or 1 whatever comes in."""
    model = convs()
    model.graph.node[-1].output[0] = "scores"
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["logits"], name="softmax", axis=1))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("head"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e4), tensor.name))
    return model


NETS = {net.__name__: net for net in (branches, convs, dense, filled, residual, saturated, special)}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NETS)
def test_a_true_cut_passes(name: str, level: str) -> None:
    channels, plan, small = case(NETS[name]())
    before = small.SerializeToString()
    checks = verify(channels, plan, small, level)
    assert list(checks) == ["checker", "interface", "macs", "outputs"]
    assert f"as planned, with {round(Costs(channels).of(plan.counts)['params'][0])} parameters" in checks["macs"]
    assert "equal to the zeroed original" in checks["outputs"]
    assert small.SerializeToString() == before


def test_numbers_that_were_not_planned_are_found_though_nothing_computes_more_for_them() -> None:
    channels, plan, small = case(convs())
    small.graph.initializer.append(numpy_helper.from_array(np.zeros(100, np.float32), "left over"))
    with pytest.raises(VerifyError, match=r"the cut model has \d+ parameters, \d+ were planned"):
        verify(channels, plan, small, "fast")


def test_nothing_is_checked_where_nothing_is_asked_for() -> None:
    channels, plan, small = case(convs())
    del small.graph.node[:]
    assert verify(channels, plan, small, "none") == {}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", NETS)
def test_a_single_wrong_weight_is_caught_wherever_it_lies(name: str, level: str) -> None:
    channels, plan, small = case(NETS[name]())
    names = [t.name for t in small.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert len(names) >= 3
    for weight in names:
        wrong = ModelProto()
        wrong.CopyFrom(small)
        shift(wrong, weight, lambda value: value * 1.5 + 1)
        with pytest.raises(VerifyError, match="differs from the original with the same slices zeroed"):
            verify(channels, plan, wrong, level)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_cut_that_answers_with_nan_is_caught(value: float) -> None:
    channels, plan, small = case(convs())
    shift(small, "conv2.weight", lambda _: value)
    with pytest.raises(VerifyError, match="differs"):
        verify(channels, plan, small, "fast")


def test_a_cut_of_the_wrong_channels_is_caught() -> None:
    channels, plan, _ = case(convs())
    other = random_plan(channels, seed=1)
    assert (plan.counts == other.counts).all()
    with pytest.raises(VerifyError, match="differs"):
        verify(channels, plan, cut(channels, other, runtime.evaluate), "fast")


def test_a_cut_in_the_wrong_order_is_caught() -> None:
    channels, plan, small = case(convs())
    tensor = next(t for t in small.graph.initializer if t.name == "conv2.weight")
    values = numpy_helper.to_array(tensor)[:, ::-1].copy()
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    with pytest.raises(VerifyError, match="differs"):
        verify(channels, plan, small, "fast")


def test_a_cut_that_costs_more_than_planned_is_caught() -> None:
    channels, plan, small = case(convs())
    less = Plan((plan.kept[0][1:], *plan.kept[1:]))
    with pytest.raises(VerifyError, match=r"the cut model has \d+ MACs, \d+ were planned"):
        verify(channels, less, small, "fast")


def rename_output(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"


def rename_input(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"


def fix_the_batch(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def widen_the_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES + 1


def add_an_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info(model.graph.node[0].output[0], 1, ["N", None, 12, 12]))


@pytest.mark.parametrize("change", [rename_output, rename_input, fix_the_batch, widen_the_output, add_an_output])
def test_a_changed_interface_is_caught(change: Callable[[ModelProto], None]) -> None:
    channels, plan, small = case(convs())
    change(small)
    with pytest.raises(VerifyError, match="inputs or outputs"):
        verify(channels, plan, small, "fast")


def test_a_cut_that_is_no_valid_onnx_is_caught() -> None:
    channels, plan, small = case(convs())
    small.graph.node[2].input[0] = "nowhere"
    with pytest.raises(VerifyError, match="not a valid ONNX model: Nodes"):
        verify(channels, plan, small, "fast")


def test_a_cut_whose_shapes_contradict_each_other_is_caught() -> None:
    channels, plan, small = case(dense())
    tensor = next(t for t in small.graph.initializer if t.name == "fc2.weight")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[1:], tensor.name))
    with pytest.raises(VerifyError, match="makes no sense"):
        verify(channels, plan, small, "fast")


def test_a_cut_that_does_not_run_is_caught() -> None:
    channels, plan, small = case(convs())
    small.opset_import.append(helper.make_opsetid("com.acme", 1))
    relu = next(node for node in small.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Squash", "com.acme"
    with pytest.raises(VerifyError, match=r"does not run|MACs"):
        verify(channels, plan, small, "fast")


def test_an_original_that_onnxruntime_cannot_run_is_the_users_to_mend() -> None:
    model = convs()
    model.graph.node.append(helper.make_node("Squash", ["image"], ["side"], name="squash", domain="com.acme"))
    model.graph.output.append(helper.make_tensor_value_info("side", 1, ["N", *IMAGE]))
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    channels, plan, small = case(model)
    with pytest.raises(InputError, match="--verify none"):
        verify(channels, plan, small, "fast")


@pytest.mark.parametrize("level", LEVELS)
def test_half_precision_passes_with_its_own_tolerance_and_still_catches_a_wrong_weight(level: str) -> None:
    channels, plan, small = case(convs(dtype=np.float16))
    assert "equal" in verify(channels, plan, small, level)["outputs"]
    shift(small, "conv1.weight", lambda value: value + np.float16(1))
    with pytest.raises(VerifyError, match="differs"):
        verify(channels, plan, small, level)


def test_the_tolerance_is_wider_for_half_precision_only() -> None:
    for dtype, passes in ((np.float16, True), (np.float32, False)):
        channels, plan, small = case(convs(dtype=dtype))
        shift(small, "head.bias", lambda value, kind=dtype: value + kind(2e-3))
        if passes:
            verify(channels, plan, small, "fast")
        else:
            with pytest.raises(VerifyError, match="differs"):
                verify(channels, plan, small, "fast")


def test_a_fixed_batch_and_weights_beside_the_model_pass(tmp_path: Path) -> None:
    for number, model in enumerate((convs(batch=3), convs())):
        path = write_outside(model, tmp_path / f"{number}.onnx")
        channels = find_channels(load(path, runtime.evaluate))
        plan = random_plan(channels)
        small = cut(channels, plan, runtime.evaluate)
        assert "equal" in verify(channels, plan, small, "full")["outputs"]
        onnx.load_external_data_for_model(small, str(tmp_path))
        shift(small, "conv2.weight", lambda value: value + 1)
        with pytest.raises(VerifyError, match="differs"):
            verify(channels, plan, small, "fast")


def mixed() -> ModelProto:
    """A network that divides its whole batch into eight parts, beside an input of one number."""
    draft = Draft()
    x = draft.relu("relu1", draft.conv("conv1", "image", 3, 8))
    x = draft.add("Reshape", "parts", x, draft.store("to_parts", [8, -1], np.int64))
    x = draft.add("Mul", "scaled", x, draft.store("scales", draft.rng.uniform(0.5, 1.5, (8, 1))))
    x = draft.add("Reshape", "together", x, draft.store("to_images", [-1, 8, *IMAGE[1:]], np.int64))
    x = draft.add("Mul", "times", draft.conv("conv2", x, 8, 4), "strength")
    return draft.model([("image", ("N", *IMAGE)), ("strength", (1,))], [(x, ("N", 4, *IMAGE[1:]))])


def test_a_batch_of_two_is_compared_beside_an_input_whose_first_axis_is_fixed() -> None:
    with pytest.raises(VerifyError, match="differs"):
        verify(*case(mixed()), "fast")


@pytest.mark.parametrize("level", LEVELS)
def test_it_is_said_where_the_original_takes_no_batch_of_two(level: str) -> None:
    draft = Draft()
    x = draft.add("Concat", "joined", "image", "other", axis=1)
    x = draft.conv("conv2", draft.relu("relu", draft.conv("conv1", x, 6, 8)), 8, 4)
    model = draft.model([("image", ("N", *IMAGE)), ("other", (1, *IMAGE))], [(x, ("M", 4, *IMAGE[1:]))])
    channels, plan, small = case(model)
    assert verify(channels, plan, small, level)["outputs"].endswith("; the original takes no batch of 2")
    alone = Plan(tuple(np.arange(group.width) for group in channels.groups))
    assert "equal" in verify_lossless(channels, channels, alone, level)["lossless"]


def positions(longest: int) -> ModelProto:
    """A network over sequences of a free length, as many as it has positions for."""
    draft = Draft()
    x = draft.relu("relu", draft.conv("conv1", "image", 3, 8))
    length = draft.add(
        "Slice",
        "length",
        draft.add("Shape", "shape", x),
        *(draft.store(name, [at], np.int64) for name, at in (("start", 2), ("stop", 3))),
    )
    table = draft.store("table", draft.rng.standard_normal((longest, 1)))
    zero, axis = draft.store("zero", [0], np.int64), draft.store("axis", [0], np.int64)
    x = draft.add("Add", "sum", x, draft.add("Slice", "positions", table, zero, length, axis))
    x = draft.conv("conv2", x, 8, 4)
    return draft.model([("image", (1, 3, "T", 8))], [(x, (1, 4, "T", 8))])


def of_length_8(model: ModelProto) -> tuple[Channels, Plan, ModelProto]:
    channels = find_channels(analyse(model, Path(), runtime.evaluate, {"image": (1, 3, 8, 8)}))
    plan = random_plan(channels)
    return channels, plan, cut(channels, plan, runtime.evaluate)


@pytest.mark.parametrize("longest", [8, 9, 64])
def test_another_length_is_compared_whichever_the_original_takes(longest: int) -> None:
    channels, plan, small = of_length_8(positions(longest))
    assert "other sizes" not in verify(channels, plan, small, "fast")["outputs"]
    small.graph.initializer.append(numpy_helper.from_array(np.asarray([8]), "eight"))
    next(node for node in small.graph.node if node.name == "positions").input[2] = "eight"  # no longer free
    with pytest.raises(VerifyError, match="does not run"):
        verify(channels, plan, small, "fast")


def test_it_is_said_where_the_original_takes_no_other_length() -> None:
    model = positions(8)
    next(node for node in model.graph.node if node.name == "sum").input[1] = "table"
    assert verify(*of_length_8(model), "fast")["outputs"].endswith("other sizes not compared")


def test_sides_of_their_own_names_are_compared_unlike_each_other() -> None:
    draft = Draft()
    x = draft.relu("relu", draft.conv("conv1", "image", 3, 8))
    size = draft.store("sizes", [20, 30], np.int64)
    x = draft.add("Resize", "resize", x, "", "", size, axes=[2, 3], keep_aspect_ratio_policy="not_larger")
    model = draft.model([("image", ("N", 3, "H", "W"))], [(draft.conv("conv2", x, 8, 4), ("N", 4, "h", "w"))])
    model.opset_import[0].version = 18
    channels = find_channels(analyse(model, Path(), runtime.evaluate, {"image": (1, 3, 6, 6)}))
    plan = random_plan(channels)
    small = cut(channels, plan, runtime.evaluate)
    verify(channels, plan, small, "fast")
    written = next(tensor for tensor in small.graph.initializer if tensor.name == "sizes")
    written.CopyFrom(numpy_helper.from_array(np.asarray([20, 20]), "sizes"))  # the same for a square
    with pytest.raises(VerifyError, match="shape"):
        verify(channels, plan, small, "fast")


def test_an_error_behind_a_saturated_softmax_is_caught() -> None:
    channels, plan, small = case(saturated())
    shift(small, "conv1.weight", lambda value: value + 3)
    session = ort.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, *IMAGE)).astype(np.float32)
    assert set(session.run(None, {"image": image})[0].flat) <= {0.0, 1.0}
    with pytest.raises(VerifyError, match="differs"):
        verify(channels, plan, small, "fast")


def test_an_input_of_size_zero_cannot_be_verified() -> None:
    channels, plan, small = case(convs(batch=0))
    with pytest.raises(InputError, match="'image' has a size of 0"):
        verify(channels, plan, small, "fast")


def test_outputs_that_are_empty_are_not_called_equal() -> None:
    draft = Draft()
    x = draft.relu("relu", draft.conv("conv1", "image", 3, 16))
    x = draft.add("Abs", "abs", draft.conv("conv2", x, 16, 4))
    below = draft.add("Less", "less", x, draft.store("zero", 0.0))
    places = draft.add("Transpose", "places", draft.add("NonZero", "nonzero", below))
    draft.nodes.append(helper.make_node("GatherND", [x, places], ["found"], name="gather"))
    model = draft.model([("image", (1, *IMAGE))], [("found", ("many",))])
    channels, plan, small = case(model)
    assert verify(channels, plan, small, "fast")["outputs"].startswith("NOT compared")


# ---- what is set to zero


def weights_of(channels: Channels, plan: Plan, folder: Path, only_contracted: bool = False) -> dict[str, Array]:
    """The stored numbers of the zeroed original."""
    file = folder / "zeroed.onnx"
    zeroed(channels, kept_atoms(channels, plan), file, only_contracted)
    onnx.checker.check_model(str(file))
    model = onnx.load(file)
    return {tensor.name.split("/")[0]: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_divisors_exponents_and_variances_are_not_zeroed(tmp_path: Path) -> None:
    channels, plan, _ = case(special())
    found = weights_of(channels, plan, tmp_path)
    original = {t.name: numpy_helper.to_array(t) for t in channels.model.proto.graph.initializer}
    for name in ("divisor", "exponent", "variance"):
        np.testing.assert_array_equal(found[name], original[name])
    gone = np.setdiff1d(np.arange(16), plan.kept[0])
    assert len(gone) > 4
    for name, axis in (("conv1.weight", 0), ("conv1.bias", 0), ("scale", 0), ("shift", 0), ("conv2.weight", 1)):
        assert not np.take(found[name], gone, axis).any()
        kept = np.take(found[name], plan.kept[0], axis)
        if name == "conv2.weight":
            kept = kept[plan.kept[1]]
            original_kept = original[name][np.ix_(plan.kept[1], plan.kept[0])]
        else:
            original_kept = np.take(original[name], plan.kept[0], axis)
        np.testing.assert_array_equal(kept, original_kept)


def test_only_what_sums_run_over_is_zeroed_where_zeroing_all_would_not_be_finite(tmp_path: Path) -> None:
    channels, plan, _ = case(special())
    found = weights_of(channels, plan, tmp_path, only_contracted=True)
    original = {t.name: numpy_helper.to_array(t) for t in channels.model.proto.graph.initializer}
    for name in ("conv1.weight", "conv1.bias", "scale", "shift", "divisor"):
        np.testing.assert_array_equal(found[name], original[name])
    gone = np.setdiff1d(np.arange(16), plan.kept[0])
    assert not found["conv2.weight"][:, gone].any()
    assert found["conv2.weight"][:, plan.kept[0]].all()


def test_a_reciprocal_of_what_was_cut_is_verified_through_what_sums_run_over() -> None:
    draft = Draft()
    x = draft.add("Softplus", "softplus", draft.conv("conv1", "image", 3, 16))
    x = draft.add("Mul", "mul", x, draft.store("factor", draft.rng.uniform(1, 2, (1, 16, 1, 1))))
    x = draft.add("Reciprocal", "reciprocal", x)
    draft.head(draft.conv("conv2", x, 16, 24), 24)
    channels, plan, small = case(draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))]))
    assert "equal" in verify(channels, plan, small, "full")["outputs"]
    shift(small, "conv1.weight", lambda value: value + 1)
    with pytest.raises(VerifyError, match="differs"):
        verify(channels, plan, small, "fast")


@pytest.mark.parametrize("is_turned", [False, True])
def test_weights_that_are_normed_by_the_graph_are_verified_through_what_sums_run_over(is_turned: bool) -> None:
    draft = Draft()
    x = draft.add("Relu", "relu1", draft.conv("conv1", "image", 3, 16))
    axes = [3, 2, 0, 1] if is_turned else [0, 1, 2, 3]  # of the direction, as a framework with channels last has it
    direction = draft.store("direction", draft.rng.normal(size=np.take([24, 16, 3, 3], np.argsort(axes))))
    direction = draft.add("Transpose", "turned", direction, perm=np.argsort(np.argsort(axes)).tolist())
    norm = draft.add("ReduceL2", "norm", direction, axes=[1, 2, 3])
    unit = draft.add("Div", "unit", direction, norm)
    weight = draft.add("Mul", "weight", draft.store("length", draft.rng.uniform(1, 2, (24, 1, 1, 1))), unit)
    draft.head(draft.add("Conv", "conv2", x, weight), 24)
    channels, plan, small = case(draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))]))
    assert [g.width for g in channels.groups] == [16, 24]
    assert "equal" in verify(channels, plan, small, "full")["outputs"]
    shift(small, "direction", lambda value: value * np.linspace(0.5, 1.5, value.size).reshape(value.shape))
    with pytest.raises(VerifyError, match="differs"):
        verify(channels, plan, small, "fast")


def test_weights_that_constant_of_shape_makes_are_zeroed_too(tmp_path: Path) -> None:
    channels, plan, small = case(filled())
    assert [g.width for g in channels.groups] == [16, 24]
    file, name = tmp_path / "zeroed.onnx", next(n for n in small.graph.node if n.name == "fill").output[0]
    zeroed(channels, kept_atoms(channels, plan), file, False, [name])
    weight = runtime.Session(file).run({"image": np.zeros((1, *IMAGE), np.float32)}, [name])[0]
    gone = np.setdiff1d(np.arange(16), plan.kept[0])
    assert not weight[gone].any()
    np.testing.assert_array_equal(weight[plan.kept[0]], np.float32(0.25))
    shape = next(t for t in small.graph.initializer if t.name == "shape")
    np.testing.assert_array_equal(numpy_helper.to_array(shape), [len(plan.kept[0]), 3, 3, 3])


def test_numbers_made_in_a_free_size_are_compared_at_other_sizes() -> None:
    draft = Draft()
    x = draft.relu("relu", draft.conv("conv1", "image", 3, 16))
    value = helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [0.25])
    least = draft.add("ConstantOfShape", "fill", draft.add("Shape", "shape", x), value=value)
    x = draft.add("Where", "where", draft.add("Less", "less", x, least), least, x)
    model = draft.model([("image", ("N", 3, "H", "W"))], [(draft.conv("conv2", x, 16, 4), ("N", 4, "H", "W"))])
    channels = find_channels(analyse(model, Path(), runtime.evaluate, {"image": (1, *IMAGE)}))
    assert [g.width for g in channels.groups] == [16]
    plan = random_plan(channels)
    said = verify(channels, plan, cut(channels, plan, runtime.evaluate), "full")["outputs"]
    assert said.startswith("equal")
    assert "other sizes" not in said


# ---- how outputs are compared


def floats(*values: float) -> list[Any]:
    return [np.asarray(values, np.float32)]


@pytest.mark.parametrize(
    ("wanted", "got", "difference"),
    [
        (floats(1, 2, -4), floats(1, 2, -4), 0),
        (floats(1, 2, -4), floats(1, 2, -3), 0.25),
        (floats(1, 2, -4), floats(1.4, 2, -4), 0.1),
        (floats(0, 0), floats(0, 0), 0),
        (floats(1, np.nan), floats(1, np.nan), 0),
        (floats(1, np.nan), floats(2, np.nan), 1),
        (floats(1, np.inf), floats(1, np.inf), 0),
        (floats(np.nan), floats(np.nan), 0),
        (floats(1, 2), floats(1, np.nan), np.inf),
        (floats(1, np.nan), floats(1, 2), np.inf),
        (floats(1, 2), floats(1, np.inf), np.inf),
        (floats(1, np.inf), floats(1, -np.inf), np.inf),
        (floats(1, np.inf), floats(1, np.nan), np.inf),
        (floats(), floats(), 0),
        ([np.arange(300)], [np.r_[np.arange(299), 7]], 0),
        ([np.arange(300)], [np.r_[np.arange(290), np.zeros(10, int)]], np.inf),
        ([np.array([True, False])], [np.array([True, True])], np.inf),
        ([np.array(["a"], object)], [np.array(["b"], object)], np.inf),
        ([[np.ones(2)]], [[np.zeros(2)]], 0),  # a sequence is not compared
    ],
)
def test_outputs_are_compared_relative_to_the_largest_expected_number(
    wanted: list[Any], got: list[Any], difference: float
) -> None:
    assert compare(wanted, got) == pytest.approx(difference, rel=1e-6)


def test_the_worst_of_several_outputs_counts() -> None:
    assert compare(floats(1) + floats(2), floats(1) + floats(1)) == 0.5
    assert compare(floats(2) + floats(1), floats(1) + floats(1)) == 0.5
    assert compare(floats(2) + floats(1), floats(np.nan) + floats(1)) == np.inf


def test_an_output_of_another_shape_is_caught() -> None:
    with pytest.raises(VerifyError, match=r"shape \(3,\), the original gives \(2,\)"):
        compare(floats(1, 2), floats(1, 2, 3))
