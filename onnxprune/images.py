"""A folder of images that reads like one array: files are decoded when they are asked for."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from onnxprune.errors import InputError
from onnxprune.inputs import Input, bounds
from onnxprune.preprocess import Preprocess
from onnxprune.weights import Array

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
"""What is decoded, whatever a file's suffix says; some of Pillow's other formats start programs."""

LARGEST_IMAGE = 89_000_000  # pixels; a small file can claim any number of them
BRIGHTEST = 255  # pixel
MODES = {1: "L", 3: "RGB"}  # by the number of channels
CLASS = re.compile("[0-9]{1,9}")


@dataclass(frozen=True, eq=False)
class Images:
    """Image files as an array of uint8 pixels, first axis the image.

    Attributes:
        files: where the images lie.
        shape: (images, channels, height, width), or channels last.
        channel_axis: 1 or 3.
        preprocess: says how images of another size are resized; None: as small as covers the model's, bicubic.
        pixels: the images where they have been decoded already, or None.
    """

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    channel_axis: int
    preprocess: Preprocess | None
    pixels: Array | None = None

    def __getitem__(self, indices: Array) -> Array:
        """Decode some of the images.

        Raises:
            InputError: a file is no image, or too large, or does not come to the model's size.
        """
        if self.pixels is not None:
            return self.pixels[indices]
        made = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for place, index in zip(made, indices, strict=True):
            place[...] = self._decoded(self.files[index])
        return made

    def loaded(self, indices: Array) -> Images:
        """Take some of the images, decoded and held in memory."""
        files = tuple(self.files[index] for index in indices)
        return replace(self, files=files, shape=(len(files), *self.shape[1:]), pixels=self[indices])

    def digests(self, indices: Array) -> Iterator[bytes]:
        """Give the SHA-256 of each file.

        Raises:
            InputError: a file cannot be read.
        """
        for index in indices:
            try:
                with self.files[index].open("rb") as file:
                    yield hashlib.file_digest(file, "sha256").digest()
            except OSError as error:
                raise InputError(f"{self.files[index]} cannot be read: {error.strerror}") from error

    def _decoded(self, path: Path) -> Array:
        """Read one image as (channels, height, width), or channels last."""
        channels_last = self.channel_axis == 3
        channels = self.shape[self.channel_axis]
        height, width = self.shape[1:3] if channels_last else self.shape[2:]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about metadata, and about large images, which are refused below
                image = _fitted(path, _opened(path, MODES[channels]), height, width, self.preprocess or Preprocess())
        except InputError:
            raise
        except Exception as error:  # a damaged image can raise anything: OSError, SyntaxError, struct.error, ...
            raise InputError(f"{path} cannot be read as an image ({error}); replace or remove it") from error
        pixels = np.asarray(image).reshape(height, width, channels)
        return pixels if channels_last else pixels.transpose(2, 0, 1)


def _opened(path: Path, mode: str) -> Image.Image:
    """Decode a file (the first picture of an animation), upright, in the colours that the model takes."""
    with Image.open(path, formats=FORMATS) as file:
        _check_count(path, file.size, "has")
        image = ImageOps.exif_transpose(file)
        if image.mode in ("I", "F"):
            raise InputError(f"{path} holds 32-bit numbers, no colours; save it as 8-bit PNG")
        if image.mode.startswith("I;16"):  # convert() would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode == "P":  # its colours may have transparency, which is dropped as in any other image
            image = image.convert("RGBA")
        return image.convert(mode)


def _fitted(path: Path, image: Image.Image, height: int, width: int, preprocess: Preprocess) -> Image.Image:
    """Resize and crop an image to the model's size, unless it has it."""
    if image.size == (width, height):
        return image
    if preprocess.do_resize:
        size = _resized_size(image.size, height, width, preprocess.size)
        _check_count(path, size, "would be resized to")
        image = image.resize(size, Image.Resampling(preprocess.resample))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    if left < 0 or top < 0:
        raise InputError(
            f"{path} has {image.width}x{image.height} pixels when it is to be cropped, the model takes "
            f"{width}x{height}; correct size and do_resize of --preprocess, or give larger images"
        )
    return image.crop((left, top, left + width, top + height))


