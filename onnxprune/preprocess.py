"""How pixels become inputs: a name, or a file in the form of Hugging Face's preprocessor_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import InputError
from onnxprune.files import read_json

UNKNOWN = ("include_top", "do_flip_channel_order", "rescale_offset", "do_pad", "do_grayscale", "crop_pct")
"""What changes pixels in such a file and is not done here."""

KNOWN = {
    *("crop_size", "do_center_crop", "do_normalize", "do_rescale", "do_resize"),
    *("image_mean", "image_std", "resample", "rescale_factor", "size"),
}
"""What is taken from such a file."""

NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)
"""The codes of Pillow for ways to resample."""


@dataclass(frozen=True)
class Preprocess:
    """What happens to an image before a model sees it.

    Image files whose size is not the model's are resized and then cropped around their centre to the model's size.
    Pixels become ``(pixel * rescale_factor - image_mean) / image_std``, channel by channel. The fields are those of
    the Hugging Face ``preprocessor_config.json``.

    Attributes:
        rescale_factor: what pixels (0 to 255) are multiplied by.
        image_mean: one for all channels, or one a channel.
        image_std: the same.
        do_resize: whether image files may be resized.
        size: pixels of the shorter side after resizing, or (height, width); None: as small as covers the model's size.
        crop_size: the size (height, width) that is cropped, which must be the model's; None: the model's.
        resample: how image files are resampled, a code of Pillow.
    """

    rescale_factor: float = 1.0
    image_mean: tuple[float, ...] = (0.0,)
    image_std: tuple[float, ...] = (1.0,)
    do_resize: bool = True
    size: int | tuple[int, int] | None = None
    crop_size: tuple[int, int] | None = None
    resample: int = BICUBIC

    @property
    def keeps_pixels(self) -> bool:
        """Whether inputs are the pixels themselves."""
        return self.rescale_factor == 1 and set(self.image_mean) == {0.0} and set(self.image_std) == {1.0}


IMAGENET = Preprocess(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PREPROCESS: dict[str, Preprocess | None] = {
    "cifar10": IMAGENET,
    "imagenet": IMAGENET,
    "inception": Preprocess(1 / 127.5, (1.0,), (1.0,)),
    "none": None,
}


def read_preprocess(text: str) -> Preprocess | None:
    """Read what `--preprocess` names: a name of `PREPROCESS`, or a JSON file in the form of preprocessor_config.json.

    What such a file leaves out is 1/255, mean 0, std 1, bicubic, and the model's own size. A `size` that is one number
    means the shorter side where a crop follows, and a square where none does, as in Hugging Face's classes.

    Raises:
        InputError: it is neither, or its values make no sense.
    """
    if text in PREPROCESS:
        return PREPROCESS[text]
    path = Path(text)
    if not path.is_file():
        raise InputError(f"--preprocess {text!r} is neither a file nor one of {', '.join(PREPROCESS)}")
    content = read_json(path)
    if content and isinstance(content, dict) and content.keys().isdisjoint(KNOWN | set(UNKNOWN)):
        raise InputError(f"{path} says nothing of how pixels become inputs; give one of {', '.join(sorted(KNOWN))}")
    try:
        scale, mean, std = _scaling(content)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: rescale_factor, image_mean and image_std must be numbers ({error})") from error
    if not np.isfinite([scale, *mean, *std]).all() or 0 in std:
        raise InputError(f"{path}: rescale_factor, image_mean and image_std must be finite, image_std not 0")
    for key in UNKNOWN:
        if content.get(key, key == "include_top" and _is_efficientnet(content)):
            raise InputError(
                f"{path}: {key} is not known here; give samples that are ready as they are, in an .npy file"
            )
    does_resize = bool(content.get("do_resize", True))
    does_crop = bool(content.get("do_center_crop", "crop_size" in content))
    resample = content.get("resample")
    if resample is not None and (type(resample) is not int or not NEAREST <= resample <= HAMMING):
        raise InputError(f"{path}: resample must be a code of Pillow: 0 nearest, 1 lanczos, 2 bilinear, 3 bicubic")
    return Preprocess(
        scale,
        mean,
        std,
        does_resize,
        _size(path, content.get("size"), does_crop) if does_resize else None,
        _crop_size(path, content.get("crop_size")) if does_crop else None,
        BICUBIC if resample is None else resample,
    )


def _is_efficientnet(content: Any) -> bool:
    """Tell whether a configuration is of the class that divides by image_std twice unless `include_top` is false."""
    names = (content.get("image_processor_type"), content.get("feature_extractor_type"))
    return any(str(name).startswith("EfficientNet") for name in names)


def _scaling(content: Any) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Take the factor, means and standard deviations from a configuration."""
    scale = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if content.get("do_rescale", True):
        scale = float(content.get("rescale_factor", 1 / 255))
    if content.get("do_normalize", True):
        mean, std = (_numbers(content.get(key, usual)) for key, usual in (("image_mean", mean), ("image_std", std)))
    return scale, mean, std


def _numbers(given: Any) -> tuple[float, ...]:
    """Take a number for each channel, or one for all."""
    return tuple(float(value) for value in (given if isinstance(given, list | tuple) else [given]))


def _size(path: Path, size: Any, does_crop: bool) -> int | tuple[int, int] | None:
    """Take the size that images are resized to."""
    if size is None:
        return None
    if _is_side(size):
        return int(size) if does_crop else (size, size)
    if isinstance(size, dict) and set(size) == {"shortest_edge"} and _is_side(size["shortest_edge"]):
        return int(size["shortest_edge"])
    pair = _pair(size)
    if pair is None:
        raise InputError(
            f"{path}: size {size} is not understood; give a number of pixels, "
            '{"shortest_edge": n} or {"height": h, "width": w}, or "do_resize": false'
        )
    return pair


def _crop_size(path: Path, size: Any) -> tuple[int, int] | None:
    """Take the size that images are cropped to."""
    if size is None:
        return None
    pair = (size, size) if _is_side(size) else _pair(size)
    if pair is None:
        raise InputError(
            f'{path}: crop_size {size} is not understood; give a number of pixels or {{"height": h, "width": w}}, '
            'or "do_center_crop": false'
        )
    return pair


def _pair(size: Any) -> tuple[int, int] | None:
    """Take ``{"height": h, "width": w}``; None where it is something else."""
    if isinstance(size, dict) and set(size) == {"height", "width"} and all(map(_is_side, size.values())):
        return size["height"], size["width"]
    return None


def _is_side(value: Any) -> bool:
    return type(value) is int and value > 0
