"""Samples from a file reach the model in its layout and type, with the right labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import CLASSES, IMAGE, Array, Draft, convs
from onnx import ModelProto, TensorProto, helper

from onnxprune import runtime
from onnxprune.data import Data, read_data, read_preprocess
from onnxprune.errors import InputError
from onnxprune.model import Model, analyse

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


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def fed(data: Data, size: int = 100) -> Array:
    """Everything the model is fed, in order."""
    return np.concatenate([feed[data.name] for feed, _ in data.batches(size)])


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
    assert data.name == "x"
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


def test_models_of_several_inputs_or_none_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["y"], name="add")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in "xzy"]
    model = helper.make_model(helper.make_graph(nodes, "net", values[:2], values[2:]), ir_version=8)
    with pytest.raises(InputError, match="models of one input; this one has 2"):
        read_data(saved(tmp_path, x=np.zeros((3, 4))), loaded(model), None)


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"rescale_factor": 0.1, "image_mean": [1, 2, 3], "image_std": [4, 5, 6]},
            (PIXELS * 0.1 - [1, 2, 3]) / [4, 5, 6],
        ),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.125]}, (PIXELS / 255 - 0.5) / [0.5, 0.25, 0.125]),
        ({"image_mean": [0.5]}, PIXELS / 255 - 0.5),
        ({"rescale_factor": 1.0}, PIXELS * 1.0),
        ({}, PIXELS / 255),
        ({"do_rescale": False, "rescale_factor": 0.1, "image_mean": [9], "image_std": [3]}, (PIXELS - 9.0) / 3),
        ({"do_normalize": False, "image_mean": [9], "image_std": [3]}, PIXELS / 255),
        ({"do_resize": True, "size": {"height": 12}, "resample": 3, "image_processor_type": "X"}, PIXELS / 255),
    ],
    ids=str,
)
def test_a_preprocessor_config_is_its_formula(tmp_path: Path, content: dict[str, Any], expected: Array) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    preprocess = read_preprocess(str(tmp_path / "preprocessor_config.json"))
    x = fed(read_data(saved(tmp_path, x=PIXELS), loaded(nhwc()), preprocess))
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)


def test_one_mean_serves_samples_that_have_no_channels(tmp_path: Path) -> None:
    given = np.array([0, 51, 255], np.uint8)
    data = read_data(saved(tmp_path, x=given), loaded(vectors("N")), read_preprocess("inception"))
    np.testing.assert_allclose(fed(data), [-1, -0.6, 1], atol=1e-6)
    with pytest.raises(InputError, match="means for 3 channels"):
        read_data(tmp_path / "data.npz", loaded(vectors("N")), read_preprocess("imagenet"))


def test_a_name_of_the_table_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").write_text("{}")
    found = read_preprocess("imagenet")
    assert found is not None
    assert found.image_mean == tuple(MEAN)


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


@pytest.mark.parametrize("y", [np.arange(6), np.zeros((7, 1), int), np.zeros(7), np.array(["a"] * 7)], ids=str)
def test_labels_that_are_not_one_integer_a_sample_are_refused(tmp_path: Path, y: Array) -> None:
    with pytest.raises(InputError, match=r"one integer class per sample \(7\)"):
        read_data(saved(tmp_path, x=PIXELS, y=y), loaded(convs()), None)


def test_a_compressed_archive_reads_the_same(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=PIXELS, y=np.arange(7))
    data = read_data(tmp_path / "data.npz", loaded(convs()), None)
    np.testing.assert_array_equal(fed(data), FIRST.astype(np.float32))
