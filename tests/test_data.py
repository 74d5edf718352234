"""Samples reach the model in its layout and type, with the right labels, whole or in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import CLASSES, IMAGE, Array, Draft, convs
from onnx import ModelProto, TensorProto, helper

from onnxprune import runtime
from onnxprune.data import Data, read_data, read_preprocess, split
from onnxprune.errors import InputError
from onnxprune.inputs import model_inputs
from onnxprune.model import Model, analyse
from onnxprune.preprocess import Preprocess

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)  # images, channels last
FIRST = PIXELS.transpose(0, 3, 1, 2)  # the same, channels first


def loaded(model: ModelProto) -> Model:
    return analyse(model, Path(), runtime.evaluate, {})


def nhwc() -> ModelProto:
    """A network that takes images whose channels come last."""
    draft = Draft()
    x = draft.add("Transpose", "turn", "image", perm=[0, 3, 1, 2])
    draft.head(draft.relu("relu", draft.conv("conv", x, 3, 16)), 16)
    return draft.model([("image", ("N", 12, 12, 3))], [("logits", ("N", CLASSES))])


def bytes_in() -> ModelProto:
    """A network that takes pixels as they are."""
    draft = Draft()
    x = draft.add("Cast", "cast", "image", to=TensorProto.FLOAT)
    draft.head(draft.relu("relu", draft.conv("conv", x, 3, 16)), 16)
    model = draft.model([("image", ("N", *IMAGE))], [("logits", ("N", CLASSES))])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def vectors(*shape: int | str) -> ModelProto:
    """A network that takes anything but images."""
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    return helper.make_model(helper.make_graph(nodes, "net", [inputs], [outputs]), ir_version=8)


def gray(*image: int) -> ModelProto:
    """A network that takes gray images; what it does with them does not matter."""
    return vectors("N", *image)


def text() -> ModelProto:
    """A network that takes token ids, a mask and a number a sample."""
    kinds = {"ids": TensorProto.INT64, "mask": TensorProto.BOOL, "scale": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(n, kinds[n], ("N", 5) if n != "scale" else ("N",)) for n in kinds]
    nodes = [
        helper.make_node("Cast", ["ids"], ["ids_f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["ids_f"], ["out"], name="relu"),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, ("N", 5))]
    return helper.make_model(helper.make_graph(nodes, "net", inputs, outputs), ir_version=8)


def tokens(count: int) -> dict[str, Array]:
    """Arrays for `text`, in other types than it takes."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 30000, (count, 5)), rng.integers(0, 2, (count, 5))
    return {"ids": ids.astype(np.int32), "mask": mask, "scale": rng.standard_normal(count).astype(np.float16)}


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def fed(data: Data, size: int = 100) -> Array:
    """Everything the model is fed, in order."""
    return np.concatenate([feed[data.inputs[0].name] for feed, _ in data.batches(size)])


