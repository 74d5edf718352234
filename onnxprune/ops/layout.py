"""Operators that move axes around without computing: transposes, reshapes, squeezes, expansions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from onnxprune.ops.elementwise import tie_broadcast
from onnxprune.ops.rule import Atoms, Axes, Resize, Rule, Ties, Unknown

MIXED = "it mixes this axis with others"


class Transpose(Rule):
    """Transpose: axes change places."""

    ops: ClassVar[tuple[str, ...]] = ("Transpose",)

    def ties(self, node: Ties) -> None:
        """Tie each axis to its new place."""
        order = node.attribute("perm", list(range(len(node.x)))[::-1])
        for position, axis in enumerate(order):
            node.tie(node.x[axis], node.y[position])


class Squeeze(Rule):
    """Squeeze: axes of size 1 disappear."""

    ops: ClassVar[tuple[str, ...]] = ("Squeeze",)

    def ties(self, node: Ties) -> None:
        """Tie the axes that stay."""
        gone = self._gone(node)
        others = [axis for axis in range(len(node.x)) if axis not in gone]
        for position, axis in enumerate(others):
            node.tie(node.x[axis], node.y[position])

    def resize(self, node: Resize) -> None:
        """Name the axes where the node drops whatever has size 1: a channel axis may have come down to 1."""
        if node.integers("axes", 1) is None:
            gone = self._gone(node)
            if any(size == 1 for axis, size in enumerate(node.shape(node.x)) if axis not in gone):
                node.set_integers("axes", 1, sorted(gone), since=13)

    @staticmethod
    def _gone(node: Ties | Resize) -> set[int]:
        axes = node.integers("axes", 1)
        if axes is None:
            return {axis for axis, size in enumerate(node.x.shape) if size == 1}
        return {axis % len(node.x) for axis in axes}


class Unsqueeze(Rule):
    """Unsqueeze: axes of size 1 appear."""

    ops: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def ties(self, node: Ties) -> None:
        """Tie the axes that were there."""
        new = {axis % len(node.y) for axis in node.integers("axes", 1) or []}
        others = [axis for axis in range(len(node.y)) if axis not in new]
        for axis, position in enumerate(others):
            node.tie(node.x[axis], node.y[position])


class Flatten(Rule):
    """Flatten: axes merge into two."""

    ops: ClassVar[tuple[str, ...]] = ("Flatten",)
    why: ClassVar[str] = MIXED

    def ties(self, node: Ties) -> None:
        """Tie each channel to all its features."""
        tie_reshaped(node, node.x, node.y)


class Reshape(Rule):
    """Reshape: axes pass, merge or split."""

    ops: ClassVar[tuple[str, ...]] = ("Reshape",)
    why: ClassVar[str] = MIXED

    def ties(self, node: Ties) -> None:
        """Match blocks of axes with equal products."""
        if node.value(1) is None:
            raise Unknown("its target shape is computed at run time")
        tie_reshaped(node, node.x, node.y)

    def resize(self, node: Resize) -> None:
        """Rewrite the sizes in the target; 0 (copy) and -1 (the rest) stay where they still say the same."""
        asked = node.value(1)
        if asked is None:
            return
        before, after = node.shape(node.x), node.shape(node.y)
        target = []
        for axis, size in enumerate(int(v) for v in asked):
            copies = size == 0 and not node.attribute("allowzero", 0) and before[axis] == after[axis]
            target.append(size if copies or size == -1 else after[axis])
        node.set_value(1, target)


class Expand(Rule):
    """Expand: axes of size 1 are repeated."""

    ops: ClassVar[tuple[str, ...]] = ("Expand",)

    def ties(self, node: Ties) -> None:
        """Tie the axes that are not repeated; repeated ones may have any size."""
        if node.value(1) is None:
            raise Unknown("its target shape is computed at run time")
        tie_broadcast(node, [node.x], node.y)

    def resize(self, node: Resize) -> None:
        """Rewrite the sizes in the target; 1 (as it is) stays."""
        asked = node.value(1)
        if asked is None:
            return
        after = node.shape(node.y)[len(node.y) - len(asked) :]
        node.set_value(1, [size if old != 1 else 1 for old, size in zip(asked, after, strict=True)])


class ConstantOfShape(Rule):
    """ConstantOfShape: all indices are equal, any of them may go."""

    ops: ClassVar[tuple[str, ...]] = ("ConstantOfShape",)

    def ties(self, node: Ties) -> None:
        """Free everything."""
        if node.value(0) is None:
            raise Unknown("its shape is computed at run time")
        for axis in range(len(node.y)):
            node.free(node.y[axis])

    def resize(self, node: Resize) -> None:
        """Rewrite the shape."""
        node.set_value(0, node.shape(node.y))


def tie_reshaped(node: Ties, x: Axes, y: Axes) -> None:
    """Tie two tensors that hold the same numbers in the same order.

    Axes are matched in blocks of equal product, those of size 1 aside. A block of one axis on each side passes; where
    axes merge into one or one splits, one of the several carries the channels and the others stay.
    """
    left = [axis for axis, size in enumerate(x.shape) if size != 1]
    right = [axis for axis, size in enumerate(y.shape) if size != 1]
    for axes, tensor in ((left, x), (right, y)):
        for axis in set(range(len(tensor))) - set(axes):
            node.free(tensor[axis])
    for ours, theirs in _blocks([x.shape[a] for a in left], [y.shape[a] for a in right]):
        parts = [x[left[i]] for i in ours]
        wholes = [y[right[j]] for j in theirs]
        if len(parts) == len(wholes) == 1:
            node.tie(parts[0], wholes[0])
        elif len(wholes) == 1:
            _tie_merged(node, parts, wholes[0])
        elif len(parts) == 1 and not node.is_fixed(parts[0]):
            _tie_merged(node, wholes, parts[0])


def _tie_merged(node: Ties, parts: Sequence[Atoms], whole: Atoms) -> None:
    """Tie the index of the first part that is not fixed to all numbers it covers in the merged axis."""
    free = [position for position, part in enumerate(parts) if not node.is_fixed(part)]
    if not free:
        return
    inner = int(np.prod([len(part) for part in parts[free[0] + 1 :]], dtype=np.int64))
    carrier = parts[free[0]]
    node.tie(carrier[np.arange(len(whole)) // inner % len(carrier)], whole)
    for position, part in enumerate(parts):
        if position != free[0]:
            node.freeze(part, "it is merged with the channels")


def _blocks(left: Sequence[int], right: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Cut two factorisations of one number into the shortest blocks of equal product."""
    blocks = []
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
        blocks.append((ours, theirs))
        i += 1
        j += 1
    return blocks
