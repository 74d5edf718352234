"""Folders of images: what is found, how it is labelled, what pixels reach the model, what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import CLASSES, IMAGE, Array, Draft, convs
from onnx import ModelProto, TensorProto, helper
from PIL import Image

from onnxprune import runtime
from onnxprune.data import Data, read_data, split
from onnxprune.errors import InputError
from onnxprune.images import LARGEST_IMAGE, SUFFIXES
from onnxprune.model import Model, analyse
from onnxprune.preprocess import BICUBIC, BILINEAR, NEAREST, Preprocess, read_preprocess

RGB = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
"""An image of the size that the models here take."""

WIDE = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def taking(*image: int, kind: int = TensorProto.FLOAT) -> Model:
    """A model that takes images of this shape; what it does with them does not matter."""
    nodes = [helper.make_node("Identity", ["image"], ["out"], name="same")]
    values = [helper.make_tensor_value_info(name, kind, ("N", *image)) for name in ("image", "out")]
    model = helper.make_model(helper.make_graph(nodes, "net", values[:1], values[1:]), ir_version=8)
    return analyse(model, Path(), runtime.evaluate, {})


MODEL = taking(*IMAGE)


def place(path: Path, pixels: Array = RGB, **options: Any) -> Path:
    """Write an image, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def read(folder: Path, model: Model = MODEL, preprocess: Preprocess | None = None) -> Data:
    return read_data(folder, model, preprocess)


def fed(data: Data, size: int = 3) -> Array:
    """Everything the model is fed, in order."""
    return np.concatenate([feed["image"] for feed, _ in data.batches(size)])


def first(folder: Path, model: Model = MODEL, preprocess: Preprocess | None = None) -> Array:
    """The first image as the model sees it, channels last."""
    image = fed(read(folder, model, preprocess))[0]
    return image.transpose(1, 2, 0) if image.shape[0] in (1, 3) else image


def flat(value: int) -> Array:
    """An image of one gray value, by which it is known again."""
    return np.full((12, 12, 3), value, np.uint8)


# ---- what is found


def test_images_of_a_folder_come_in_the_order_of_their_names_without_labels(tmp_path: Path) -> None:
    for value, name in enumerate(["a.png", "b.PNG", "c.bmp", "d.tiff", "e.webp", "img10.gif", "img9.TIF"]):
        place(tmp_path / name, flat(10 * value), **({"lossless": True} if name.endswith("webp") else {}))
    data = read(tmp_path)
    assert data.y is None
    assert len(data) == 7
    assert data.source == tmp_path.name
    np.testing.assert_array_equal(fed(data)[:, 0, 0, 0], [0, 10, 20, 30, 40, 50, 60])
    assert [labels for _, labels in data.batches(4)] == [None, None]


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG", "x.Jpg"])
def test_jpeg_images_are_read_whatever_the_case_of_their_suffix(tmp_path: Path, name: str) -> None:
    place(tmp_path / name, flat(100), format="JPEG", quality=100)
    assert abs(first(tmp_path) - 100).max() <= 1


def test_class_folders_named_by_integers_are_those_classes(tmp_path: Path) -> None:
    for name in ("10", "9", "007"):
        for number in range(2):
            place(tmp_path / name / f"{number}.png", flat(int(name) + 100 * number))
    (tmp_path / "11").mkdir()
    data = read(tmp_path)
    np.testing.assert_array_equal(data.y, [7, 7, 9, 9, 10, 10])
    np.testing.assert_array_equal(fed(data)[:, 0, 0, 0], [7, 107, 9, 109, 10, 110])
    np.testing.assert_array_equal(np.concatenate([y for _, y in data.batches(4) if y is not None]), data.y)


def test_class_folders_with_other_names_count_in_sorted_order(tmp_path: Path) -> None:
    for number, name in enumerate(["Zebra", "ant", "cat", "10"]):
        place(tmp_path / name / "x.png", flat(number))
    data = read(tmp_path)
    np.testing.assert_array_equal(data.y, [0, 1, 2, 3])
    np.testing.assert_array_equal(fed(data)[:, 0, 0, 0], [3, 0, 1, 2])
    assert data.y is not None
    assert data.y.dtype == np.int64


