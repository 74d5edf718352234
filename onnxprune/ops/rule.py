"""What a rule is: one small class per family of operators, which speaks about one node at a time.

A rule ties atoms, counts multiply-accumulates, and after a cut rewrites the sizes that live in its node's own
attributes or constant inputs. It sees the node through a `View`; what it says is recorded and applied elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

HOW_TO_SHRINK = "--approximate lets it shrink"


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

    def is_read(self, position: int) -> bool:
        """Tell whether anybody reads an output."""
        tensor = self.node.outputs[position]
        return bool(tensor.outputs) or any(tensor.name == output.name for output in self.model.graph.outputs)

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
            raise Unknown(f"its {name} input is computed at run time")
        return [int(v) for v in np.atleast_1d(value)]


@dataclass(frozen=True)
class Known:
    """What the nodes before one have said.

    Attributes:
        fixed: per atom, whether it is held already.
        zero: per atom, whether its slice is zero where the slices of its channel in all weights are.
        constant: names of the tensors computed from stored numbers alone.
    """

    fixed: Mask
    zero: Mask
    constant: frozenset[str]


@dataclass(frozen=True)
class Allowed:
    """What may be cut beyond what is exact and whole.

    Attributes:
        approximate: an axis that a normalisation averages over may shrink.
        slots: the inside of groups and attention heads is cut, instead of whole groups and heads.
    """

    approximate: bool = False
    slots: bool = False


@dataclass(frozen=True)
class Regroup:
    """Axes whose indices are split and merged; which factor carries the channels is decided after all nodes spoke.

    Attributes:
        node: the node that does it.
        left: atoms of the axes before.
        right: atoms of the axes after, as many numbers in the same order.
    """

    node: int
    left: tuple[Atoms, ...]
    right: tuple[Atoms, ...]


@dataclass(frozen=True)
class Balance:
    """An axis in blocks that must stay equally large.

    Attributes:
        node: the node that asks for it.
        blocks: atoms (blocks, size).
        slots: atoms of an axis as long as one block, whose index s means the s-th index of each block (None: none).
        weight: key of the stored tensor that the slots belong to.
    """

    node: int
    blocks: Atoms
    slots: Atoms | None = None
    weight: Key | None = None


class Ties(View):
    """What one node says about its atoms.

    Args:
        view: see `View`.
        known: what the nodes before this one have said.
        allowed: what may be cut beyond what is exact and whole.
    """

    def __init__(self, view: View, known: Known, allowed: Allowed) -> None:
        super().__init__(view.model, view.index, view.inputs, view.outputs)
        self.pairs: list[tuple[Atoms, Atoms]] = []
        self.mentioned: list[Atoms] = []
        self.frozen: list[tuple[Atoms, str]] = []
        self.regroups: list[Regroup] = []
        self.balances: list[Balance] = []
        self.approximated: list[Atoms] = []
        self.zeroed: list[tuple[Atoms, Mask | bool]] = []
        self.allowed = allowed
        self._known = known

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

    def regroup(self, left: Sequence[Atoms], right: Sequence[Atoms]) -> None:
        """Say that axes are split and merged, in the order of their indices.

        Raises:
            ContradictionError: they do not hold equally many numbers.
        """
        before, after = (int(np.prod([len(part) for part in side], dtype=np.int64)) for side in (left, right))
        if before != after:
            raise ContradictionError(f"sizes {before} and {after} do not match")
        self.regroups.append(Regroup(self.index, tuple(left), tuple(right)))

    def balance(self, atoms: Atoms, blocks: int, slots: Atoms | None = None, weight: Key | None = None) -> None:
        """Say that the blocks of an axis must stay equally large; see `Balance`."""
        self.balances.append(Balance(self.index, atoms.reshape(blocks, -1), slots, weight))

    def approximate(self, atoms: Atoms, why: str) -> None:
        """Let atoms go that this node averages over, where that is allowed; else they must stay."""
        if self.allowed.approximate:
            self.approximated.append(atoms)
        else:
            self.freeze(atoms, f"{why}; {HOW_TO_SHRINK}")

    def set_zero(self, atoms: Atoms, is_zero: Mask | bool) -> None:
        """Say which slices of an output are zero where all weights of their channel are; `Rule.zero` is the default."""
        self.zeroed.append((atoms, is_zero))

    def set_nothing_zero(self, axes: Axes) -> None:
        """Say that no slice of an output is zero, whichever weights are."""
        self.set_zero(np.arange(axes.start, axes.end), False)

    def zeros(self, atoms: Atoms) -> Mask:
        """Tell which slices are zero where all weights of their channels are."""
        return self._known.zero[atoms]

    def is_zero(self, atoms: Atoms) -> bool:
        """Tell whether all these slices are zero where all weights of their channels are."""
        return bool(self.zeros(atoms).all())

    def is_fixed(self, atoms: Atoms) -> bool:
        """Tell whether the nodes before this one hold all these atoms."""
        return bool(self._known.fixed[atoms].all())

    def is_constant(self, position: int) -> bool:
        """Tell whether an input is computed from stored numbers alone."""
        return self.node.inputs[position].name in self._known.constant


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
        domain: where they are defined; empty for the ONNX standard.
        why: what to tell the user of an axis it does not mention.
        zero: when a slice of an output is zero: where ``all`` slices tied to it are, where ``any`` is, or ``never``.
    """

    ops: ClassVar[tuple[str, ...]] = ()
    domain: ClassVar[str] = ""
    zero: ClassVar[str] = "all"
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
