"""Samples from files, folders of images or Python code, brought to the model's layout and type, batch by batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxprune.arrays import collect, is_spec, read_file
from onnxprune.errors import InputError
from onnxprune.images import Images, read_images
from onnxprune.inputs import Input, check_preprocess, fit, model_inputs
from onnxprune.model import Model
from onnxprune.preprocess import Preprocess, read_preprocess
from onnxprune.weights import Array

__all__ = ["Data", "Input", "Split", "check_labels", "read_data", "read_preprocess", "split"]

BLOCK = 256  # samples hashed together
LARGE_TENSOR = 16_000_000  # numbers in the largest tensor of a batch

CHOICES = ("best", "last")
"""Which epoch of a training is taken: the best by samples held out, or the last."""


@dataclass(frozen=True, eq=False)
class Data:
    """Samples and, where they are known, their classes. A sample is one index of the first axis of every input.

    Attributes:
        samples: for each input, by name, all samples of the source in the model's layout.
        inputs: what the samples feed.
        y: int64 class of each sample, or None.
        preprocess: what turns pixels into inputs, or None.
        source: what the user gave, without its folder, for reports.
        order: which samples of the source these are, in this order.
    """

    samples: Mapping[str, Array | Images]
    inputs: tuple[Input, ...]
    y: Array | None
    preprocess: Preprocess | None
    source: str
    order: Array

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, size: int) -> Iterator[tuple[dict[str, Array], Array | None]]:
        """Give inputs ready for the model, and int64 classes, `size` samples at a time; the last may be fewer.

        Raises:
            InputError: an image file is damaged.
        """
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            feeds = {i.name: i.feed(self.samples[i.name][self.order[part]], self.preprocess) for i in self.inputs}
            yield feeds, None if self.y is None else self.y[part]

    def take(self, indices: Array) -> Data:
        """Take the samples of these indices, in this order; their numbers are not copied."""
        chosen = np.asarray(indices, np.int64)
        return replace(self, order=self.order[chosen], y=None if self.y is None else self.y[chosen])

    def loaded(self) -> Data:
        """Give the same samples with every image decoded once and held in memory; arrays are there already.

        Raises:
            InputError: an image file is damaged.
        """
        if not any(isinstance(samples, Images) for samples in self.samples.values()):
            return self
        held = {
            name: samples.loaded(self.order) if isinstance(samples, Images) else samples[self.order]
            for name, samples in self.samples.items()
        }
        return replace(self, samples=held, order=np.arange(len(self)))

    @cached_property
    def sha256(self) -> str:
        """The same wherever the same samples, in the same order, have the same classes and preprocessing."""
        digest = hashlib.sha256(f"{self.preprocess} {len(self)}".encode())
        for name, samples in self.samples.items():
            kind = "images" if isinstance(samples, Images) else samples.dtype.str
            digest.update(f"{name} {samples.shape[1:]} {kind}".encode())
            for start in range(0, len(self), BLOCK):
                part = self.order[start : start + BLOCK]
                if isinstance(samples, Images):
                    digest.update(b"".join(samples.digests(part)))
                else:
                    digest.update(samples[part].tobytes())
        digest.update(b"" if self.y is None else self.y.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Three parts of the data that have no sample in common.

    Attributes:
        calibration: what repairs and criteria may look at.
        search: what candidates are judged on.
        holdout: what results are reported on; nothing else may see it.
        train: what may be trained on: the first of them, and what is in none.
        indices: which samples of the data each part holds, by the part's name.
    """

    calibration: Data
    search: Data
    holdout: Data
    train: Data
    indices: dict[str, list[int]]


