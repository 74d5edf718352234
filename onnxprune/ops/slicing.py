"""Operators that take tensors apart and put them together along an axis."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from onnxprune.ops.rule import Axes, Resize, Rule, Ties, Unknown, View


class Concat(Rule):
    """Concat: each input is a slice of the output."""

    ops: ClassVar[tuple[str, ...]] = ("Concat",)

    def ties(self, node: Ties) -> None:
        """Tie each input to its slice."""
        y = node.y
        axis = int(node.attribute("axis", 1)) % len(y)
        start = 0
        for x in self._parts(node):
            size = x.shape[axis]
            for other in range(len(y)):
                atoms = y[other][start : start + size] if other == axis else y[other]
                node.tie(x[other], atoms)
            start += size

    @staticmethod
    def _parts(node: View) -> list[Axes]:
        """Give what is put together."""
        return [axes for axes in node.inputs if axes is not None]


class Split(Rule):
    """Split: each output is a slice of the input."""

    ops: ClassVar[tuple[str, ...]] = ("Split",)

    def ties(self, node: Ties) -> None:
        """Tie each output to its slice."""
        node.integers("split", 1)  # what is computed at run time could not be written down
        x = node.x
        axis = int(node.attribute("axis", 0)) % len(x)
        start = 0
        for y in node.outputs:
            if y is None:
                raise Unknown("one of its outputs is left out")
            size = y.shape[axis]
            for other in range(len(x)):
                atoms = x[other][start : start + size] if other == axis else x[other]
                node.tie(atoms, y[other])
            start += size

    def resize(self, node: Resize) -> None:
        """Write the sizes of the slices, unless equal ones were implied and still are."""
        axis = int(node.attribute("axis", 0)) % len(node.x)
        if node.kept(node.x[axis]).all():
            return  # the axis may be free, and only bound to a size
        sizes = [node.size(y[axis]) for y in node.outputs if y is not None]
        if node.integers("split", 1) is None:
            if len(set(sizes)) == 1:
                return
            if "num_outputs" in node.node.attrs:
                node.set_attribute("num_outputs", None)
        node.set_integers("split", 1, sizes, since=13)


class Slice(Rule):
    """Slice: a run of indices stays, forwards or backwards; other steps hold their axis."""

    ops: ClassVar[tuple[str, ...]] = ("Slice",)
    why: ClassVar[str] = "it takes every so many-th index"

    def ties(self, node: Ties) -> None:
        """Tie what is taken to the output; what is left behind is free."""
        x, y = node.x, node.y
        runs = self._runs(node)
        for axis in range(len(x)):
            if axis not in runs:
                node.tie(x[axis], y[axis])
                continue
            start, end, step = runs[axis]
            if abs(step) == 1:
                node.tie(x[axis][np.arange(start, end, step)], y[axis])
                node.free(x[axis])

    def resize(self, node: Resize) -> None:
        """Move starts and ends to where the kept indices now lie; an axis that lost nothing keeps its numbers."""
        starts, ends = node.integers("starts", 1) or [], node.integers("ends", 2) or []
        for position, (axis, (start, end, step)) in enumerate(self._runs(node).items()):
            atoms = node.x[axis]
            if abs(step) != 1 or node.kept(atoms).all():
                continue
            if step == 1:
                first = node.size(atoms[:start])
                open_end = ends[position] >= len(atoms)
                starts[position] = first
                ends[position] = ends[position] if open_end else first + node.size(atoms[start:end])
            else:
                starts[position] = node.size(atoms[: start + 1]) - 1
                last = node.size(atoms[: end + 1]) - 1
                ends[position] = last if last >= 0 else -len(atoms) - 1  # -1 would mean the last index
        node.set_integers("starts", 1, starts, since=10)
        node.set_integers("ends", 2, ends, since=10)

    @staticmethod
    def _runs(node: View) -> dict[int, tuple[int, int, int]]:
        """Give (start, end, step) of each sliced axis, all within the axis."""
        starts, ends = node.integers("starts", 1) or [], node.integers("ends", 2) or []
        axes = node.integers("axes", 3) or list(range(len(starts)))
        steps = (node.integers("steps", 4) if node.opset >= 10 else None) or [1] * len(starts)
        runs = {}
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            size = node.x.shape[axis]
            runs[axis % len(node.x)] = (*slice(start, end, step).indices(size)[:2], step)
        return runs


class Gather(Rule):
    """Gather: constant indices pick channels; indices known only at run time hold the axis they look into."""

    ops: ClassVar[tuple[str, ...]] = ("Gather",)
    why: ClassVar[str] = "its indices look into this axis"

    def ties(self, node: Ties) -> None:
        """Tie what is picked to the output, and the other axes to their places."""
        x, y, picked = node.x, node.y, node.input(1)
        axis = int(node.attribute("axis", 0)) % len(x)
        for other in range(len(x)):
            if other != axis:
                node.tie(x[other], y[other if other < axis else other + len(picked) - 1])
        indices = node.value(1)
        if indices is not None and indices.ndim == 1:
            node.free(x[axis])
            node.tie(x[axis][indices], y[axis])
        elif indices is None:
            for offset in range(len(picked)):
                node.tie(picked[offset], y[axis + offset])
                node.set_zero(y[axis + offset], False)  # index 0 picks something

    def resize(self, node: Resize) -> None:
        """Count the indices anew."""
        indices = node.value(1)
        axis = int(node.attribute("axis", 0)) % len(node.x)
        if indices is None or indices.ndim != 1:
            return
        kept = node.kept(node.x[axis])
        if kept.all():
            return  # the axis may be free, where -1 is no fixed place
        place = np.cumsum(kept) - 1
        node.set_value(1, place[indices][node.kept(node.y[axis])])


class Pad(Rule):
    """Pad: what a constant pad adds to an axis is free by itself, so padded channels shrink with their neighbours'."""

    ops: ClassVar[tuple[str, ...]] = ("Pad",)
    why: ClassVar[str] = "this axis is padded from its own numbers"

    def ties(self, node: Ties) -> None:
        """Tie the input to its place in the output."""
        x, y = node.x, node.y
        constant = node.attribute("mode", "constant") == "constant"
        makes_zeros = self._is_zero(node)
        for axis, (before, after) in enumerate(self._amounts(node)):
            if before == after == 0:
                node.tie(x[axis], y[axis])
            elif constant and before >= 0 and after >= 0:
                node.tie(x[axis], y[axis][before : before + len(x[axis])])
                node.free(y[axis])
                node.set_zero(np.concatenate([y[axis][:before], y[axis][before + len(x[axis]) :]]), makes_zeros)
        if constant and not makes_zeros:
            for axis in range(len(y)):
                node.set_zero(y[axis], False)

    @staticmethod
    def _is_zero(node: Ties) -> bool:
        """Tell whether a constant pad adds zeros."""
        if node.has_input(2):
            value = node.value(2)
            return value is not None and not value.any()
        return not node.attribute("value", 0)

    def resize(self, node: Resize) -> None:
        """Count what is left of each pad."""
        amounts = self._amounts(node)
        axes = self._axes(node)
        for axis, (before, after) in enumerate(amounts):
            if before >= 0 and after >= 0:
                atoms = node.y[axis]
                amounts[axis] = (node.size(atoms[:before]), node.size(atoms[len(atoms) - after :]))
        pads = [amounts[axis][0] for axis in axes] + [amounts[axis][1] for axis in axes]
        node.set_integers("pads", 1, pads, since=11)

    @staticmethod
    def _axes(node: View) -> list[int]:
        axes = node.integers("axes", 3) if node.has_input(3) else None
        return list(range(len(node.x))) if axes is None else [axis % len(node.x) for axis in axes]

    def _amounts(self, node: View) -> list[tuple[int, int]]:
        """Give (before, after) of every axis."""
        pads = node.integers("pads", 1)
        if pads is None:
            raise Unknown("its pads are missing")
        axes = self._axes(node)
        amounts = [(0, 0)] * len(node.x)
        for position, axis in enumerate(axes):
            amounts[axis] = (pads[position], pads[len(axes) + position])
        return amounts
