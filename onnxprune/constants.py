"""Which slices of activations are one number whatever the input, and which one: what dead channels turn into.

It starts where a layer has nothing but zeros for an output channel, a normalisation scales by zero, or something is
multiplied by zero, and follows the numbers through the graph. Single nodes are run instead of being written again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper

from onnxprune.channels import Channels
from onnxprune.errors import InputError
from onnxprune.linear import FLOAT_TYPES, LINEAR, Linear, linear, stored_values
from onnxprune.ops import rule_for
from onnxprune.ops.elementwise import Cast, Dropout, Elementwise
from onnxprune.ops.layout import Expand, Flatten, Reshape, Squeeze, Transpose, Unsqueeze
from onnxprune.ops.normalization import BatchNormalization, trains
from onnxprune.ops.pooling import Pool, Resize
from onnxprune.ops.reduction import Reduce
from onnxprune.ops.rule import Allowed, Atoms, Axes, Known, Mask, Ties, Unknown
from onnxprune.ops.shuffle import Shuffle
from onnxprune.ops.slicing import Concat, Gather, Pad, Slice, Split
from onnxprune.shapes import Run, is_default_domain, run_alone
from onnxprune.weights import Array, Floats

POINTWISE = (Elementwise, Cast, Dropout)
MOVES = (Concat, Expand, Flatten, Gather, Pad, Reshape, Slice, Split, Squeeze, Transpose, Unsqueeze)

KEEPS_VALUE = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin"}
    | {"Resize", "Upsample"}
)
"""Operators that make v of many times v, however many they are."""

KEEPS_ZERO = frozenset({"GlobalLpPool", "LpPool", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSum", "ReduceSumSquare"})
"""Operators that make zero of many zeros, and of another number something that depends on how many there are."""

NOISE = 1e-6  # numbers as close as this are one: vectorised kernels treat the last numbers of an axis in another way


class Constants:
    """The slices of activations that are one number.

    Attributes:
        known: per atom, whether its slice is one number at every position for every input.
        value: per atom, the number.
    """

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        total = len(channels.channel_of)
        self.known: Mask = np.zeros(total, bool)
        self.value: Floats = np.zeros(total)

    def set(self, atoms: Atoms, known: Mask, value: Floats) -> None:
        """Note which atoms are known; what is not finite is not."""
        self.known[atoms] = known & np.isfinite(value)
        self.value[atoms] = np.where(self.known[atoms], value, 0)

    def knows_of(self, axes: Axes | None) -> bool:
        """Tell whether anything is known of a tensor."""
        return axes is not None and bool(self.known[axes.start : axes.end].any())

    def spread(self, axes: Axes, dtype: np.dtype[np.generic]) -> tuple[Mask, Array]:
        """Write a tensor out: which of its numbers are known, and the numbers, zero where they are not."""
        mask, values = np.zeros(axes.shape, bool), np.zeros(axes.shape, dtype)
        for axis in range(len(axes)):
            known = self.known[axes[axis]]
            if known.any():
                at = (slice(None),) * axis + (known,)
                mask[at] = True
                values[at] = self.value[axes[axis]][known].reshape(-1, *[1] * (len(axes) - axis - 1))
        return mask, values

    def gather(self, axes: Axes, mask: Mask, values: Array) -> None:
        """Note the slices of a tensor that are known and the same everywhere."""
        if 0 in axes.shape:
            return
        for axis, size in enumerate(axes.shape):
            whole: Mask = np.asarray(np.moveaxis(mask, axis, 0).reshape(size, -1).all(axis=1))
            rows = np.moveaxis(values, axis, 0).reshape(size, -1)[whole].astype(np.float64)
            known = np.isfinite(rows).all(axis=1)
            rows[~known] = 0
            known &= np.ptp(rows, axis=1) <= NOISE * np.abs(rows).max(axis=1)
            value = np.zeros(size)
            value[whole] = rows[:, 0]
            whole[whole] = known
            self.set(axes[axis], whole, value)


def find_constants(channels: Channels, run: Run) -> Constants | None:
    """Find the slices of activations that are one number; None, quickly, where no slice of a weight is zero.

    Args:
        channels: of the model.
        run: runs a model in memory once; used for single nodes.
    """
    indices = data_nodes(channels)
    if not any(_starts(channels, index) for index in indices):
        return None
    constants = Constants(channels)
    for index in indices:
        _Node(constants, index, run).follow()
    return constants


def data_nodes(channels: Channels) -> list[int]:
    """List the nodes that compute with data, in order; the last node of a shuffle stands for all of it."""
    inside = {index for shuffle in channels.shuffles.values() for index in shuffle.nodes[:-1]}
    skipped = channels.model.size_nodes | channels.aliases.nodes | inside
    nodes = channels.model.graph.nodes
    return [i for i, node in enumerate(nodes) if i not in skipped and any(t.name for t in node.inputs)]


def _starts(channels: Channels, index: int) -> bool:
    """Tell whether something is constant after a node whatever goes in, because of zeros it stores."""
    node = channels.model.graph.nodes[index]
    layer = linear(channels, index)
    if layer is not None:
        dead = ~layer.weight.any(axis=(-2, -1))
        return bool((channels.channel_of[layer.y[dead]] >= 0).any())
    if not is_default_domain(node.domain) or node.op not in ("BatchNormalization", "Mul"):
        return False
    operands = node.inputs if node.op == "Mul" else node.inputs[1:2]
    stored = [stored_values(channels, tensor.name) for tensor in operands]
    return any(values is not None and not values.all() for values in stored)


class _Node:
    """One node, and what is known of what goes in."""

    def __init__(self, constants: Constants, index: int, run: Run) -> None:
        self.constants = constants
        self.channels = constants.channels
        self.view = self.channels.view(index)
        self.node = self.view.node
        self.run = run

    def follow(self) -> None:
        """Note what is known of what comes out."""
        index, rule = self.view.index, rule_for(self.node)
        makes_floats = all(self._type(t.name) in FLOAT_TYPES for t in self.node.outputs[:1])
        if self.view.outputs[0] is None or not makes_floats:
            return
        if index in self.channels.shuffles:
            self._follow_shuffle(self.channels.shuffles[index])
        elif self.node.op in LINEAR and rule is not None:
            layer = linear(self.channels, index)
            if layer is not None:
                self._follow_linear(layer)
        elif isinstance(rule, BatchNormalization):
            self._follow_norm()
        elif isinstance(rule, POINTWISE):
            self._follow_pointwise()
        elif type(rule) in MOVES:
            self._follow_move()
        elif type(rule) in (Pool, Resize) or isinstance(rule, Reduce):
            self._follow_tied()

    def _type(self, name: str) -> int:
        return self.view.model.types.get(name, TensorProto.UNDEFINED)

    def _follow_shuffle(self, shuffle: Shuffle) -> None:
        x, y = self.view.x, self.view.y
        for axis in range(len(x)):
            before = x[axis][shuffle.order] if axis == shuffle.axis else x[axis]
            self.constants.set(y[axis], self.constants.known[before], self.constants.value[before])

    def _follow_linear(self, layer: Linear) -> None:
        """An output is known where all inputs that reach it are; padding makes edges of what is not zero."""
        if layer.bias is None:
            return
        values = np.where(self.constants.known[layer.x], self.constants.value[layer.x], 0)
        usable = self.constants.known[layer.x] & (layer.is_uniform | (values == 0))
        reached = (layer.weight.any(axis=-1) & ~usable[:, None, :]).any(axis=-1)
        if reached.all():
            return
        result = layer.bias + layer.response(np.where(usable, values, 0))
        with np.errstate(over="ignore"):  # what the type cannot hold is infinite, and so not known
            self.constants.set(layer.y, ~reached, result.astype(layer.weight.dtype).astype(np.float64))

    def _follow_norm(self) -> None:
        """A channel is known where what goes in is, or where the scale is zero."""
        operands = self._operands()
        if operands is None or trains(self.view) or not all(mask.all() for mask, _ in operands[1:]):
            return
        (mask, _), (_, scale) = operands[:2]
        mask |= (scale == 0).reshape(-1, *[1] * max(mask.ndim - 2, 0))
        self._follow_run([mask], operands)

    def _follow_pointwise(self) -> None:
        """A number is known where those of all operands are, or where one is multiplied by zero."""
        multiplies = self.node.op == "Mul"
        if not multiplies and not any(map(self.constants.knows_of, self.view.inputs)):
            return
        operands = self._operands()
        trains = self.node.op == "Dropout" and self.view.has_input(2)
        if operands is None or trains:
            return
        mask = np.ones(self.view.y.shape, bool)
        for known, _ in operands:
            mask &= known
        for known, values in operands if multiplies else ():
            mask |= known & (values == 0)
        self._follow_run([mask], operands)

    def _follow_move(self) -> None:
        """What is not known goes through as NaN, which is copied like any number."""
        operands = self._operands()
        moved = len(self.view.inputs) if self.node.op == "Concat" else 1
        if operands is None or not any(mask.any() for mask, _ in operands[:moved]):
            return
        if not all(mask.all() for mask, _ in operands[moved:]):
            return
        for mask, values in operands[:moved]:
            if not mask.all():
                values[~mask] = np.nan
        self._follow_run(None, operands)

    def _follow_tied(self) -> None:
        """An output slice is made of the numbers of the slice that it is tied to."""
        if not self.constants.knows_of(self.view.inputs[0]):
            return
        ties = Ties(self.view, Known(self.constants.known, self.constants.known, frozenset()), Allowed())
        rule = rule_for(self.node)
        try:
            assert rule is not None
            rule.ties(ties)
        except (Unknown, IndexError, TypeError, ValueError):
            return
        any_value = self.node.op in KEEPS_VALUE and not self.view.attribute("count_include_pad", 0)
        if not any_value and self.node.op not in (KEEPS_VALUE | KEEPS_ZERO):
            return
        x, y = self.view.x, self.view.y
        for before, after in ties.pairs:
            if len(after) and x.start <= before[0] < x.end and y.start <= after[0] < y.end:
                value = self.constants.value[before]
                self.constants.set(after, self.constants.known[before] & (any_value | (value == 0)), value)

    def _operands(self) -> list[tuple[Mask, Array]] | None:
        """Write out all operands: what is known of them, and numbers (None: one has no known shape)."""
        found = []
        for tensor, axes in zip(self.node.inputs, self.view.inputs, strict=True):
            values = stored_values(self.channels, tensor.name)
            values = self.view.model.value(tensor.name) if values is None else values
            if values is not None:
                found.append((np.ones(values.shape, bool), values))
            elif tensor.name and (axes is None or self._type(tensor.name) == TensorProto.UNDEFINED):
                return None
            elif axes is not None:
                dtype = np.dtype(helper.tensor_dtype_to_np_dtype(self._type(tensor.name)))
                known = self.constants.spread(axes, dtype)
                found.append(known if dtype.kind == "f" else (np.zeros(axes.shape, bool), known[1]))
        return found

    def _follow_run(self, masks: Sequence[Mask] | None, operands: Sequence[tuple[Mask, Array]]) -> None:
        """Run the node on its own and note the slices that are one number.

        Args:
            masks: per output, which of its numbers are known (default: those that are not NaN).
            operands: those inputs that are there.
        """
        if masks is not None and not any(mask.any() for mask in masks):
            return
        names = [tensor.name for tensor in self.node.inputs if tensor.name]
        results = self._run({name: values for name, (_, values) in zip(names, operands, strict=True)})
        made = zip(self.node.outputs, self.view.outputs, strict=True)
        outputs = [axes for tensor, axes in made if tensor.name] if masks is None else self.view.outputs[:1]
        for number, (axes, values) in enumerate(zip(outputs, results, strict=False)):
            mask = ~np.isnan(values) if masks is None else masks[number]
            if axes is not None and axes.shape == values.shape:
                self.constants.gather(axes, np.broadcast_to(mask, values.shape), values)

    def _run(self, feeds: dict[str, Array]) -> list[Array]:
        model = self.view.model.proto
        try:
            return run_alone(model, model.graph.node[self.view.index], feeds, self.run)
        except InputError:
            return []  # what cannot be computed is not known