def takes(**inputs: tuple[int, tuple[int, ...]]) -> Model:
    """A network of inputs of these types and shapes, which it gives back."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    values, made = (
        [helper.make_tensor_value_info(name + end, kind, ("N", *shape)) for name, (kind, shape) in inputs.items()]
        for end in ("", "_out")
    )
    graph = helper.make_graph(nodes, "net", values, made)
    return loaded(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(
    ("inputs", "pixels"),
    [
        ({"ids": (TensorProto.INT64, (9,)), "mask": (TensorProto.FLOAT, (1, 9, 9))}, ()),
        ({"ids": (TensorProto.INT64, (9,)), "image": (TensorProto.FLOAT, (3, 8, 8))}, ("image",)),
        ({"ids": (TensorProto.INT32, (9,)), "image": (TensorProto.FLOAT, (8, 8, 3))}, ("image",)),
        ({"left": (TensorProto.FLOAT, (1, 8, 8)), "right": (TensorProto.FLOAT, (1, 8, 8))}, ("left", "right")),
        ({"left": (TensorProto.UINT8, (1, 8, 8)), "right": (TensorProto.FLOAT, (1, 8, 8))}, ("left", "right")),
        ({"image": (TensorProto.FLOAT, (1, 8, 8)), "number": (TensorProto.FLOAT, (2,))}, ("image",)),
        ({"image": (TensorProto.FLOAT, (1, 8, 8)), "class": (TensorProto.INT64, (1,))}, ("image",)),
        ({"mask": (TensorProto.FLOAT, (1, 9, 9))}, ("mask",)),
    ],
    ids=str,
)
def test_a_mask_beside_tokens_is_no_image(inputs: dict[str, Any], pixels: tuple[str, ...]) -> None:
    assert {given.name for given in model_inputs(takes(**inputs)) if given.channel_axis is not None} == set(pixels)


# ---- layouts


@pytest.mark.parametrize("given", [PIXELS, FIRST], ids=["channels last", "channels first"])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64, np.float16, np.int64])
def test_images_reach_a_channels_first_model_channels_first(tmp_path: Path, given: Array, kind: Any) -> None:
    data = read_data(saved(tmp_path, x=given.astype(kind)), loaded(convs()), None)
    assert len(data) == 7
    x = fed(data)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, FIRST.astype(np.float32))


@pytest.mark.parametrize("given", [PIXELS, FIRST], ids=["channels last", "channels first"])
def test_images_reach_a_channels_last_model_channels_last(tmp_path: Path, given: Array) -> None:
    x = fed(read_data(saved(tmp_path, x=given), loaded(nhwc()), None))
    np.testing.assert_array_equal(x, PIXELS.astype(np.float32))


def test_images_that_fit_as_they_are_are_not_turned(tmp_path: Path) -> None:
    cubes = np.arange(2 * 27, dtype=np.float32).reshape(2, 3, 3, 3)
    x = fed(read_data(saved(tmp_path, x=cubes), loaded(convs(image=(3, 3, 3))), None))
    np.testing.assert_array_equal(x, cubes)


@pytest.mark.parametrize(("kind", "model"), [(np.float16, convs(dtype=np.float16)), (np.uint8, bytes_in())])
def test_samples_take_the_type_of_the_input(tmp_path: Path, kind: Any, model: ModelProto) -> None:
    x = fed(read_data(saved(tmp_path, x=PIXELS), loaded(model), None))
    assert x.dtype == kind
    np.testing.assert_array_equal(x, FIRST.astype(kind))


@pytest.mark.parametrize(
    ("shape", "samples"), [(("N", 20), (5, 20)), (("N", 4, 9), (5, 4, 9)), (("N",), (5,)), ((1, 20), (5, 20))]
)
def test_samples_need_not_be_images(tmp_path: Path, shape: tuple[int | str, ...], samples: tuple[int, ...]) -> None:
    given = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    data = read_data(saved(tmp_path, x=given), loaded(vectors(*shape)), None)
    assert data.inputs[0].name == "x"
    np.testing.assert_array_equal(fed(data), given)


def test_the_size_of_a_model_that_leaves_it_free_is_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path, x=PIXELS)
    model = convs(image=(3, "H", "W"))
    with pytest.raises(InputError, match="give --shape"):
        read_data(path, loaded(model), None)
    asked = analyse(model, Path(), runtime.evaluate, {"image": (1, 3, 12, 12)})
    np.testing.assert_array_equal(fed(read_data(path, asked, None)), FIRST.astype(np.float32))


@pytest.mark.parametrize("shape", [(7, 3, 32, 32), (7, 4, 12, 12), (7, 12, 12), (7, 432), (3, 12, 12), (7, 12, 3, 12)])
def test_samples_of_another_shape_are_refused_with_both_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        read_data(saved(tmp_path, x=np.zeros(shape, np.uint8)), loaded(convs()), None)
    assert str(shape[1:]) in str(caught.value)
    assert "(3, 12, 12)" in str(caught.value)


@pytest.mark.parametrize("model", [gray(1, 12, 12), gray(12, 12, 1)], ids=["channels first", "channels last"])
@pytest.mark.parametrize("given", [PIXELS[..., 0], PIXELS[..., :1], FIRST[:, :1]], ids=["none", "last", "first"])
def test_gray_images_may_leave_their_only_channel_out(tmp_path: Path, model: ModelProto, given: Array) -> None:
    x = fed(read_data(saved(tmp_path, x=given), loaded(model), None))
    np.testing.assert_array_equal(x, PIXELS[..., 0].reshape(x.shape))


def test_images_of_other_channels_are_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(1, 12, 12\).*give images of 3 channels, not 1"):
        read_data(saved(tmp_path, x=FIRST[:, :1]), loaded(convs()), None)
    with pytest.raises(InputError, match="give images of 3 channels, not 4"):
        read_data(saved(tmp_path, x=np.zeros((5, 12, 12, 4))), loaded(nhwc()), None)


# ---- numbers the model cannot take


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_sample_that_is_not_finite_is_numbered(tmp_path: Path, bad: float, kind: Any) -> None:
    x = FIRST.astype(kind)
    x[4, 1, 2, 3] = bad
    for preprocess in (None, read_preprocess("imagenet")):
        with pytest.raises(InputError, match="sample 4 for 'image' holds NaN or infinity"):
            read_data(saved(tmp_path, x=x), loaded(convs()), preprocess)


@pytest.mark.parametrize(
    ("model", "value", "words"),
    [
        (convs(dtype=np.float16), 1e5, "float16, -65504 to 65504"),
        (convs(), 1e300, "float32"),
        (bytes_in(), -1.0, "uint8, 0 to 255"),
        (bytes_in(), 256.0, "uint8, 0 to 255"),
        (bytes_in(), 0.5, "fractions"),
    ],
)
def test_numbers_that_the_type_of_the_input_cannot_hold_are_refused(
    tmp_path: Path, model: ModelProto, value: float, words: str
) -> None:
    x = FIRST.astype(np.float64)
    x[6, 2, 11, 11] = value
    with pytest.raises(InputError, match=words):
        read_data(saved(tmp_path, x=x), loaded(model), None)


# ---- several inputs


def test_each_input_is_fed_the_array_of_its_name(tmp_path: Path) -> None:
    arrays = tokens(9)
    data = read_data(saved(tmp_path, **arrays, y=np.arange(9), other=np.zeros(3)), loaded(text()), None)
    batches = list(data.batches(4))
    for name, kind in (("ids", np.int64), ("mask", np.bool_), ("scale", np.float32)):
        found = np.concatenate([feed[name] for feed, _ in batches])
        assert found.dtype == kind
        np.testing.assert_array_equal(found, arrays[name].astype(kind))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches if y is not None]), np.arange(9))


def test_one_input_may_be_given_by_its_name_too_and_that_array_wins(tmp_path: Path) -> None:
    data = read_data(saved(tmp_path, x=np.zeros((7, 3)), image=PIXELS, y=np.arange(7)), loaded(convs()), None)
    np.testing.assert_array_equal(fed(data), FIRST.astype(np.float32))
    assert data.y is not None


def test_an_input_named_y_is_no_class(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "y"], ["z"], name="add")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 4)) for name in "xyz"]
    model = helper.make_model(helper.make_graph(nodes, "net", values[:2], values[2:]), ir_version=8)
    x, y = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    data = read_data(saved(tmp_path, x=x, y=y), loaded(model), None)
    assert data.y is None
    np.testing.assert_array_equal(next(data.batches(6))[0]["y"], y)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": None}, "no array mask; it has .*ids.*; the model takes ids, mask, scale"),
        ({"ids": None, "mask": None, "scale": None, "x": np.zeros((9, 5))}, "one input; this one has 3.* ids, mask"),
        ({"mask": np.ones((8, 5), np.int64)}, "same number of samples; it has ids 9, mask 8, scale 9"),
        ({"ids": np.zeros((9, 6), np.int64)}, r"shape \(6,\), the model takes \(5,\) for 'ids'"),
        ({"ids": np.full((9, 5), 0.5)}, "samples for 'ids' hold fractions; the model takes int64"),
        ({"mask": np.full((9, 5), 2)}, "samples for 'mask' reach from 2 to 2; the model takes bool, 0 to 1"),
        ({"ids": np.full((9, 5), "a")}, "must be numbers, those for 'ids'"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Array | None], words: str) -> None:
    arrays = {name: values for name, values in {**tokens(9), **change}.items() if values is not None}
    with pytest.raises(InputError, match=words):
        read_data(saved(tmp_path, **arrays), loaded(text()), None)


def test_a_single_array_cannot_feed_several_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((9, 5)))
    with pytest.raises(InputError, match="models of one input; this one has 3: give an array for each"):
        read_data(tmp_path / "x.npy", loaded(text()), None)


@pytest.mark.parametrize(
    ("kind", "shape", "words"),
    [
        (TensorProto.STRING, ("N", 4), "the input 'x' of the model takes text"),
        (TensorProto.FLOAT, (), "'x' .* is none"),
    ],
)
def test_inputs_that_hold_no_samples_of_numbers_are_refused(
    tmp_path: Path, kind: int, shape: tuple[Any, ...], words: str
) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"], name="same")]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "net", values[:1], values[1:]), ir_version=8)
    with pytest.raises(InputError, match=words):
        read_data(saved(tmp_path, x=np.zeros((3, 4))), loaded(model), None)


def test_preprocessing_changes_the_images_among_several_inputs_and_nothing_else(tmp_path: Path) -> None:
    draft = Draft()
    x = draft.relu("relu", draft.conv("conv", "image", 3, 16))
    draft.head(x, 16)
    draft.add("Relu", "relu2", "age")
    model = draft.model([("image", ("N", *IMAGE)), ("age", ("N", 1))], [("logits", ("N", CLASSES))])
    age = np.arange(7, dtype=np.float32)[:, None]
    data = read_data(saved(tmp_path, image=PIXELS, age=age), loaded(model), read_preprocess("inception"))
    ((feed, _),) = data.batches(7)
    np.testing.assert_allclose(feed["image"], (FIRST - 127.5) / 127.5, atol=1e-6)
    np.testing.assert_array_equal(feed["age"], age)


def test_preprocessing_for_a_model_that_takes_no_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the inputs ids, mask, scale of the model take none"):
        read_data(saved(tmp_path, **tokens(9)), loaded(text()), read_preprocess("imagenet"))


def test_preprocessing_for_an_input_of_integers_is_refused_unless_it_keeps_the_pixels(
    tmp_path: Path,
) -> None:
    path = saved(tmp_path, x=PIXELS)
    with pytest.raises(InputError, match="the model takes uint8; give --preprocess none"):
        read_data(path, loaded(bytes_in()), read_preprocess("imagenet"))
    np.testing.assert_array_equal(fed(read_data(path, loaded(bytes_in()), Preprocess())), FIRST)


# ---- preprocessing


@pytest.mark.parametrize("given", [PIXELS, FIRST], ids=["channels last", "channels first"])
@pytest.mark.parametrize("model", [convs(), nhwc()], ids=["to channels first", "to channels last"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet", (PIXELS / 255 - MEAN) / STD),
        ("cifar10", (PIXELS / 255 - MEAN) / STD),
        ("inception", (PIXELS - 127.5) / 127.5),
        ("none", PIXELS * 1.0),
    ],
)
def test_a_named_preprocessing_is_its_formula_channel_by_channel(
    tmp_path: Path, given: Array, model: ModelProto, name: str, expected: Array
) -> None:
    x = fed(read_data(saved(tmp_path, x=given), loaded(model), read_preprocess(name)))
    if x.shape[1] == 3:
        expected = expected.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


def test_one_mean_serves_samples_that_have_no_channels(tmp_path: Path) -> None:
    given = np.array([0, 51, 255], np.uint8)
    data = read_data(saved(tmp_path, x=given), loaded(vectors("N")), read_preprocess("inception"))
    np.testing.assert_allclose(fed(data), [-1, -0.6, 1], atol=1e-6)
    with pytest.raises(InputError, match="means for 3 channels"):
        read_data(tmp_path / "data.npz", loaded(vectors("N")), read_preprocess("imagenet"))


# ---- labels and batches


def test_batches_cover_all_samples_in_order_with_their_labels(tmp_path: Path) -> None:
    y = np.arange(7)
    data = read_data(saved(tmp_path, x=PIXELS, y=y), loaded(convs()), None)
    for size, lengths in ((1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (50, [7])):
        batches = list(data.batches(size))
        assert [len(feed["image"]) for feed, _ in batches] == lengths
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), y)
        np.testing.assert_array_equal(fed(data, size), FIRST.astype(np.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.uint64])
def test_labels_of_any_integer_type_become_int64(tmp_path: Path, kind: Any) -> None:
    data = read_data(saved(tmp_path, x=PIXELS, y=np.arange(7).astype(kind)), loaded(convs()), None)
    assert data.y is not None
    assert data.y.dtype == np.int64
    np.testing.assert_array_equal(data.y, np.arange(7))


def test_samples_without_labels_have_none(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    for path in (tmp_path / "x.npy", saved(tmp_path, x=PIXELS, other=np.zeros(2))):
        data = read_data(path, loaded(convs()), None)
        assert data.y is None
        assert [labels for _, labels in data.batches(4)] == [None, None]
        np.testing.assert_array_equal(fed(data), FIRST.astype(np.float32))


@pytest.mark.parametrize("y", [np.arange(6), np.zeros((7, 2), int), np.zeros(7), np.array(["a"] * 7)], ids=str)
def test_labels_that_are_not_one_integer_a_sample_are_refused(tmp_path: Path, y: Array) -> None:
    with pytest.raises(InputError, match=r"one integer class per sample \(7\)"):
        read_data(saved(tmp_path, x=PIXELS, y=y), loaded(convs()), None)


def test_labels_may_lie_in_a_column(tmp_path: Path) -> None:
    data = read_data(saved(tmp_path, x=PIXELS, y=np.arange(7)[:, None]), loaded(convs()), None)
    np.testing.assert_array_equal(data.y, np.arange(7))


@pytest.mark.parametrize("label", [-1, 2**40])
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, label: int) -> None:
    with pytest.raises(InputError, match=f"y holds class {label}; classes count from 0"):
        read_data(saved(tmp_path, x=PIXELS, y=np.array([0, 1, 2, label, 3, 4, 5])), loaded(convs()), None)


def test_a_compressed_archive_reads_the_same(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=PIXELS, y=np.arange(7))
    data = read_data(tmp_path / "data.npz", loaded(convs()), None)
    np.testing.assert_array_equal(fed(data), FIRST.astype(np.float32))


# ---- parts of the data


def drawn(tmp_path: Path, count: int) -> Data:
    """Samples that hold their own number, and their number modulo 5 as class."""
    x = np.arange(count, dtype=np.float32)
    return read_data(saved(tmp_path, x=x, y=np.arange(count) % 5), loaded(vectors("N")), None)


def test_some_samples_can_be_taken_in_any_order_and_again_of_those(tmp_path: Path) -> None:
    data = drawn(tmp_path, 20).take(np.array([7, 3, 3, 19, 0]))
    assert len(data) == 5
    np.testing.assert_array_equal(fed(data, 2), [7, 3, 3, 19, 0])
    np.testing.assert_array_equal(data.y, [2, 3, 3, 4, 0])
    again = data.take(np.array([4, 0]))
    np.testing.assert_array_equal(fed(again), [0, 7])
    np.testing.assert_array_equal(again.y, [0, 2])


def test_taking_samples_copies_none(tmp_path: Path) -> None:
    data = drawn(tmp_path, 20)
    assert data.take(np.arange(10)).samples["x"] is data.samples["x"]
    assert data.loaded() is data


def test_what_is_taken_keeps_its_preprocessing(tmp_path: Path) -> None:
    data = read_data(saved(tmp_path, x=PIXELS), loaded(convs()), read_preprocess("inception"))
    np.testing.assert_array_equal(fed(data.take(np.array([5, 1]))), fed(data)[[5, 1]])


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (10, (8, 1, 1)),
        (100, (77, 11, 12)),
        (512, (392, 56, 64)),
        (3000, (2048, 328, 375)),
        (3483, (2048, 1000, 435)),
        (3482, (2048, 380, 435)),
        (10_000, (2048, 1000, 1250)),
        (50_000, (2048, 1000, 2000)),
    ],
)
def test_a_split_has_three_parts_of_the_sizes_it_promises(
    tmp_path: Path, count: int, sizes: tuple[int, int, int]
) -> None:
    parts = split(drawn(tmp_path, count))
    assert (len(parts.calibration), len(parts.search), len(parts.holdout)) == sizes
    numbers = np.concatenate([np.array(parts.indices[name]) for name in ("calibration", "search", "holdout")])
    assert len(set(numbers.tolist())) == len(numbers)
    assert numbers.min() >= 0
    assert numbers.max() < count


@pytest.mark.parametrize("count", [3, 100, 20_000])
def test_what_is_trained_on_is_all_but_what_the_search_and_the_report_look_at(tmp_path: Path, count: int) -> None:
    parts = split(drawn(tmp_path, count))
    others = {*parts.indices["search"], *parts.indices["holdout"]}
    trained = parts.train.order.tolist()
    assert sorted([*trained, *others]) == list(range(count))
    assert trained[: len(parts.calibration)] == parts.indices["calibration"]


def test_the_parts_hold_the_samples_that_their_indices_say(tmp_path: Path) -> None:
    data = drawn(tmp_path, 500)
    parts = split(data, calibration=50, search=40, holdout=30)
    for name, part in (("calibration", parts.calibration), ("search", parts.search), ("holdout", parts.holdout)):
        np.testing.assert_array_equal(fed(part), parts.indices[name])
        np.testing.assert_array_equal(part.y, np.array(parts.indices[name]) % 5)
    assert [len(part) for part in (parts.calibration, parts.search, parts.holdout)] == [50, 40, 30]


def test_the_same_seed_draws_the_same_parts_and_another_seed_others(tmp_path: Path) -> None:
    data = drawn(tmp_path, 200)
    assert split(data, seed=4).indices == split(data, seed=4).indices
    assert split(data, seed=4).indices != split(data, seed=5).indices
    assert split(data, seed=4).indices == split(data.take(np.arange(200)[::-1]), seed=4).indices


def test_the_parts_are_drawn_from_all_over_the_data(tmp_path: Path) -> None:
    for part in split(drawn(tmp_path, 1000), calibration=200, search=200).indices.values():
        assert abs(np.mean(part) - 499.5) < 4 * 288.7 / np.sqrt(len(part))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_samples_cannot_be_split(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=rf"data.npz has too few samples \({count}\).* at least 3"):
        split(drawn(tmp_path, count))


# ---- which samples


def test_the_same_samples_have_the_same_hash_whatever_their_file_and_layout(tmp_path: Path) -> None:
    hashes = set()
    for given in (PIXELS, FIRST):
        hashes.add(read_data(saved(tmp_path, x=given, y=np.arange(7)), loaded(convs()), None).sha256)
    np.savez_compressed(tmp_path / "other.npz", x=PIXELS, y=np.arange(7, dtype=np.uint8))
    hashes.add(read_data(tmp_path / "other.npz", loaded(convs()), None).sha256)
    assert len(hashes) == 1


def test_the_hash_of_samples_is_the_same_in_every_run(tmp_path: Path) -> None:
    assert drawn(tmp_path, 600).sha256 == "8331b4161e3a49ff888f58937cb4ee7a9e9ef8016759ba6e40d33963a42c2b8c"


def test_samples_that_differ_in_anything_have_other_hashes(tmp_path: Path) -> None:
    y = np.arange(7)
    changed, relabelled = PIXELS.copy(), y.copy()
    changed[6, 11, 11, 2] ^= 1
    relabelled[6] = 0
    model = loaded(convs())
    plain = read_data(saved(tmp_path, x=PIXELS, y=y), model, None)
    others = [
        plain,
        read_data(saved(tmp_path, x=changed, y=y), model, None),
        read_data(saved(tmp_path, x=PIXELS, y=relabelled), model, None),
        read_data(saved(tmp_path, x=PIXELS), model, None),
        read_data(saved(tmp_path, x=PIXELS.astype(np.float32), y=y), model, None),
        read_data(saved(tmp_path, x=PIXELS, y=y), model, read_preprocess("imagenet")),
        read_data(saved(tmp_path, x=PIXELS, y=y), model, read_preprocess("inception")),
        plain.take(np.arange(6)),
        plain.take(np.arange(7)[::-1]),
    ]
    assert len({data.sha256 for data in others}) == len(others)
    assert plain.take(np.arange(7)).sha256 == plain.sha256


def test_the_source_is_named_without_its_folder(tmp_path: Path) -> None:
    assert drawn(tmp_path, 3).source == "data.npz"


@pytest.mark.parametrize(
    "source", ["absent.npz", "absent/data.npz", "C:\\absent.npz", "C:absent.npz", "a b:c", ":", "a:"]
)
def test_a_source_that_does_not_exist_is_refused_with_what_can_be_given(source: str) -> None:
    with pytest.raises(InputError, match=r"no such file or folder; give an \.npz"):
        read_data(source, loaded(convs()), None)


def test_a_file_whose_name_reads_like_a_function_is_read_as_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("data:batches").open("wb") as file:
        np.save(file, PIXELS)
    np.testing.assert_array_equal(fed(read_data("data:batches", loaded(convs()), None)), FIRST.astype(np.float32))