def split(data: Data, *, seed: int = 0, calibration: int = 2048, search: int = 1000, holdout: int = 2000) -> Split:
    """Draw three parts at random; the same for the same number of samples, sizes and seed.

    An eighth of the samples, at most `holdout`, is held out. Of the rest an eighth, at most `search`, is for the search
    (all of `search` where enough is left to calibrate), and what remains, up to `calibration`, to calibrate. Each part
    gets at least one sample.

    Args:
        data: samples.
        seed: of the draw.
        calibration: the most samples of that part.
        search: the same.
        holdout: the same.

    Raises:
        InputError: there are fewer than 3 samples.
    """
    if len(data) < 3:
        raise InputError(
            f"--data {data.source} has too few samples ({len(data)}) to calibrate with one, search with another and "
            "judge by a third; give at least 3, better some hundreds"
        )
    held = max(1, min(holdout, len(data) // 8))
    rest = len(data) - held
    judged = max(1, search if rest >= calibration + search else min(search, rest // 8))
    ends = (0, held, held + judged, held + judged + max(1, min(calibration, rest - judged)))
    order = np.random.default_rng(seed).permutation(len(data))
    names = ("holdout", "search", "calibration")
    parts = {name: order[a:b] for name, a, b in zip(names, ends, ends[1:], strict=False)}
    return Split(
        **{name: data.take(part) for name, part in parts.items()},
        train=data.take(order[held + judged :]),
        indices={name: part.tolist() for name, part in parts.items()},
    )


def read_data(source: str | Path, model: Model, preprocess: Preprocess | None, label_offset: int = 0) -> Data:
    """Read samples for a model.

    `source` is an ``.npz`` with ``x`` or, by their names, an array for each input of the model, and with ``y`` where
    the classes are known; an ``.npy`` with the samples of the one input; a folder of images or of class folders, see
    `images.read_images`; or ``module:function``, Python code that gives batches, see `arrays.collect`. What exists as
    a file or folder is taken as one. Images are turned where their channels are not where the model has them.

    Args:
        source: where the samples are.
        model: what they are for.
        preprocess: what turns pixels into inputs, or None.
        label_offset: the output index of a class is its label plus this.

    Raises:
        InputError: the source is missing or broken, or its samples do not fit the model.
    """
    data = _read_data(source, model, preprocess)
    if label_offset and data.y is None:
        raise InputError(f"--label-offset is of labels, and --data {data.source} has none; leave it out")
    return data


def _read_data(source: str | Path, model: Model, preprocess: Preprocess | None) -> Data:
    inputs = model_inputs(model)
    check_preprocess(preprocess, inputs)
    path, text = Path(source), str(source)
    if path.is_dir():
        images, y = read_images(path, inputs, preprocess)
        name = os.path.basename(os.path.abspath(path))  # of the folder itself where it is given as . or ..
        return Data({inputs[0].name: images}, inputs, y, preprocess, name, np.arange(len(images.files)))
    if path.is_file():
        arrays, held = read_file(path, ["x", "y", *(fed.name for fed in inputs)])
        name = path.name
    elif is_spec(text):
        arrays = collect(text)
        name, held = text, list(arrays)
    else:
        raise InputError(
            f"--data {text}: no such file or folder; give an .npz with x (and y), an .npy, a folder of images, "
            "or module:function"
        )
    samples, y = fit(text, arrays, held, inputs, preprocess)
    return Data(samples, inputs, y, preprocess, name, np.arange(len(samples[inputs[0].name])))


def feeds(data: Data, model: Model, most: int = 128) -> Iterator[dict[str, Array]]:
    """Give the inputs of a model, batch by batch, so that its largest tensors take about 64 MB.

    Where the model fixes the batch, an incomplete last one is left out.

    Args:
        data: samples.
        model: what they feed.
        most: samples that run together.
    """
    fixed = model.fixed_batch(data.inputs[0].name)
    batch = fixed or min(batch_size(data, model), most)
    for feed, _ in data.batches(batch):
        if fixed is None or len(next(iter(feed.values()))) == fixed:
            yield feed


def batch_size(data: Data, model: Model) -> int:
    """Give how many samples run together: what the model fixes, or what its largest tensors allow."""
    fixed = model.fixed_batch(data.inputs[0].name)
    if fixed is not None:
        return fixed
    largest = max((int(np.prod(shape)) for name, shape in model.shapes.items() if name not in model.stored), default=1)
    return int(np.clip(LARGE_TENSOR // max(largest, 1), 1, min(128, max(len(data), 1))))


def check_labels(data: Data, classes: int, label_offset: int) -> None:
    """Make sure that the labels of samples are among the classes of a model, if both are known.

    Raises:
        InputError: they are not.
    """
    if data.y is None or not classes:
        return
    for label in (int(data.y.min()), int(data.y.max())):
        if not 0 <= label + label_offset < classes:
            raise InputError(
                f"the data has class {label} and --label-offset is {label_offset}, the model has outputs 0 to "
                f"{classes - 1}; check the labels and --label-offset"
            )
