"""Operators that move axes around without computing: transposes, reshapes, squeezes, expansions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxprune.ops.elementwise import tie_broadcast
from onnxprune.ops.factors import blocks
from onnxprune.ops.rule import Atoms, Axes, Resize, Rule, Ties, Unknown
from onnxprune.shapes import Shape
from onnxprune.weights import Array

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
        keeps_zero = bool(node.attribute("allowzero", 0))
        node.set_value(1, reshape_target(asked, node.shape(node.x), node.shape(node.y), keeps_zero))


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


class Tile(Rule):
    """Tile: index i of an axis of n comes back at i + n, i + 2n and so on; a single one as often as wanted."""

    ops: ClassVar[tuple[str, ...]] = ("Tile",)

    def ties(self, node: Ties) -> None:
        """Tie each index to all its copies."""
        x, y = node.x, node.y
        repeats = node.value(1)
        if repeats is None:
            raise Unknown("its repeats are computed at run time")
        for axis, times in enumerate(repeats):
            if x.shape[axis] == 1 and times != 1:
                node.free(x[axis])
                node.free(y[axis])
            else:
                node.tie(np.tile(x[axis], int(times)), y[axis])

    def resize(self, node: Resize) -> None:
        """Count how often an axis of size 1 is repeated; the others need no change."""
        repeats = node.value(1)
        if repeats is not None:
            shape = node.shape(node.y)
            node.set_value(1, [shape[a] if node.x.shape[a] == 1 else int(times) for a, times in enumerate(repeats)])


class DepthToSpace(Rule):
    """DepthToSpace: a channel takes its pixels from blocksize x blocksize channels."""

    ops: ClassVar[tuple[str, ...]] = ("DepthToSpace",)
    why: ClassVar[str] = "spatial axes that take in channels"

    def ties(self, node: Ties) -> None:
        """Tie the channels of each block to the one they make."""
        tie_depth(node, node.x[1], node.y[1])


class SpaceToDepth(Rule):
    """SpaceToDepth: the pixels of a channel go to blocksize x blocksize channels."""

    ops: ClassVar[tuple[str, ...]] = ("SpaceToDepth",)
    why: ClassVar[str] = "spatial axes that become channels"

    def ties(self, node: Ties) -> None:
        """Tie each channel to those it becomes."""
        tie_depth(node, node.y[1], node.x[1])


def tie_depth(node: Ties, deep: Atoms, flat: Atoms) -> None:
    """Tie channels to those that hold their pixels in blocks; the mode says which of both counts faster."""
    node.tie(node.x[0], node.y[0])
    pixels = int(node.attribute("blocksize")) ** 2
    channels_first = node.attribute("mode", "DCR") == "CRD"
    node.tie(deep, np.repeat(flat, pixels) if channels_first else np.tile(flat, pixels))


class Col2Im(Rule):
    """Col2Im: a channel of the image sums up the columns of its own block."""

    ops: ClassVar[tuple[str, ...]] = ("Col2Im",)
    why: ClassVar[str] = "positions in an image"

    def ties(self, node: Ties) -> None:
        """Tie each channel to its columns."""
        block = node.value(2)
        if block is None:
            raise Unknown("its block is computed at run time")
        node.tie(node.x[0], node.y[0])
        node.tie(node.x[1], np.repeat(node.y[1], int(np.prod(block))))


class ConstantOfShape(Rule):
    """ConstantOfShape: all indices are equal, any of them may go."""

    ops: ClassVar[tuple[str, ...]] = ("ConstantOfShape",)

    def ties(self, node: Ties) -> None:
        """Free everything."""
        if node.value(0) is None:
            raise Unknown("its shape is computed at run time")
        for axis in range(len(node.y)):
            node.free(node.y[axis])
            node.set_zero(node.y[axis], node.is_constant(0))  # then it is a weight

    def resize(self, node: Resize) -> None:
        """Rewrite the shape."""
        node.set_value(0, node.shape(node.y))


def tie_reshaped(node: Ties, x: Axes, y: Axes) -> None:
    """Tie two tensors that hold the same numbers in the same order.

    Axes are matched in blocks of equal product, those of size 1 aside. A block of one axis on each side passes; where
    axes merge or split, one of their common factors carries the channels and the others stay.
    """
    left = [axis for axis, size in enumerate(x.shape) if size != 1]
    right = [axis for axis, size in enumerate(y.shape) if size != 1]
    for axes, tensor in ((left, x), (right, y)):
        for axis in set(range(len(tensor))) - set(axes):
            node.free(tensor[axis])
    for ours, theirs in blocks([x.shape[a] for a in left], [y.shape[a] for a in right]):
        before = [x[left[i]] for i in ours]
        after = [y[right[j]] for j in theirs]
        if len(before) == len(after) == 1:
            node.tie(before[0], after[0])
            continue
        node.regroup(before, after)
        is_zero = all(node.is_zero(part) or node.is_fixed(part) for part in before)
        for part in after:
            node.set_zero(part, is_zero)


def reshape_target(asked: Array, before: Shape, after: Shape, keeps_zero: bool) -> Array:
    """Write the target of a Reshape: 0 (copy) and -1 (the rest) stay where they still say the same.

    Args:
        asked: the target so far.
        before: shape of what is reshaped.
        after: shape that is wanted.
        keeps_zero: whether 0 means a size of 0 (the attribute `allowzero`).
    """
    target = []
    for axis, size in enumerate(int(v) for v in asked):
        copies = size == 0 and not keeps_zero and before[axis] == after[axis]
        target.append(size if copies or size == -1 else after[axis])
    return np.asarray(target, np.int64)
