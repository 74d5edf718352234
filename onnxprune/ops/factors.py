"""Mixed radix: which factors the sizes of axes share when a Reshape splits and merges them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.ops.rule import Atoms


@dataclass(frozen=True)
class Place:
    """Where a factor sits: index i of its axis has the factor's index ``i // inner % size``.

    Attributes:
        axis: position of the axis on its side.
        inner: product of the factors further inside this axis.
        alone: whether the axis has no other factor.
    """

    axis: int
    inner: int
    alone: bool


@dataclass(frozen=True)
class Factor:
    """A factor that both sides share.

    Attributes:
        size: how many indices it has.
        left: its place on the left.
        right: its place on the right.
    """

    size: int
    left: Place
    right: Place


def shared_factors(left: Sequence[int], right: Sequence[int]) -> list[Factor] | None:
    """Split two factorisations of one number into the factors that both consist of, outermost first.

    Args:
        left: sizes of axes, none of them 1.
        right: the same, with an equal product.

    Returns:
        None where they have no such factors (4 x 6 and 6 x 4).
    """
    factors = []
    i = j = 0
    a, b = (left[0], right[0]) if left and right else (1, 1)  # what is left of the axes at i and j
    while i < len(left) and j < len(right):
        size = min(a, b)
        if max(a, b) % size:
            return None
        a //= size
        b //= size
        factors.append(Factor(size, Place(i, a, a == 1 and size == left[i]), Place(j, b, b == 1 and size == right[j])))
        if a == 1:
            i += 1
            a = left[i] if i < len(left) else 1
        if b == 1:
            j += 1
            b = right[j] if j < len(right) else 1
    return factors


def index_of(place: Place, factor: Factor, axis: Atoms) -> Atoms:
    """Give the factor's index for every index of an axis."""
    return np.arange(len(axis)) // place.inner % factor.size


def blocks(left: Sequence[int], right: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Cut two factorisations of one number into the shortest blocks of equal product.

    Returns:
        Positions on the left and on the right of each block.
    """
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        ours, theirs = [i], [j]
        a, b = left[i], right[j]
        while a != b:
            if a < b:
                i += 1
                ours.append(i)
                a *= left[i]
            else:
                j += 1
                theirs.append(j)
                b *= right[j]
        found.append((ours, theirs))
        i += 1
        j += 1
    return found
