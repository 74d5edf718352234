"""A name or a preprocessor_config.json becomes the numbers that pixels pass through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import Array

from onnxprune.errors import InputError
from onnxprune.inputs import Input
from onnxprune.preprocess import BICUBIC, BILINEAR, IMAGENET, NEAREST, Preprocess, read_preprocess

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)


def read(folder: Path, content: Any) -> Preprocess:
    """Write a configuration and read it."""
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    found = read_preprocess(str(folder / "preprocessor_config.json"))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"rescale_factor": 0.1, "image_mean": [1, 2, 3], "image_std": [4, 5, 6]},
            (PIXELS * 0.1 - [1, 2, 3]) / [4, 5, 6],
        ),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.125]}, (PIXELS / 255 - 0.5) / [0.5, 0.25, 0.125]),
        ({"image_mean": [0.5]}, PIXELS / 255 - 0.5),
        ({"image_mean": 0.5, "image_std": 2}, (PIXELS / 255 - 0.5) / 2),
        ({"rescale_factor": 1.0}, PIXELS * 1.0),
        ({}, PIXELS / 255),
        ({"do_rescale": False, "rescale_factor": 0.1, "image_mean": [9], "image_std": [3]}, (PIXELS - 9.0) / 3),
        ({"do_normalize": False, "image_mean": [9], "image_std": [3]}, PIXELS / 255),
        ({"do_rescale": False, "do_normalize": False}, PIXELS * 1.0),
        ({"image_processor_type": "X", "do_resize": True, "size": 12, "resample": 3, "crop_size": None}, PIXELS / 255),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_preprocessor_config_is_its_formula(tmp_path: Path, content: dict[str, Any], expected: Array) -> None:
    found = read(tmp_path, content)
    fed = Input("image", (1, 12, 12, 3), np.dtype(np.float32), 3).feed(PIXELS, found)
    assert fed.dtype == np.float32
    np.testing.assert_allclose(fed, expected, rtol=1e-4, atol=1e-5)
    assert found.keeps_pixels == np.array_equal(expected, PIXELS)


@pytest.mark.parametrize(
    ("content", "size", "crop_size"),
    [
        ({}, None, None),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 192}}, 256, (224, 192)),
        ({"size": {"shortest_edge": 256}, "do_center_crop": False, "crop_size": 224}, 256, None),
        ({"size": {"height": 240, "width": 320}}, (240, 320), None),
        ({"size": 224}, (224, 224), None),
        ({"size": 256, "crop_size": 224}, 256, (224, 224)),
        ({"size": 256, "do_center_crop": True}, 256, None),
        ({"size": 256, "do_center_crop": None, "crop_size": 224}, (256, 256), None),
        ({"size": {"longest_edge": 9}, "do_resize": False, "crop_size": 224}, None, (224, 224)),
    ],
    ids=str,
)
def test_sizes_are_read_in_the_forms_of_hugging_face(
    tmp_path: Path, content: dict[str, Any], size: Any, crop_size: Any
) -> None:
    found = read(tmp_path, content)
    assert (found.size, found.crop_size) == (size, crop_size)
    assert found.do_resize == content.get("do_resize", True)


def test_images_are_resampled_as_the_code_says_and_bicubic_without_one(tmp_path: Path) -> None:
    assert read(tmp_path, {"resample": 0}).resample == NEAREST == 0
    assert read(tmp_path, {"resample": 2}).resample == BILINEAR == 2
    assert read(tmp_path, {"resample": None}).resample == read(tmp_path, {}).resample == BICUBIC == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"size": "224"}, "size 224 is not understood"),
        ({"size": {"height": 224}}, "is not understood"),
        ({"size": {"shortest_edge": 800, "longest_edge": 1333}}, '"do_resize": false'),
        ({"size": 224, "crop_pct": 0.875}, "crop_pct is not known here"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is not known here"),
        ({"size": 224, "include_top": True}, "include_top is not known here"),
        ({"size": 224, "image_processor_type": "EfficientNetImageProcessor"}, "include_top is not known here"),
        ({"size": 0}, "size 0"),
        ({"size": 224.5}, "size 224.5"),
        ({"size": True}, "size True"),
        ({"size": {"height": 224, "width": -1}}, "is not understood"),
        ({"crop_size": {"shortest_edge": 224}}, "crop_size .* is not understood"),
        ({"crop_size": [224, 224]}, '"do_center_crop": false'),
        ({"resample": 6}, "resample must be"),
        ({"resample": "bicubic"}, "resample must be"),
        ({"image_mean": "half"}, "must be numbers"),
        ({"image_mean": None}, "must be numbers"),
        ({"image_std": [1, float("inf"), 1]}, "must be finite"),
        ({"image_std": [1, 0, 1]}, "image_std not 0"),
        ([0.5, 0.5], "must be numbers"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_refused_with_the_file(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(InputError, match=rf"preprocessor_config\.json: .*{words}"):
        read(tmp_path, content)


def test_a_name_of_the_table_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").write_text("{}")
    assert read_preprocess("imagenet") is IMAGENET
    assert IMAGENET.image_mean == (0.485, 0.456, 0.406)


def test_what_is_neither_a_name_nor_a_file_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match="'cifar' is neither a file nor one of cifar10, imagenet, inception, none"):
        read_preprocess("cifar")
