"""The numbers a layer sums over: patches of its input, one row for each output position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.ops.rule import View
from onnxprune.weights import Array

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Patches:
    """How the rows of a layer come out of its input.

    Attributes:
        kernel: sizes of the kernel; empty for a product with a matrix.
        strides: per spatial axis.
        dilations: per spatial axis.
        pads: before and after, per spatial axis; None where they follow from the sizes (``auto_pad``).
        same_lower: whether the odd one of automatic pads comes first.
        is_transposed: whether the layer is a ConvTranspose.
        output_padding: what a ConvTranspose adds at the end, per spatial axis; empty for none.
        is_convolution: whether channels are on axis 1, and on the last axis otherwise.
    """

    is_convolution: bool
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] | None = None
    same_lower: bool = False
    is_transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def places(self, y: Array | Sequence[int], wanted: int, rng: np.random.Generator) -> Places:
        """Choose output positions at random: those of one sample of a convolution, rows of a product.

        Args:
            y: the output (or its shape).
            wanted: how many rows there should be in all, over the batch.
            rng: chooses.
        """
        shape = y.shape if isinstance(y, np.ndarray) else tuple(y)
        if self.is_convolution:
            total, wanted = math.prod(shape[2:]), -(-wanted // max(shape[0], 1))
        else:
            total = math.prod(shape[:-1])
        if wanted >= total:
            return np.arange(total)
        return np.sort(rng.choice(total, wanted, replace=False))

    def rows_of(self, samples: int, shape: Sequence[int], places: Places) -> int:
        """Count the rows that belong to the first samples of a batch.

        Args:
            samples: how many.
            shape: of the layer's input.
            places: from `places`.
        """
        if self.is_convolution:
            return samples * len(places)
        each = int(np.prod(shape[1:-1]))
        return int(np.searchsorted(places, samples * each))

    def targets(self, y: Array, places: Places, groups: int) -> Array:
        """Take what stands at some positions of the output: (groups, rows, outputs)."""
        if self.is_convolution:
            taken = y.reshape(*y.shape[:2], math.prod(y.shape[2:]))[:, :, places]
            rows = taken.transpose(0, 2, 1).reshape(len(y) * len(places), y.shape[1])
        else:
            rows = y.reshape(math.prod(y.shape[:-1]), y.shape[-1])[places]
        return np.ascontiguousarray(rows.reshape(len(rows), groups, rows.shape[1] // groups).transpose(1, 0, 2))

    def rows(self, x: Array, y_sizes: Sequence[int], places: Places, groups: int) -> Array:
        """Take what is summed over at some positions: (groups, rows, inputs * kernel), each input's kernel together.

        Args:
            x: the layer's input.
            y_sizes: spatial sizes of its output (not needed for a product).
            places: from `places`.
            groups: of the convolution.
        """
        if not self.is_convolution:
            taken = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])[places]
            return np.ascontiguousarray(taken[None])
        if self.is_transposed:
            x, pads = self._stuffed(x, y_sizes)
            strides = (1,) * len(self.kernel)
        else:
            pads, strides = self._pads(x.shape[2:], y_sizes), self.strides
        x = np.pad(x, ((0, 0), (0, 0), *((max(b, 0), max(a, 0)) for b, a in pads)))
        flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        index = self._index(x.shape[2:], tuple(y_sizes), places, strides)
        taken = flat[:, :, index.reshape(-1)].reshape(x.shape[0], groups, x.shape[1] // groups, *index.shape)
        # (samples, groups, inputs, places, kernel) to (groups, samples * places, inputs * kernel)
        rows = taken.transpose(1, 0, 3, 2, 4)
        return rows.reshape(groups, x.shape[0] * len(places), taken.shape[2] * taken.shape[4])

    def _index(self, sizes: Sequence[int], y_sizes: Sequence[int], places: Places, strides: Sequence[int]) -> Places:
        """Give the flat input positions under the kernel at each output position: (places, kernel)."""
        at = np.unravel_index(places, tuple(y_sizes))
        taps = np.indices(self.kernel).reshape(len(self.kernel), -1)
        if self.is_transposed:  # the kernel's first number meets the last input that reaches a position
            taps = np.asarray(self.kernel)[:, None] - 1 - taps
        index = np.zeros((len(places), taps.shape[1]), np.int64)
        for axis, size in enumerate(sizes):
            position = at[axis][:, None] * strides[axis] + taps[axis][None] * self.dilations[axis]
            index = index * size + position
        return index

    def _pads(self, sizes: Sequence[int], y_sizes: Sequence[int]) -> Sequence[tuple[int, int]]:
        if self.pads is not None:
            return self.pads
        found = []
        for size, out, k, s, d in zip(sizes, y_sizes, self.kernel, self.strides, self.dilations, strict=True):
            total = max((out - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            found.append((large, small) if self.same_lower else (small, large))
        return found

    def _stuffed(self, x: Array, y_sizes: Sequence[int]) -> tuple[Array, Sequence[tuple[int, int]]]:
        """Put zeros between the numbers of the input, so that a ConvTranspose is a convolution of stride 1."""
        sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], self.strides, strict=True)]
        stuffed = np.zeros((*x.shape[:2], *sizes), x.dtype)
        stuffed[(slice(None), slice(None), *(slice(None, None, s) for s in self.strides))] = x
        pads = []
        for axis, (size, out, k, d) in enumerate(zip(sizes, y_sizes, self.kernel, self.dilations, strict=True)):
            reach = (k - 1) * d
            if self.pads is not None:
                before = reach - self.pads[axis][0]
            else:  # the full result is (size + reach + added) long; what is too much goes from both ends
                added = self.output_padding[axis] if self.output_padding else 0
                total = max(size + reach + added - out, 0)
                before = reach - (total - total // 2 if self.same_lower else total // 2)
            pads.append((before, out + reach - size - before))
        for axis, (before, after) in enumerate(pads):  # pads below zero cut the input
            start, stop = max(-before, 0), stuffed.shape[axis + 2] - max(-after, 0)
            stuffed = stuffed[(slice(None),) * (axis + 2) + (slice(start, stop),)]
        return stuffed, pads


def patches(view: View) -> Patches:
    """Read from a convolution or a product how its rows come about."""
    if view.node.op not in ("Conv", "ConvTranspose"):
        return Patches(is_convolution=False)
    kernel = view.input(1).shape[2:]
    rank = len(kernel)
    padding = view.attribute("auto_pad", "NOTSET")
    padding = padding.decode() if isinstance(padding, bytes) else padding
    flat = list(view.attribute("pads", [0] * (2 * rank)))
    explicit = padding in ("", "NOTSET", "VALID") and not view.attribute("output_shape")
    return Patches(
        is_convolution=True,
        kernel=tuple(kernel),
        strides=tuple(view.attribute("strides", [1] * rank)),
        dilations=tuple(view.attribute("dilations", [1] * rank)),
        pads=tuple(zip(flat[:rank], flat[rank:], strict=True)) if explicit else None,
        same_lower=padding == "SAME_LOWER" or (view.node.op == "ConvTranspose" and padding != "SAME_UPPER"),
        is_transposed=view.node.op == "ConvTranspose",
        output_padding=tuple(view.attribute("output_padding", ())),
    )
