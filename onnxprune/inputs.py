"""What a model takes, and how samples are brought to it: layout, numbers, type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnxprune import shapes as sizes
from onnxprune.errors import InputError
from onnxprune.model import Model
from onnxprune.preprocess import Preprocess
from onnxprune.shapes import Shape
from onnxprune.weights import Array

IMAGE_CHANNELS = (3, 4)  # what has others may be a mask


@dataclass(frozen=True)
class Input:
    """An input of a model.

    Attributes:
        name: of the tensor.
        shape: its sizes, the first of which is the batch.
        dtype: the type of its numbers.
        channel_axis: where it has its channels; None where it takes no pixels, so that preprocessing leaves it alone.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    channel_axis: int | None = 1

    @property
    def channels(self) -> int:
        """How many channels it has; 1 where it has no axis for them."""
        return self.shape[self.channel_axis] if self.channel_axis and len(self.shape) > self.channel_axis else 1

    @property
    def image(self) -> Shape | None:
        """The channels and the sides of the images that it takes, floats or bytes; None where it takes none."""
        if self.channel_axis is None or len(self.shape) != 4 or not (self.dtype.kind == "f" or self.dtype == np.uint8):
            return None
        return self.channels, *(size for axis, size in enumerate(self.shape) if axis not in (0, self.channel_axis))

    def feed(self, x: Array, preprocess: Preprocess | None) -> Array:
        """Bring samples of its layout to its numbers and its type."""
        if preprocess is not None and self.channel_axis is not None:
            shape = [-1 if axis == self.channel_axis else 1 for axis in range(x.ndim)]
            mean = np.asarray(preprocess.image_mean, np.float32).reshape(shape)
            std = np.asarray(preprocess.image_std, np.float32).reshape(shape)
            x = (x.astype(np.float32) * np.float32(preprocess.rescale_factor) - mean) / std
        return np.ascontiguousarray(x, dtype=self.dtype)


def model_inputs(model: Model) -> tuple[Input, ...]:
    """List what a model takes. Pixels are what its one input takes, or of several those with four axes but for masks.

    Raises:
        InputError: it takes nothing, or something other than tensors of numbers whose first axis is the batch.
    """
    values = sizes.real_inputs(model.proto.graph)
    if not values:
        raise InputError("--data feeds models of at least one input; this one has 0")
    inputs = []
    for value in values:
        shape = model.bound.get(value.name)
        if not shape:
            raise InputError(f"--data feeds tensors of samples; the input {value.name!r} of the model is none")
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        if dtype.kind in "OUS":
            raise InputError(f"--data feeds numbers; the input {value.name!r} of the model takes text")
        inputs.append(Input(value.name, shape, dtype, _channel_axis(shape)))
    return tuple(fed if _takes_pixels(fed, inputs) else replace(fed, channel_axis=None) for fed in inputs)


def _takes_pixels(fed: Input, inputs: Sequence[Input]) -> bool:
    """Tell images from vectors, and from masks: those have as many columns as there are tokens (integers)."""
    if len(inputs) == 1:
        return True
    lengths = {other.shape[1] for other in inputs if other.dtype.kind in "iu" and len(other.shape) == 2}
    return len(fed.shape) == 4 and (fed.channels in IMAGE_CHANNELS or fed.shape[3] not in lengths)


def _channel_axis(shape: Shape) -> int:
    return 3 if len(shape) == 4 and shape[3] <= 4 < shape[1] else 1


def check_preprocess(preprocess: Preprocess | None, inputs: Sequence[Input]) -> None:
    """Make sure that the preprocessing fits the inputs that take pixels.

    Raises:
        InputError: there are none, or they have other channels, or take integers, which preprocessed pixels are not.
    """
    if preprocess is None:
        return
    images = [fed for fed in inputs if fed.channel_axis is not None]
    if not images:
        names = ", ".join(fed.name for fed in inputs)
        raise InputError(f"--preprocess is for pixels, the inputs {names} of the model take none; leave it out")
    for fed in images:
        for word, values in (("means", preprocess.image_mean), ("stds", preprocess.image_std)):
            if len(values) not in (1, fed.channels):
                raise InputError(
                    f"--preprocess has {word} for {len(values)} channels, the input {fed.name!r} of the model has "
                    f"{fed.channels}; give one for all, or one a channel"
                )
        if fed.dtype.kind in "biu" and not preprocess.keeps_pixels:
            raise InputError(
                f"--preprocess makes fractions of pixels, the input {fed.name!r} of the model takes {fed.dtype}; "
                "give --preprocess none"
            )


def fit(
    where: str, arrays: Mapping[str, Array], held: Sequence[str], inputs: Sequence[Input], preprocess: Preprocess | None
) -> tuple[dict[str, Array], Array | None]:
    """Bring arrays to the inputs of a model, in its layout.

    Args:
        where: names the source, for messages.
        arrays: by input, or ``x`` for the only one; and ``y`` where there are classes, if no input has that name.
        held: names of all that the source holds, for messages.
        inputs: of the model.
        preprocess: what the samples will pass through.

    Returns:
        The samples of each input, first axis the sample; and the classes as int64, or None.

    Raises:
        InputError: something is missing, or does not fit the model, or is no number.
    """
    names = [fed.name for fed in inputs]
    given = _by_input(where, arrays, held, names)
    samples = {}
    for fed in inputs:
        x = _turned(where, given[fed.name], fed)
        is_final = preprocess is None or preprocess.keeps_pixels or fed.channel_axis is None
        _check_numbers(where, x, fed, is_final)
        samples[fed.name] = x
    counts = {name: len(x) for name, x in samples.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"{where}: every input needs the same number of samples; it has {listed}")
    has_classes = "y" in arrays and "y" not in names
    return samples, _classes(where, arrays["y"], counts[names[0]]) if has_classes else None


