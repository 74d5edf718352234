"""Pools, and resizing of images: channels pass, spatial axes change."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxprune.ops.rule import Resize as ResizeView
from onnxprune.ops.rule import Rule, Ties, Unknown, View


class Pool(Rule):
    """Local and global pools."""

    ops: ClassVar[tuple[str, ...]] = (
        *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"),
    )
    why: ClassVar[str] = "spatial axes of a pool"

    def ties(self, node: Ties) -> None:
        """Tie batch and channels to the output."""
        if node.has_output(1) and node.is_read(1):
            raise Unknown("its indices count through whole images")
        node.tie(node.x[0], node.y[0])
        node.tie(node.x[1], node.y[1])


class Sample(Rule):
    """Operators that look up numbers at places of an image, the same places in every channel."""

    ops: ClassVar[tuple[str, ...]] = ("GridSample", "MaxRoiPool", "RoiAlign")
    why: ClassVar[str] = "it looks up places along this axis"

    def ties(self, node: Ties) -> None:
        """Tie the channels to the output."""
        node.tie(node.x[1], node.y[1])


class Resize(Rule):
    """Resize and Upsample: an axis that keeps its size passes."""

    ops: ClassVar[tuple[str, ...]] = ("Resize", "Upsample")
    why: ClassVar[str] = "this axis is resized"

    def ties(self, node: Ties) -> None:
        """Tie the axes that keep their size."""
        x, y = node.x, node.y
        if node.attribute("coordinate_transformation_mode", b"") in ("tf_crop_and_resize", b"tf_crop_and_resize"):
            raise Unknown("it crops to a region")
        node.integers("sizes", 3)  # what is computed at run time could not be written down
        together = () if node.attribute("keep_aspect_ratio_policy", "stretch") == "stretch" else _axes(node)
        for axis in range(len(y)):
            if x.shape[axis] == y.shape[axis] and axis not in together:
                node.tie(x[axis], y[axis])

    def resize(self, node: ResizeView) -> None:
        """Rewrite target sizes; scales need no change."""
        asked = node.integers("sizes", 3)  # not what comes out, where an image keeps its proportions
        if asked is None:
            return
        sizes = [node.size(node.y[axis]) for axis in _axes(node)]
        shrinks = [not node.kept(node.y[axis]).all() for axis in _axes(node)]
        node.set_value(3, np.where(shrinks, sizes, asked))


def _axes(node: View) -> list[int]:
    """List the axes that scales and sizes are given for."""
    return [int(axis) % len(node.y) for axis in node.attribute("axes", range(len(node.y)))]
