"""Reading and writing model files; what they hold is untrusted input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nets
import numpy as np
import onnx
import oracle
import pytest
from nets import Builder
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import channels, metrics, model, runtime, surgery
from onnxprune.errors import InputError
from onnxprune.plan import Plan, whole
from onnxprune.verify import verify


def load(path: Path, **asked: tuple[int, ...]) -> model.Model:
    return model.load(path, runtime.evaluate, asked)


def saved(proto: ModelProto, path: Path, **options: object) -> Path:
    onnx.save(proto, path, **options)
    return path


def external(proto: ModelProto, path: Path) -> Path:
    return saved(proto, path, save_as_external_data=True, size_threshold=0, location=f"{path.stem}.weights")


def refusal(path: Path, **asked: tuple[int, ...]) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- refused files


def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    assert "net.onnx does not exist" in refusal(tmp_path / "net.onnx")
    assert "is not a file" in refusal(tmp_path)
    (tmp_path / "empty.onnx").touch()
    assert "empty.onnx is empty" in refusal(tmp_path / "empty.onnx")
    (tmp_path / "text.onnx").write_text("no model at all")
    assert "text.onnx is not an ONNX file" in refusal(tmp_path / "text.onnx")
    whole_file = saved(nets.residual(), tmp_path / "cut.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole_file[: len(whole_file) // 2])
    assert "cut short" in refusal(tmp_path / "cut.onnx")


def test_an_invalid_graph_is_refused_with_the_words_of_the_checker(tmp_path: Path) -> None:
    proto = nets.residual()
    proto.graph.node[0].op_type = "Konv"
    assert "not a valid ONNX model: No Op registered for Konv" in refusal(saved(proto, tmp_path / "net.onnx"))
    proto = nets.residual()
    del proto.graph.node[0]
    assert "not a valid ONNX model" in refusal(saved(proto, tmp_path / "net.onnx"))


def test_shapes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    b = Builder()
    x = b.stem(8)
    b.nodes.append(helper.make_node("Add", [b.conv(x, 8, 6), b.conv(x, 8, 7)], ["after"]))
    proto = b.done("after")
    assert "the shapes of the model contradict each other" in refusal(saved(proto, tmp_path / "net.onnx"))


def test_opset_6_is_refused_and_7_is_read(tmp_path: Path) -> None:
    proto = nets.batch_norm_first()
    proto.opset_import[0].version = 6
    assert "opset 7 is the oldest supported" in refusal(saved(proto, tmp_path / "net.onnx"))
    proto.opset_import[0].version = 7
    assert load(saved(proto, tmp_path / "net.onnx")).opset == 7


# --------------------------------------------------------------------------------------------- free sizes


def free_image(*shape: int | str) -> ModelProto:
    b = Builder()
    return b.done(b.head(b.relu(b.conv(b.input(*shape), 3, 8, 3, 3)), 8))


def test_a_free_batch_is_1_and_free_image_sides_are_224_and_said_so(tmp_path: Path) -> None:
    read = load(saved(free_image("N", 3, "H", "W"), tmp_path / "net.onnx"))
    assert read.bound == {"x": (1, 3, 224, 224)}
    assert any("'x' has free sizes" in note for note in read.notes)
    assert read.has_free_batch
    assert not load(saved(free_image(1, 3, 8, 8), tmp_path / "net.onnx")).has_free_batch


def test_a_size_below_zero_is_free(tmp_path: Path) -> None:
    model = free_image("N", 3, 8, 8)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    read = load(saved(model, tmp_path / "net.onnx"))
    assert read.bound == {"x": (1, 3, 8, 8)}
    assert read.has_free_batch


def test_asked_sizes_are_taken_where_the_file_leaves_them_free(tmp_path: Path) -> None:
    path = saved(free_image("N", 3, "H", "W"), tmp_path / "net.onnx")
    assert load(path, x=(2, 3, 20, 30)).bound == {"x": (2, 3, 20, 30)}
    assert "axis 1 is fixed to 3 in the file, 4 was asked for" in refusal(path, x=(1, 4, 20, 20))
    assert "gives 2 sizes, the input has 4 axes" in refusal(path, x=(1, 3))
    assert "names 'y', which is no input" in refusal(path, y=(1, 3, 20, 20))
    assert "sizes must be 1 or more" in refusal(path, x=(0, 3, 20, 20))


def test_a_size_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    b = Builder()
    path = saved(b.done(b.node("MatMul", b.input("N", "T", 6), b.weight(6, 8))), tmp_path / "net.onnx")
    assert "size 1 of input 'x' is unknown; give it: --shape x=1,?,6" in refusal(path)
    assert load(path, x=(1, 9, 6)).shapes["matmul_2"] == (1, 9, 8)


def test_one_name_is_one_size(tmp_path: Path) -> None:
    b = Builder()
    joined = b.node("Add", b.input("N", "T", 6), b.input("N", "T", 6))
    path = saved(b.done(b.node("MatMul", joined, b.weight(6, 8))), tmp_path / "net.onnx")
    assert load(path, x=(2, 9, 6)).bound == {"x": (2, 9, 6), "x1": (2, 9, 6)}


def test_initializers_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    proto = nets.weights_listed_as_inputs()
    assert len(proto.graph.input) > 5
    assert list(load(saved(proto, tmp_path / "net.onnx")).bound) == ["x"]


def test_shapes_that_inference_cannot_tell_are_found_by_running(tmp_path: Path) -> None:
    proto = nets.operator_of_another_domain()
    read = load(saved(proto, tmp_path / "net.onnx"))
    assert all(name in read.shapes for node in proto.graph.node for name in node.output)
    assert read.notes == []


# ------------------------------------------------------------------------------------------- external data


def test_external_weights_make_the_round_trip(tmp_path: Path) -> None:
    inside = nets.residual()
    path = external(nets.residual(), tmp_path / "net.onnx")
    read = load(path)
    for tensor in inside.graph.initializer:
        np.testing.assert_array_equal(read.array(tensor.name), numpy_helper.to_array(tensor))
    (tmp_path / "new").mkdir()
    model.save(read.proto, tmp_path / "new" / "net.onnx", tmp_path)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["net.onnx", "net.onnx.data"]
    onnx.checker.check_model(tmp_path / "new" / "net.onnx")
    again = onnx.load(tmp_path / "new" / "net.onnx")
    for ours, theirs in zip(inside.graph.initializer, again.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))


def with_body(proto: ModelProto) -> ModelProto:
    """Put an If behind a network, whose bodies hold weights of their own."""
    result = proto.graph.output[0].name
    shape = [dim.dim_value or dim.dim_param for dim in proto.graph.output[0].type.tensor_type.shape.dim]

    def body(name: str, factor: float) -> onnx.GraphProto:
        stored = numpy_helper.from_array(np.full(400, factor, np.float32), f"{name}_stored")
        first = numpy_helper.from_array(np.zeros(1, np.int64), f"{name}_first")
        nodes = [
            helper.make_node("Gather", [stored.name, first.name], [f"{name}_factor"]),
            helper.make_node("Mul", [result, f"{name}_factor"], [f"{name}_y"]),
        ]
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, shape)
        return helper.make_graph(nodes, name, [], [out], [stored, first])

    proto.graph.initializer.append(numpy_helper.from_array(np.float32(-100), "low"))
    proto.graph.node.append(helper.make_node("ReduceMax", [result], ["top"], keepdims=0))
    proto.graph.node.append(helper.make_node("Greater", ["top", "low"], ["condition"]))
    bodies = {"then_branch": body("yes", 2.0), "else_branch": body("no", 3.0)}
    proto.graph.node.append(helper.make_node("If", ["condition"], ["chosen"], **bodies))
    proto.graph.output[0].name = "chosen"
    return proto


def with_constants(proto: ModelProto) -> ModelProto:
    """Let Constant nodes hold the weights of a network."""
    held = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    for tensor in reversed(held):
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    return proto


@pytest.mark.parametrize("change", [with_body, with_constants])
def test_weights_outside_the_file_that_nodes_hold_are_taken_inside(
    change: Callable[[ModelProto], ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path)
    expected = change(nets.residual())
    saved(
        change(nets.residual()),
        tmp_path / "source" / "net.onnx",
        save_as_external_data=True,
        convert_attribute=True,
        size_threshold=0,
        location="net.weights",
    )
    found = channels.find_channels(load(Path("source", "net.onnx")))
    model.save(surgery.cut(found, whole(found), runtime.evaluate), Path("new", "net.onnx"), Path("source"))
    feed = oracle.random_feeds(expected, {"x": (1, 3, 6, 6)}, 0)[0]
    result = runtime.Session(Path("new", "net.onnx")).run(feed)[0]
    assert oracle.distance(oracle.run_model(expected, feed)[0], result) < oracle.TOLERANCE
    Path("elsewhere.onnx").write_bytes(Path("source", "net.onnx").read_bytes())
    assert "external data file 'net.weights'" in refusal(Path("elsewhere.onnx"))


def test_sizes_that_lie_outside_the_file_are_known(tmp_path: Path) -> None:
    inside = saved(nets.split_by_input(), tmp_path / "inside.onnx")
    outside = external(nets.split_by_input(), tmp_path / "net.onnx")
    widths = [oracle.widths(channels.find_channels(load(path))) for path in (inside, outside)]
    assert widths[0] == widths[1] != []


def test_a_normalisation_that_onnxruntime_had_before_the_standard_can_be_cut() -> None:
    b = nets.Builder(opset=13)
    x = b.linear_rows(b.input("N", 5, 6), 6, 12)
    x = b.relu(b.linear_rows(b.node("SimplifiedLayerNormalization", x, b.vector(12), axis=-1), 12, 16))
    x = b.node("LayerNormalization", b.linear_rows(x, 16, 6), b.vector(6), b.vector(6), axis=-1)
    proto = b.done(b.linear_rows(x, 6, 4), rank=3)
    found = channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {}))
    assert oracle.widths(found) == [16]
    plan = oracle.even_plan(found, 0.5)
    assert "equal" in verify(found, plan, surgery.cut(found, plan, runtime.evaluate), "full")["outputs"]


def test_long_text_stays_inside_the_file(tmp_path: Path) -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [5000], [b"word"] * 5000)
    model.write_external(ModelProto(), [("words", words)], tmp_path / "net.onnx", tmp_path)
    (found,) = onnx.load(tmp_path / "net.onnx", load_external_data=False).graph.initializer
    assert list(found.string_data) == [b"word"] * 5000


@pytest.mark.parametrize("offset", ["0", "-4"])
def test_packed_numbers_that_are_too_few_are_refused(offset: str, tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[100], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "few.bin"), ("offset", offset)):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "few.bin").write_bytes(bytes(20))
    with pytest.raises(InputError, match="too short for tensor 'w'"):
        model.read(tensor, tmp_path)


def test_a_cut_of_a_model_with_external_weights_is_the_cut_of_the_model(tmp_path: Path) -> None:
    path = external(nets.residual(), tmp_path / "net.onnx")
    found = channels.find_channels(load(path))
    kept = Plan((np.arange(4), np.arange(6)))
    model.save(surgery.cut(found, kept, runtime.evaluate), tmp_path / "small.onnx", tmp_path)
    expected = oracle.check(nets.residual(), kept=kept).small
    feed = oracle.random_feeds(expected, {"x": (1, 3, 6, 6)}, 0)[0]
    result = runtime.Session(tmp_path / "small.onnx").run(feed)[0]
    assert oracle.distance(oracle.run_model(expected, feed)[0], result) < oracle.TOLERANCE


def test_a_save_over_the_original_leaves_a_whole_model(tmp_path: Path) -> None:
    path = external(nets.residual(), tmp_path / "net.onnx")
    read = load(path)
    model.save(read.proto, path, tmp_path)
    model.save(load(path).proto, path, tmp_path)
    expected = nets.residual()
    feed = oracle.random_feeds(expected, read.bound, 0)[0]
    np.testing.assert_array_equal(oracle.run_model(onnx.load(path), feed)[0], oracle.run_model(expected, feed)[0])


def test_a_failed_save_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = external(nets.residual(), tmp_path / "net.onnx")
    read = load(path)
    (tmp_path / "old.onnx").write_text("old")
    (tmp_path / "net.weights").unlink()
    with pytest.raises(InputError, match=r"'net\.weights'.* is missing"):
        model.save(read.proto, tmp_path / "old.onnx", tmp_path)
    assert (tmp_path / "old.onnx").read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "old.onnx"]


def moved_to(location: str) -> Callable[[TensorProto], None]:
    def move(tensor: TensorProto) -> None:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location

    return move


def set_entry(key: str, value: str) -> Callable[[TensorProto], None]:
    def change(tensor: TensorProto) -> None:
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    return change


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "", ".", "inner/../../secret", "link"])
def test_external_data_outside_the_folder_of_the_model_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"0" * 100_000)
    (folder / "link").symlink_to(tmp_path / "secret")
    proto = onnx.load(external(nets.residual(), folder / "net.onnx"), load_external_data=False)
    moved_to(location)(proto.graph.initializer[0])
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    assert "outside the model's folder" in refusal(folder / "net.onnx")


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    path = external(nets.residual(), tmp_path / "net.onnx")
    (tmp_path / "net.weights").unlink()
    assert "external data file 'net.weights'" in refusal(path)


@pytest.mark.parametrize(
    ("key", "value"), [("length", "8"), ("offset", "100000000"), ("offset", "-4"), ("offset", "four")]
)
def test_external_data_that_is_too_short_is_refused_when_read(key: str, value: str, tmp_path: Path) -> None:
    proto = onnx.load(external(nets.residual(), tmp_path / "net.onnx"), load_external_data=False)
    tensor = proto.graph.initializer[0]
    set_entry(key, value)(tensor)
    with pytest.raises(InputError, match=r"too short|no number"):
        model.read(tensor, tmp_path)


# ----------------------------------------------------------------------------------------------- large ones


def large_net(folder: Path, width: int, layers: int) -> Path:
    """Write a chain of square layers whose weights are one sparse file of zeros."""
    b = Builder()
    x = b.relu(b.linear(b.input("N", 16), 16, width))
    places = []
    for layer in range(layers):
        places.append(TensorProto(name=f"large_{layer}", data_type=TensorProto.FLOAT, dims=[width, width]))
        places[-1].data_location = TensorProto.EXTERNAL
        size = 4 * width * width
        for key, value in (("location", "net.weights"), ("offset", layer * size), ("length", size)):
            places[-1].external_data.add(key=key, value=str(value))
        x = b.relu(b.node("MatMul", x, places[-1].name))
    b.node("MatMul", x, b.weight(width, 4))
    outputs = [helper.make_tensor_value_info(b.nodes[-1].output[0], TensorProto.FLOAT, ["N", 4])]
    graph = helper.make_graph(b.nodes, "large", b.inputs, outputs, [*b.initializers, *places])
    proto = helper.make_model(graph, ir_version=10, opset_imports=b.domains)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    with (folder / "net.weights").open("wb") as file:
        file.truncate(4 * width * width * layers)
    return folder / "net.onnx"


@pytest.mark.slow
def test_a_model_beyond_2_gib_is_analysed_cut_and_saved(tmp_path: Path) -> None:
    width, layers = 15_000, 3
    found = channels.find_channels(load(large_net(tmp_path, width, layers)))
    assert oracle.widths(found) == [width] * (layers + 1)
    assert metrics.Costs(found).of(whole(found).counts)["file_bytes"][0] > 2**31
    for step, name in ((100, "small"), (1, "almost")):
        kept = Plan((*(np.arange(0, width, step) for _ in range(layers)), np.arange(1, width, step)))
        model.save(surgery.cut(found, kept, runtime.evaluate), tmp_path / f"{name}.onnx", tmp_path)
        last = load(tmp_path / f"{name}.onnx").shapes[f"large_{layers - 1}"]
        assert last == (width // step, len(range(1, width, step)))
        onnx.checker.check_model(tmp_path / f"{name}.onnx", full_check=True)
    assert (tmp_path / "almost.onnx.data").stat().st_size > 2**31
    (tmp_path / "almost.onnx.data").unlink()  # pytest keeps folders for a while
