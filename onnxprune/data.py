"""Images (or whatever the model takes) from a file, brought to the model's layout and type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ValueInfoProto

from onnxprune import shapes as sizes
from onnxprune.errors import InputError
from onnxprune.files import read_json
from onnxprune.model import Model
from onnxprune.weights import Array


@dataclass(frozen=True)
class Preprocess:
    """How pixels become inputs: ``(pixel * rescale - mean) / std``, channel by channel.

    The fields are those of the Hugging Face ``preprocessor_config.json``.
    """

    rescale_factor: float
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]


IMAGENET = Preprocess(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PREPROCESS: dict[str, Preprocess | None] = {
    "cifar10": IMAGENET,
    "imagenet": IMAGENET,
    "inception": Preprocess(1 / 127.5, (1.0,), (1.0,)),
    "none": None,
}


@dataclass(frozen=True)
class Data:
    """Samples in the model's layout and type.

    Attributes:
        name: the input they feed.
        x: samples, first axis the batch; integers are still pixels.
        y: class of each sample, or None.
        preprocess: what turns pixels into inputs, or None.
        channel_axis: where the model's input has its channels.
        dtype: type of the model's input.
    """

    name: str
    x: Array
    y: Array | None
    preprocess: Preprocess | None
    channel_axis: int
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, size: int) -> Iterator[tuple[dict[str, Array], Array | None]]:
        """Give inputs ready for the model, and labels, batch by batch."""
        for start in range(0, len(self.x), size):
            labels = None if self.y is None else self.y[start : start + size]
            yield {self.name: self._prepared(self.x[start : start + size])}, labels

    def _prepared(self, x: Array) -> Array:
        if self.preprocess is not None:
            shape = [-1 if axis == self.channel_axis else 1 for axis in range(x.ndim)]
            mean = np.asarray(self.preprocess.image_mean, np.float32).reshape(shape)
            std = np.asarray(self.preprocess.image_std, np.float32).reshape(shape)
            x = (x.astype(np.float32) * np.float32(self.preprocess.rescale_factor) - mean) / std
        return np.ascontiguousarray(x, dtype=self.dtype)


def read_preprocess(text: str) -> Preprocess | None:
    """Read what `--preprocess` names: a name of `PREPROCESS`, or a JSON file in the form of preprocessor_config.json.

    Raises:
        InputError: it is neither.
    """
    if text in PREPROCESS:
        return PREPROCESS[text]
    if not Path(text).is_file():
        raise InputError(f"--preprocess {text!r} is neither a file nor one of {', '.join(PREPROCESS)}")
    content = read_json(Path(text))
    try:
        rescales, normalizes = content.get("do_rescale", True), content.get("do_normalize", True)
        found = Preprocess(
            float(content.get("rescale_factor", 1 / 255)) if rescales else 1.0,
            tuple(float(v) for v in content.get("image_mean", [0.0])) if normalizes else (0.0,),
            tuple(float(v) for v in content.get("image_std", [1.0])) if normalizes else (1.0,),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{text}: rescale_factor, image_mean and image_std must be numbers ({error})") from error
    if not np.isfinite([found.rescale_factor, *found.image_mean, *found.image_std]).all() or 0 in found.image_std:
        raise InputError(f"{text}: rescale_factor, image_mean and image_std must be finite, image_std not 0")
    return found


def read_data(path: Path, model: Model, preprocess: Preprocess | None) -> Data:
    """Read samples from an ``.npz`` with ``x`` and, for labels, ``y``, or from an ``.npy`` with samples alone.

    Images whose channels come last are turned where the model wants them first.

    Raises:
        InputError: the file is missing or broken, or its samples do not fit the model.
    """
    inputs = sizes.real_inputs(model.proto.graph)
    if len(inputs) != 1:
        raise InputError(f"--data feeds models of one input; this one has {len(inputs)}")
    x, y = _read_arrays(path)
    if x.dtype.kind not in "biuf":
        raise InputError(f"{path}: the samples must be numbers, they are {x.dtype}")
    if x.size == 0 or x.ndim == 0:
        raise InputError(f"{path} holds no samples")
    if inputs[0].name not in model.bound:
        raise InputError(f"--data feeds tensors; the input {inputs[0].name!r} of the model is none")
    shape = model.bound[inputs[0].name]
    x, axis = _fit_layout(path, x, shape)
    count = x.shape[axis] if x.ndim > axis else 1
    for word, values in (("means", preprocess.image_mean), ("stds", preprocess.image_std)) if preprocess else ():
        if len(values) not in (1, count):
            raise InputError(f"--preprocess has {word} for {len(values)} channels, the samples in {path} have {count}")
    if y is not None and (y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iu"):
        raise InputError(f"{path}: y must hold one integer class per sample ({len(x)}), it has shape {y.shape}")
    return Data(inputs[0].name, x, None if y is None else y.astype(np.int64), preprocess, axis, _dtype(inputs[0]))


def _dtype(value: ValueInfoProto) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _read_arrays(path: Path) -> tuple[Array, Array | None]:
    if not path.is_file():
        raise InputError(f"--data {path}: no such file; give an .npz with x (and y), or an .npy")
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content, None
            names = content.files
            arrays = {name: np.asarray(content[name]) for name in ("x", "y") if name in names}
    except Exception as error:  # a damaged archive can raise anything: BadZipFile, zlib.error, MemoryError, ...
        raise InputError(f"{path} is no .npz or .npy file of numbers ({error})") from error
    if "x" not in arrays:
        raise InputError(f"{path} has no array x; it has {', '.join(names) or 'none'}")
    return arrays["x"], arrays.get("y")


def _fit_layout(path: Path, x: Array, shape: sizes.Shape) -> tuple[Array, int]:
    """Turn samples to the layout of an input; returns them and their channel axis."""
    axis = 1
    if len(shape) == 4:
        axis = 3 if shape[3] <= 4 < shape[1] else 1
        turned = np.moveaxis(x, -1, 1) if axis == 1 else np.moveaxis(x, 1, -1)
        if x.ndim == 4 and x.shape[1:] != shape[1:] and turned.shape[1:] == shape[1:]:
            x = turned
    if x.ndim != len(shape) or x.shape[1:] != shape[1:]:
        raise InputError(
            f"{path}: samples have shape {x.shape[1:]}, the model takes {shape[1:]}; "
            "resize them, or give --shape if the model's sizes are free"
        )
    return x, axis