def _resized_size(
    size: tuple[int, int], height: int, width: int, asked: int | tuple[int, int] | None
) -> tuple[int, int]:
    """Give the width and height that an image of this width and height is resized to."""
    if isinstance(asked, tuple):
        return asked[1], asked[0]
    if asked is not None:
        height = width = asked
    if size[0] * height >= size[1] * width:  # the height decides, the width is cropped
        return max(size[0] * height // size[1], 1), height
    return width, max(size[1] * width // size[0], 1)


def _check_count(path: Path, size: tuple[int, int], verb: str) -> None:
    if size[0] * size[1] > LARGEST_IMAGE:
        raise InputError(
            f"{path} {verb} {size[0]}x{size[1]} pixels; images of up to {LARGEST_IMAGE // 10**6} million are read, "
            "remove it or make it smaller"
        )


def read_images(folder: Path, inputs: Sequence[Input], preprocess: Preprocess | None) -> tuple[Images, Array | None]:
    """Take the images of a folder for a model; nothing is decoded yet.

    Images of another size than the model's are resized with bicubic interpolation until they just cover it, or as
    `preprocess` says, and cropped around their centre; an image that has the model's size is not resampled.

    Args:
        folder: holds images, or a folder of images for each class.
        inputs: of the model; it must have one, of four axes, with 1 channel (gray) or 3 (RGB).
        preprocess: says how images are resized; None: the default.

    Returns:
        The images, and the class of each (int64), or None; see `find_images`.

    Raises:
        InputError: there are no images, or the model takes none, or of another size than `preprocess` makes.
    """
    if len(inputs) != 1:
        raise InputError(
            f"{folder} is a folder of images, for models of one input; this one has {len(inputs)}: "
            "give an .npz with an array for each"
        )
    shape, axis = inputs[0].shape, inputs[0].channel_axis or 1
    if len(shape) != 4 or shape[axis] not in MODES:
        raise InputError(
            f"{folder} is a folder of images, the model takes samples of shape {shape[1:]}: "
            "no images of 1 or 3 channels; give an .npz"
        )
    dtype = inputs[0].dtype
    known = bounds(dtype)
    if known is not None and known[1] < BRIGHTEST:
        raise InputError(f"{folder} is a folder of images, of pixels up to 255; the model takes {dtype}: give an .npz")
    height, width = (size for i, size in enumerate(shape) if i not in (0, axis))
    made = None
    if preprocess is not None:
        made = preprocess.crop_size or (preprocess.size if isinstance(preprocess.size, tuple) else None)
    if made is not None and made != (height, width):
        raise InputError(
            f"--preprocess makes images of {made[1]}x{made[0]} pixels, the model takes {width}x{height}; "
            "correct its size or crop_size, or give --shape if the model's sizes are free"
        )
    files, labels = find_images(folder)
    return Images(files, (len(files), *shape[1:]), axis, preprocess), labels


def find_images(folder: Path) -> tuple[tuple[Path, ...], Array | None]:
    """List the images of a folder, in a fixed order, and the class of each (int64) where they lie in class folders.

    The class of a folder is its name where all folders with images are named by integers, else its place in the sorted
    names. Hidden files and files that are no images are left out.

    Raises:
        InputError: there are no images, or they lie beside the class folders too, or a named class folder is empty.
    """
    direct = _images_in(folder)
    classes = {entry.name: _images_in(entry) for entry in _visible(folder) if entry.is_dir()}
    filled = {name: files for name, files in classes.items() if files}
    if direct and filled:
        raise InputError(
            f"{folder} holds images, and folders of images such as {min(filled)}; "
            "put all images into class folders, or none"
        )
    if direct:
        return tuple(direct), None
    if not filled:
        raise InputError(
            f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}), neither itself nor in folders of classes; "
            "give the folder that does"
        )
    labels = _class_numbers(folder, classes, sorted(filled))
    pairs = sorted((labels[name], file) for name, files in filled.items() for file in files)
    return tuple(file for _, file in pairs), np.array([label for label, _ in pairs], np.int64)


def _class_numbers(folder: Path, classes: dict[str, list[Path]], filled: Sequence[str]) -> dict[str, int]:
    """Number the class folders by their names."""
    if all(CLASS.fullmatch(name) for name in filled):
        return {name: int(name) for name in filled}
    if len(filled) < len(classes):  # whether it counts would change the classes of all that follow
        empty = min(set(classes) - set(filled))
        raise InputError(
            f"the class folder {folder / empty} holds no images; put its images directly into it, or remove it"
        )
    return {name: number for number, name in enumerate(filled)}


def _images_in(folder: Path) -> list[Path]:
    """List the images that lie directly in a folder; a link that leads nowhere is one, so that it is not overlooked."""
    return [p for p in _visible(folder) if p.suffix.lower() in SUFFIXES and (p.is_file() or not p.exists())]


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read: {error.strerror}") from error