def _by_input(where: str, arrays: Mapping[str, Array], held: Sequence[str], names: Sequence[str]) -> dict[str, Array]:
    """Find the array for each input."""
    if len(names) == 1 and names[0] not in arrays and "x" in arrays:
        return {names[0]: arrays["x"]}
    missing = [name for name in names if name not in arrays]
    if not missing:
        return {name: arrays[name] for name in names}
    if "x" in arrays and "x" not in names:
        raise InputError(
            f"{where} has samples for models of one input; this one has {len(names)}: "
            f"give an array for each, named {', '.join(names)}"
        )
    wanted = "x" if len(names) == 1 else missing[0]
    raise InputError(
        f"{where} has no array {wanted}; it has {', '.join(held) or 'none'}; the model takes {', '.join(names)}"
    )


def _turned(where: str, x: Array, fed: Input) -> Array:
    """Bring samples to the layout of an input: channels to their place, gray images to one channel."""
    if x.dtype.kind not in "biuf":
        raise InputError(f"{where}: the samples must be numbers, those for {fed.name!r} are {x.dtype}")
    if x.size == 0 or x.ndim == 0:
        raise InputError(f"{where} holds no samples for {fed.name!r}")
    if len(fed.shape) == 4 and fed.channel_axis is not None:
        if x.ndim == 3 and fed.channels == 1:
            x = np.expand_dims(x, fed.channel_axis)
        turned = np.moveaxis(x, -1, 1) if fed.channel_axis == 1 else np.moveaxis(x, 1, -1)
        if x.ndim == 4 and x.shape[1:] != fed.shape[1:] and turned.shape[1:] == fed.shape[1:]:
            x = turned
    if x.ndim != len(fed.shape) or x.shape[1:] != fed.shape[1:]:
        raise InputError(
            f"{where}: samples have shape {x.shape[1:]}, the model takes {fed.shape[1:]} for {fed.name!r}; "
            + _hint(x.shape, fed)
        )
    return x


def _hint(shape: Shape, fed: Input) -> str:
    """Say what to do about samples of another shape."""
    if len(shape) == 3 and shape == fed.shape[1:]:
        return "the first axis must count samples, one sample has it too"
    axis = fed.channel_axis
    if axis is not None and len(shape) == len(fed.shape) == 4 and shape[axis] != fed.shape[axis]:
        others = [i for i in (1, 2, 3) if i != axis]
        if [shape[i] for i in others] == [fed.shape[i] for i in others]:
            return f"give images of {fed.channels} channels, not {shape[axis]}"
    return "resize them, or give --shape if the model's sizes are free"


def _check_numbers(where: str, x: Array, fed: Input, is_final: bool) -> None:
    """Make sure that samples are finite, and where nothing changes them any more that the input's type holds them."""
    with np.errstate(invalid="ignore"):
        low, high = x.min().item(), x.max().item()
    if not np.isfinite([low, high]).all():
        bad = next(i for i, sample in enumerate(x) if not np.isfinite(sample).all())
        raise InputError(f"{where}: sample {bad} for {fed.name!r} holds NaN or infinity; remove or correct it")
    if not is_final:
        return
    known = bounds(fed.dtype)
    if known is not None and (low < known[0] or high > known[1]):
        raise InputError(
            f"{where}: samples for {fed.name!r} reach from {low:g} to {high:g}; the model takes {fed.dtype}, "
            f"{known[0]:g} to {known[1]:g}"
        )
    if fed.dtype.kind in "biu" and x.dtype.kind == "f" and (x != np.rint(x)).any():
        raise InputError(
            f"{where}: samples for {fed.name!r} hold fractions; the model takes {fed.dtype}, give whole numbers"
        )


def bounds(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Give the least and the largest number of a type, None for those numpy does not know."""
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind in "iu":
        return np.iinfo(dtype).min, np.iinfo(dtype).max
    return (float(np.finfo(dtype).min), float(np.finfo(dtype).max)) if dtype.kind == "f" else None


def _classes(where: str, y: Array, count: int) -> Array:
    """Check labels; returns them as int64, one a sample."""
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim != 1 or len(flat) != count or flat.dtype.kind not in "iu":
        raise InputError(
            f"{where}: y must hold one integer class per sample ({count}), it has shape {y.shape} and type {y.dtype}"
        )
    wrong = next((int(label) for label in (flat.min(), flat.max()) if not 0 <= int(label) < 2**31), None)
    if wrong is not None:
        raise InputError(f"{where}: y holds class {wrong}; classes count from 0, leave y out where they are not known")
    return flat.astype(np.int64)