def test_links_are_followed_and_hidden_and_other_files_left_out(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    place(tmp_path / "elsewhere" / "cats" / "x.png", flat(1))
    place(tmp_path / "dog.png", flat(2))
    (inside / "dog").mkdir(parents=True)
    (inside / "dog" / "link.png").symlink_to(tmp_path / "dog.png")
    (inside / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    place(inside / ".hidden" / "x.png")
    place(inside / "dog" / ".hidden.png")
    (inside / "dog" / "notes.txt").write_text("no image")
    (inside / "labels.csv").write_text("no image")
    data = read(inside)
    np.testing.assert_array_equal(fed(data)[:, 0, 0, 0], [1, 2])
    np.testing.assert_array_equal(data.y, [0, 1])


def test_the_working_directory_is_a_folder_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    assert read(Path()).source == tmp_path.name


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.BOOL])
def test_pixels_that_an_input_cannot_hold_are_refused(tmp_path: Path, kind: int) -> None:
    place(tmp_path / "a.png")
    with pytest.raises(InputError, match="of pixels up to 255; the model takes"):
        read_data(str(tmp_path), taking(*IMAGE, kind=kind), None)


def test_a_folder_without_images_is_refused_with_what_counts_as_one(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    place(tmp_path / "too" / "deep" / "x.png")
    with pytest.raises(InputError, match=f"holds no images .*{'.*'.join(sorted(SUFFIXES))}"):
        read(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    place(tmp_path / "x.png")
    place(tmp_path / "cat" / "x.png")
    with pytest.raises(InputError, match="folders of images such as cat; put all images into class folders, or none"):
        read(tmp_path)


def test_an_empty_class_folder_is_refused_where_it_would_shift_the_classes(tmp_path: Path) -> None:
    place(tmp_path / "cat" / "x.png")
    (tmp_path / "ant").mkdir()
    with pytest.raises(InputError, match="ant holds no images; put its images directly into it, or remove it"):
        read(tmp_path)


# ---- pixels


@pytest.mark.parametrize("image", [(3, 12, 12), (12, 12, 3)], ids=["channels first", "channels last"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT32])
def test_an_image_of_the_models_size_arrives_pixel_by_pixel(tmp_path: Path, image: Any, kind: int) -> None:
    place(tmp_path / "x.png")
    found = fed(read(tmp_path, taking(*image, kind=kind)))
    assert found.dtype == helper.tensor_dtype_to_np_dtype(kind)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found[0], RGB if image[2] == 3 else RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("image", [(1, 12, 12), (12, 12, 1)], ids=["channels first", "channels last"])
def test_a_model_of_one_channel_gets_gray(tmp_path: Path, image: tuple[int, ...]) -> None:
    place(tmp_path / "a.png", RGB[..., 0])
    place(tmp_path / "b.png")
    found = fed(read(tmp_path, taking(*image))).reshape(2, 12, 12)
    np.testing.assert_array_equal(found[0], RGB[..., 0])
    assert abs(found[1] - RGB @ [0.299, 0.587, 0.114]).max() <= 1


def test_a_gray_image_gives_three_equal_channels(tmp_path: Path) -> None:
    place(tmp_path / "x.png", RGB[..., 0])
    np.testing.assert_array_equal(first(tmp_path), np.stack([RGB[..., 0]] * 3, axis=-1))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    place(tmp_path / "x.png", np.dstack([RGB, RGB[..., :1]]))
    np.testing.assert_array_equal(first(tmp_path), RGB)


def test_a_palette_with_transparent_colours_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray((RGB // 128 * 255).astype(np.uint8)).quantize(8)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128, 255, 7]))
    np.testing.assert_array_equal(first(tmp_path), RGB // 128 * 255)


def test_printing_colours_become_screen_colours(tmp_path: Path) -> None:
    cmyk = np.dstack([255 - RGB, np.zeros((12, 12), np.uint8)])
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "x.tiff")
    np.testing.assert_array_equal(first(tmp_path), RGB)


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    place(tmp_path / "x.png", RGB[..., 0].astype(np.uint16) * 257)
    np.testing.assert_array_equal(first(tmp_path, taking(1, 12, 12))[..., 0], RGB[..., 0])


def test_black_and_white_are_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0] > 127).save(tmp_path / "x.png")
    np.testing.assert_array_equal(first(tmp_path)[..., 1], (RGB[..., 0] > 127) * 255)


@pytest.mark.parametrize(("code", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_a_camera_held_on_its_side_gives_an_upright_image(tmp_path: Path, code: int, turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = code
    place(tmp_path / "x.png", RGB, exif=exif)
    np.testing.assert_array_equal(first(tmp_path), np.rot90(RGB, turns))


def test_an_animation_shows_its_first_picture(tmp_path: Path) -> None:
    pictures = [Image.fromarray(flat(value)) for value in (30, 200)]
    pictures[0].save(tmp_path / "x.gif", save_all=True, append_images=pictures[1:])
    np.testing.assert_array_equal(first(tmp_path), flat(30))


def test_pixels_are_preprocessed(tmp_path: Path) -> None:
    place(tmp_path / "x.png")
    expected = (RGB / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(first(tmp_path, MODEL, read_preprocess("imagenet")), expected, rtol=1e-4, atol=1e-5)


# ---- sizes


def resized(width: int, height: int, resample: int = BICUBIC, pixels: Array = WIDE) -> Array:
    """An image resized by Pillow."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling(resample)))


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        (None, resized(20, 12)[:, 4:16]),
        (Preprocess(resample=BILINEAR), resized(20, 12, BILINEAR)[:, 4:16]),
        (Preprocess(resample=NEAREST), resized(20, 12, NEAREST)[:, 4:16]),
        (Preprocess(size=15, crop_size=(12, 12)), resized(25, 15)[1:13, 6:18]),
        (Preprocess(size=15), resized(25, 15)[1:13, 6:18]),
        (Preprocess(size=(12, 12)), resized(12, 12)),
        (Preprocess(size=(16, 14), crop_size=(12, 12)), resized(14, 16)[2:14, 1:13]),
        (Preprocess(do_resize=False), WIDE[6:18, 14:26]),
    ],
)
@pytest.mark.parametrize("on_its_side", [False, True])
def test_an_image_of_another_size_is_resized_and_cropped_around_its_centre(
    tmp_path: Path, preprocess: Preprocess | None, expected: Array, on_its_side: bool
) -> None:
    if on_its_side and preprocess is not None and isinstance(preprocess.size, tuple):
        preprocess = Preprocess(size=preprocess.size[::-1], crop_size=preprocess.crop_size)
    place(tmp_path / "x.png", WIDE.swapaxes(0, 1) if on_its_side else WIDE)
    found = first(tmp_path, MODEL, preprocess)
    if on_its_side:  # Pillow resamples columns first, and rounds in between
        np.testing.assert_allclose(found.swapaxes(0, 1), expected, atol=5)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12), (30, 10)])
def test_a_model_that_takes_no_squares_is_covered_too(tmp_path: Path, height: int, width: int) -> None:
    place(tmp_path / "x.png", WIDE)
    wide, high = (width, width * 24 // 40) if height * 40 <= width * 24 else (40 * height // 24, height)
    top, left = (high - height) // 2, (wide - width) // 2
    expected = resized(wide, high)[top : top + height, left : left + width]
    np.testing.assert_array_equal(first(tmp_path, taking(3, height, width)), expected)


def test_an_image_that_has_the_models_size_is_never_resampled(tmp_path: Path) -> None:
    place(tmp_path / "x.png")
    np.testing.assert_array_equal(first(tmp_path, MODEL, Preprocess(size=256, crop_size=(12, 12))), RGB)


@pytest.mark.parametrize("preprocess", [Preprocess(crop_size=(8, 12)), Preprocess(size=(8, 12))])
def test_a_preprocessing_for_another_size_than_the_models_is_refused(tmp_path: Path, preprocess: Preprocess) -> None:
    place(tmp_path / "x.png")
    with pytest.raises(InputError, match="makes images of 12x8 pixels, the model takes 12x12"):
        read(tmp_path, MODEL, preprocess)


@pytest.mark.parametrize("preprocess", [Preprocess(do_resize=False), Preprocess(size=10)])
def test_an_image_that_stays_too_small_is_named(tmp_path: Path, preprocess: Preprocess) -> None:
    place(tmp_path / "small.png", WIDE[:10, :14])
    with pytest.raises(InputError, match=r"small\.png has 14x10 pixels .* the model takes 12x12"):
        fed(read(tmp_path, MODEL, preprocess))


# ---- what cannot be read


def png(width: int, height: int) -> bytes:
    """The header of an image that claims this size, and no pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image at all",
        png(12, 12),
        b"P6 12 12 255 " + RGB.tobytes(),
        b"\xff\xd8\xff\xe0" + bytes(range(256)),
    ],
    ids=["empty", "text", "no pixels", "a format that is not asked for", "noise"],
)
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes) -> None:
    place(tmp_path / "a.png")
    (tmp_path / "bad.jpg").write_bytes(content)
    data = read(tmp_path)
    with pytest.raises(InputError, match=r"bad\.jpg cannot be read as an image .*; replace or remove it"):
        fed(data)
    with pytest.raises(InputError, match=r"bad\.jpg"):
        data.loaded()


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    whole = place(tmp_path / "cut.jpg", np.tile(WIDE, (10, 10, 1))).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.jpg cannot be read as an image .*truncated"):
        fed(read(tmp_path))


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    place(tmp_path / "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(InputError, match=r"gone\.png cannot be read"):
        fed(read(tmp_path))
    with pytest.raises(InputError, match=r"gone\.png cannot be read: No such file"):
        assert read(tmp_path).sha256


@pytest.mark.parametrize("side", [9_500, 20_000, 2**31 - 1], ids=["warned of", "refused by Pillow", "petabytes"])
def test_an_image_that_claims_absurdly_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png(side, side))
    with pytest.raises(InputError, match=r"bomb\.png .*(pixels|decompression bomb)"):
        fed(read(tmp_path))


def test_an_image_that_would_be_resized_to_absurdly_many_pixels_is_refused(tmp_path: Path) -> None:
    place(tmp_path / "thin.png", np.zeros((LARGEST_IMAGE // 144 + 1, 1), np.uint8))
    with pytest.raises(InputError, match=r"thin\.png would be resized to 12x\d+ pixels"):
        fed(read(tmp_path))


def test_numbers_of_32_bits_are_no_colours(tmp_path: Path) -> None:
    place(tmp_path / "x.tiff", RGB[..., 0].astype(np.float32) / 255)
    with pytest.raises(InputError, match=r"x\.tiff holds 32-bit numbers, no colours"):
        fed(read(tmp_path))


@pytest.mark.parametrize("model", [taking(20), taking(4, 12, 12), taking(12, 12)], ids=["list", "four", "none"])
def test_a_model_that_takes_no_images_is_refused(tmp_path: Path, model: Model) -> None:
    place(tmp_path / "x.png")
    with pytest.raises(InputError, match="no images of 1 or 3 channels"):
        read(tmp_path, model)


def test_a_model_of_several_inputs_is_refused(tmp_path: Path) -> None:
    place(tmp_path / "x.png")
    model = analyse(two_inputs(), Path(), runtime.evaluate, {})
    with pytest.raises(InputError, match="models of one input; this one has 2"):
        read(tmp_path, model)


def two_inputs() -> ModelProto:
    draft = Draft()
    draft.head(draft.conv("conv", "image", 3, 16), 16)
    draft.add("Relu", "relu", "age")
    return draft.model([("image", ("N", *IMAGE)), ("age", ("N", 1))], [("logits", ("N", CLASSES))])


# ---- when files are read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images in two classes, each of its own gray value."""
    for value in range(10):
        place(tmp_path / f"class{value % 2}" / f"{value}.png", flat(value))
    return tmp_path


def test_images_are_decoded_when_they_are_fed(folder: Path) -> None:
    data = read(folder)
    batches = data.batches(4)
    np.testing.assert_array_equal(next(batches)[0]["image"][:, 0, 0, 0], [0, 2, 4, 6])
    (folder / "class1" / "9.png").write_bytes(b"gone bad")
    np.testing.assert_array_equal(next(batches)[0]["image"][:, 0, 0, 0], [8, 1, 3, 5])
    with pytest.raises(InputError, match=r"9\.png"):
        next(batches)


def test_loaded_images_need_their_files_no_more(folder: Path) -> None:
    data = read(folder, MODEL, read_preprocess("imagenet")).take(np.array([9, 0, 3]))
    held, before, name = data.loaded(), fed(data), data.sha256
    assert held.sha256 == name
    again = held.loaded()
    for path in folder.rglob("*.png"):
        path.unlink()
    np.testing.assert_array_equal(fed(held), before)
    np.testing.assert_array_equal(fed(again), before)
    np.testing.assert_array_equal(held.y, data.y)
    np.testing.assert_array_equal(fed(held.take(np.array([2, 0]))), before[[2, 0]])


def test_parts_of_a_split_hold_the_images_and_classes_of_their_indices(folder: Path) -> None:
    data = read(folder)
    parts = split(data)
    everything = fed(data)
    assert data.y is not None
    for name, part in (("calibration", parts.calibration), ("search", parts.search), ("holdout", parts.holdout)):
        np.testing.assert_array_equal(fed(part), everything[parts.indices[name]])
        np.testing.assert_array_equal(part.y, data.y[parts.indices[name]])


def test_the_hash_of_images_follows_files_order_size_and_preprocessing(folder: Path) -> None:
    data = read(folder)
    assert read(folder).sha256 == data.sha256
    hashes = {
        data.sha256,
        data.take(np.arange(9)).sha256,
        data.take(np.arange(10)[::-1]).sha256,
        read(folder, taking(3, 10, 10)).sha256,
        read(folder, MODEL, read_preprocess("imagenet")).sha256,
        read(folder, MODEL, Preprocess(resample=NEAREST)).sha256,
    }
    place(folder / "class1" / "9.png", flat(99))
    hashes.add(read(folder).sha256)
    assert len(hashes) == 7


def test_a_real_network_runs_on_a_folder(folder: Path) -> None:
    data = read(folder, analyse(convs(), Path(), runtime.evaluate, {}))
    session = runtime.Session(convs())
    ((feed, _),) = data.batches(10)
    assert session.run(feed)[0].shape == (10, CLASSES)
