"""What a rule is: one small class per family of operators, which speaks about one node at a time.

A rule ties atoms, counts multiply-accumulates, and after a cut rewrites the sizes that live in its node's own
attributes or constant inputs. It sees the node through a `View`; what it says is recorded and applied elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.model import Model
from onnxprune.shapes import Shape
from onnxprune.weights import Array

Atoms = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Key = str | tuple[int, int]
"""Names the atoms of a tensor: its name, or (node, input) for one reader's own copy of a small shared parameter."""

Factor = tuple["Axes", int]


class Unknown(Exception):  # noqa: N818 (reads as what a rule says)
    """A rule cannot speak about this node; it says why, and everything the node touches freezes."""


class ContradictionError(Exception):
    """The shapes of a node contradict each other: the model is broken."""


class Axes:
    """The atoms of one tensor: ``a[1]`` are those of axis 1, negative axes count from the end."""

    __slots__ = ("key", "offsets", "shape")

    def __init__(self, key: Key, shape: Shape, start: int) -> None:
        self.key = key
        self.shape = shape
        offsets = [start]
        for size in shape:
            offsets.append(offsets[-1] + size)
        self.offsets = offsets

    def __getitem__(self, axis: int) -> Atoms:
        if axis < 0:
            axis += len(self.shape)
        return np.arange(self.offsets[axis], self.offsets[axis + 1])

    def __len__(self) -> int:
        return len(self.shape)

    @property
    def start(self) -> int:
        """The first atom."""
        return self.offsets[0]

    @property
    def end(self) -> int:
        """One past the last atom."""
        return self.offsets[-1]


class View:
    """One node and the atoms of its tensors.

    Args:
        model: the model the node belongs to.
        index: its place in the graph.
        inputs: atoms of each input, None for one left out.
        outputs: atoms of each output, None for one left out.
    """

    def __init__(self, model: Model, index: int, inputs: Sequence[Axes | None], outputs: Sequence[Axes | None]) -> None:
        self.model = model
        self.index = index
        self.node: gs.Node = model.graph.nodes[index]
        self.inputs = inputs
        self.outputs = outputs
        self.opset = model.opset

    @property
    def x(self) -> Axes:
        """The atoms of the first input."""
        return self.input(0)

    @property
    def y(self) -> Axes:
        """The atoms of the first output."""
        axes = self.outputs[0]
        if axes is None:
            raise Unknown("its first output is left out")
        return axes

    def input(self, position: int) -> Axes:
        """Give the atoms of an input that must be there."""
        axes = self.inputs[position] if position < len(self.inputs) else None
        if axes is None:
            raise Unknown(f"its input {position} is left out")
        return axes

    def has_input(self, position: int) -> bool:
        """Tell whether an optional input is there."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def has_output(self, position: int) -> bool:
        """Tell whether an optional output is there."""
        return position < len(self.outputs) and self.outputs[position] is not None

    def attribute(self, name: str, default: Any = None) -> Any:
        """Give an attribute of the node."""
        return self.node.attrs.get(name, default)

    def value(self, position: int) -> Array | None:
        """Give the numbers of an input where they are small and known without running the model."""
        return self.model.value(self.node.inputs[position].name) if self.has_input(position) else None

    def integers(self, name: str, position: int) -> list[int] | None:
        """Give integers that older opsets keep in attribute `name` and newer ones in an input (None: left out).

        Raises:
            Unknown: they are computed at run time.
        """
        if name in self.node.attrs:
            return [int(v) for v in np.atleast_1d(self.node.attrs[name])]
        if not self.has_input(position):
            return None
        value = self.value(position)
        if value is None:
            raise Unknown(f"its {name} are computed at run time")
        return [int(v) for v in np.atleast_1d(value)]


class Ties(View):
    """What one node says about its atoms.

    Args:
        fixed: per atom, whether the nodes before this one already hold it.
        constant: names of the tensors computed from stored numbers alone.
        view: see `View`.
    """

    def __init__(self, view: View, fixed: Mask, constant: frozenset[str]) -> None:
        super().__init__(view.model, view.index, view.inputs, view.outputs)
        self.pairs: list[tuple[Atoms, Atoms]] = []
        self.mentioned: list[Atoms] = []
        self.frozen: list[tuple[Atoms, str]] = []
        self._fixed = fixed
        self._constant = constant

    def tie(self, left: Atoms, right: Atoms) -> None:
        """Say that atoms can only exist together, pair by pair.

        Raises:
            ContradictionError: there are not equally many.
        """
        if len(left) != len(right):
            raise ContradictionError(f"sizes {len(left)} and {len(right)} do not match")
        self.pairs.append((left, right))

    def free(self, atoms: Atoms) -> None:
        """Say that atoms may come and go as far as this node is concerned."""
        self.mentioned.append(atoms)

    def freeze(self, atoms: Atoms, why: str) -> None:
        """Say that atoms must stay, and why."""
        self.frozen.append((atoms, why))

    def is_fixed(self, atoms: Atoms) -> bool:
        """Tell whether the nodes before this one hold all these atoms."""
        return bool(self._fixed[atoms].all())

    def is_constant(self, position: int) -> bool:
        """Tell whether an input is computed from stored numbers alone."""
        return self.node.inputs[position].name in self._constant


class Resize(View):
    """One node after a cut: what is left of its atoms, and what it rewrites.

    Args:
        view: see `View`.
        keep: per atom, whether it stays.
    """

    def __init__(self, view: View, keep: Mask) -> None:
        super().__init__(view.model, view.index, view.inputs, view.outputs)
        self.attributes: dict[str, Any] = {}
        self.values: dict[int, Array] = {}
        self._keep = keep

    def kept(self, atoms: Atoms) -> Mask:
        """Tell which atoms stay."""
        return self._keep[atoms]

    def size(self, atoms: Atoms) -> int:
        """Count the atoms that stay."""
        return int(np.count_nonzero(self._keep[atoms]))

    def shape(self, axes: Axes) -> Shape:
        """Give the shape of a tensor after the cut."""
        return tuple(self.size(axes[axis]) for axis in range(len(axes)))

    def set_attribute(self, name: str, value: Any) -> None:
        """Rewrite an attribute."""
        self.attributes[name] = value

    def set_value(self, position: int, value: Sequence[int] | Array) -> None:
        """Say what the numbers of an input must be now."""
        self.values[position] = np.asarray(value)

    def set_integers(self, name: str, position: int, value: Sequence[int], since: int) -> None:
        """Rewrite integers that are attribute `name` before opset `since` and input `position` from then on."""
        if self.opset < since:
            self.set_attribute(name, [int(v) for v in value])
        else:
            self.set_value(position, np.asarray(value, np.int64))


class Rule:
    """What a family of operators says.

    Attributes:
        ops: the operators it speaks for.
        why: what to tell the user of an axis it does not mention.
    """

    ops: ClassVar[tuple[str, ...]] = ()
    why: ClassVar[str] = "this axis cannot change here"

    def ties(self, node: Ties) -> None:
        """Tie, free and freeze the atoms of one node; silence freezes."""
        raise NotImplementedError

    def macs(self, node: View) -> list[list[Factor]]:
        """Count the node's multiply-accumulates: a sum of products of axis sizes, each with its output channels first.

        Empty for nodes that have none.
        """
        return []

    def resize(self, node: Resize) -> None:
        """Rewrite the sizes that live in the node itself; nothing by default."""


def every_axis(*tensors: Axes) -> list[Factor]:
    """List all axes of some tensors as factors."""
    return [(axes, axis) for axes in tensors for axis in range(len(axes))]
