"""Cut a model down to a plan, and change nothing else.

Stored numbers are sliced along the removed atoms; then each rule rewrites the sizes that live in its own node. What is
not touched is copied from the original to the letter: names, opset, metadata, free axes, unrelated nodes and weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxprune import shapes as sizes
from onnxprune.channels import Channels
from onnxprune.depth import Depth
from onnxprune.draft import Draft
from onnxprune.errors import InputError
from onnxprune.ops import rule_for
from onnxprune.ops.layout import reshape_target
from onnxprune.ops.rule import Axes, Mask, Resize
from onnxprune.ops.shuffle import Shuffle
from onnxprune.plan import Plan, kept_atoms, kept_slots
from onnxprune.shapes import Run
from onnxprune.weights import Array, without_slots


def cut(channels: Channels, plan: Plan, run: Run) -> ModelProto:
    """Cut a model.

    Args:
        channels: what can be cut from it.
        plan: what stays.
        run: runs a model in memory once; used to compute shape arithmetic anew.

    Returns:
        The smaller model; tensors that were external and lost nothing still point to the original's data file.
    """
    return _Cut(channels, kept_atoms(channels, plan), run).proto()


class _Cut(Draft):
    """One cut in progress."""

    def __init__(self, channels: Channels, keep: Mask, run: Run) -> None:
        super().__init__(channels)
        self.keep = keep
        self.run = run
        self.size_values = self._size_values(run)
        self.varying = self._varying()

    def _size_values(self, run: Run) -> dict[str, Array]:
        """Compute shape arithmetic as it will come out in the cut model."""
        if not self.model.size_nodes:
            return {}
        planned = dict(self.model.shapes)
        for key, axes in self.channels.axes.items():
            if isinstance(key, str):
                planned[key] = tuple(self._size(axes, axis) for axis in range(len(axes)))
        for name, root in self.channels.aliases.root.items():
            planned[name] = planned[root]
        nodes = sorted(self.model.size_nodes)
        try:
            return sizes.compute_sizes(self.model.proto, nodes, planned, self.model.stored, run)
        except InputError as error:
            raise InputError(
                f"what the model computes from sizes cannot be computed once channels are gone: {error}; "
                "--min-keep keeps more of them, --keep leaves layers alone"
            ) from error

    def _size(self, axes: Axes, axis: int) -> int:
        return int(np.count_nonzero(self.keep[axes.offsets[axis] : axes.offsets[axis + 1]]))

    def proto(self) -> ModelProto:
        self._slice_stored()
        idle = self._end_branches()
        inside = {index for shuffle in self.channels.shuffles.values() for index in shuffle.nodes}
        for index in range(len(self.nodes)):
            if index in idle:
                continue
            if index in self.channels.shuffles:
                self._resize_shuffle(self.channels.shuffles[index])
            elif index not in self.model.size_nodes and index not in inside:
                self._resize(index)
        self._drop_unread()
        return self._export()

    def _slice(self, values: Array, axes: Axes) -> Array:
        """Take the kept indices of each axis."""
        slots = kept_slots(self.channels, self.keep, axes.key)
        if slots is not None:
            values = without_slots(values, slots)
        for axis in range(len(axes)):
            if axis == 1 and slots is not None:
                continue
            keep = self.keep[axes.offsets[axis] : axes.offsets[axis + 1]]
            if not keep.all():
                values = np.take(values, np.flatnonzero(keep), axis)
        return np.ascontiguousarray(values)

    def _loses(self, axes: Axes | None) -> bool:
        return axes is not None and not bool(self.keep[axes.start : axes.end].all())

    def _slice_stored(self) -> None:
        for name in self.model.stored:
            axes = self.channels.axes.get(name)
            if axes is not None and self._loses(axes):
                self.replaced[name] = self._slice(self.model.array(name), axes)
        for name, readers in self.channels.readers.items():
            self._slice_shared(name, readers)

    def _slice_shared(self, name: str, readers: Sequence[tuple[int, int]]) -> None:
        """Slice a small parameter for each of its readers; readers that lose the same indices go on sharing."""
        copies: dict[bytes, list[tuple[int, int]]] = {}
        for reader in readers:
            axes = self.channels.axes[reader]
            copies.setdefault(self.keep[axes.start : axes.end].tobytes(), []).append(reader)
        whole = next((k for k, found in copies.items() if not self._loses(self.channels.axes[found[0]])), None)
        stays = whole if whole is not None else next(iter(copies))  # these readers go on reading the original name
        for mask, found in copies.items():
            values = self._slice(self.model.array(name), self.channels.axes[found[0]])
            if mask != stays:
                copy = self._constant(name, values)
                for node, position in found:
                    self._connect(node, position, copy)
            elif whole is None:
                self.replaced[name] = values

    def _resize(self, index: int) -> None:
        """Let the rule of a node rewrite it; sizes that reach a node as mere numbers keep their original value."""
        node = self.nodes[index]
        view = self.channels.view(index)
        resize = Resize(view, self.keep)
        rule = rule_for(node)
        if rule is not None and any(map(self._loses, (*view.inputs, *view.outputs))):
            rule.resize(resize)
        for name, value in resize.attributes.items():
            if node.attrs.get(name) != value:
                self.changed.add(id(node))
                if value is None:
                    del node.attrs[name]
                else:
                    node.attrs[name] = value
        for position in range(max([len(node.inputs), *(p + 1 for p in resize.values)])):
            if position in resize.values:
                self._write_value(index, position, resize.values[position])
            else:
                self._keep_value(index, position)

    def _end_branches(self) -> Collection[int]:
        """Put constants in the place of branches that lost all their channels; returns the nodes that are gone."""
        lost = {
            key
            for key, axes in self.channels.axes.items()
            if isinstance(key, str) and 0 in (self._size(axes, axis) for axis in range(len(axes)) if axes.shape[axis])
        }
        lost -= set(self.model.stored)
        if not lost:
            return ()
        branches = Depth(self.channels).branches(lost)
        assert branches is not None, "the plan empties what cannot be empty"
        known: dict[str, Array] = {}
        for index in sorted(branches.ends | branches.constant):
            output = self.nodes[index].outputs[0]
            known[output.name] = self._bias(index) if index in branches.ends else self._compute(index, known)
        idle = branches.gone | branches.ends | branches.constant
        places = {id(node): index for index, node in enumerate(self.nodes)}
        for name, values in known.items():
            readers = [(places[id(reader)], reader) for reader in self.graph.tensors()[name].outputs]
            readers = [(place, reader) for place, reader in readers if place not in idle]
            constant = self._constant(name, values) if readers else None
            for place, reader in readers:
                for position, tensor in enumerate(list(reader.inputs)):
                    if tensor.name == name:
                        self._connect(place, position, constant)
        for index in idle:
            self.nodes[index].inputs.clear()
            self.nodes[index].outputs.clear()
        return idle

    def _bias(self, index: int) -> Array:
        """Give what a node over no channels puts out, with a size of 1 on all axes but that of its channels."""
        node, view = self.nodes[index], self.channels.view(index)
        channel = 1 if node.op in ("Conv", "ConvTranspose") else len(view.y) - 1
        shape = [self._size(view.y, axis) if axis == channel else 1 for axis in range(len(view.y))]
        if not view.has_input(2):
            return np.zeros(shape, helper.tensor_dtype_to_np_dtype(self.model.types[node.outputs[0].name]))
        bias = self._values(node.inputs[2])
        if node.op == "Gemm":
            bias = bias * bias.dtype.type(node.attrs.get("beta", 1))
            return np.ascontiguousarray(np.broadcast_to(bias, np.broadcast_shapes(bias.shape, shape)))
        return bias.reshape(shape)

    def _compute(self, index: int, known: Mapping[str, Array]) -> Array:
        """Run one node on constants."""
        node = self.nodes[index]
        tensors = {t.name: t for t in node.inputs if t.name}
        operands = {name: known[name] if name in known else self._values(tensor) for name, tensor in tensors.items()}
        return np.asarray(sizes.run_alone(self.model.proto, OnnxExporter.export_node(node), operands, self.run)[0])

    def _resize_shuffle(self, shuffle: Shuffle) -> None:
        """Write a shuffle anew: with other sizes where it still is one, else as a Gather with constant indices."""
        first, _, last = shuffle.nodes
        view = self.channels.view(last)
        if not self._loses(view.x):
            for index in (first, last):
                self._keep_value(index, 1)
            return
        order = shuffle.order_of(self.keep[view.x[shuffle.axis]])
        split = shuffle.split_for(order)
        if split is None:
            self._gather(shuffle, order)
            return
        whole = tuple(self._size(view.x, axis) for axis in range(len(view.x)))
        for index, before, after in ((first, whole, split), (last, shuffle.moved(split), whole)):
            asked = self.model.value(self.nodes[index].inputs[1].name)
            assert asked is not None
            keeps_zero = bool(self.nodes[index].attrs.get("allowzero", 0))
            self._write_value(index, 1, reshape_target(asked, before, after, keeps_zero))

    def _gather(self, shuffle: Shuffle, order: Array) -> None:
        """Put a Gather in the place of a shuffle."""
        nodes = [self.nodes[index] for index in shuffle.nodes]
        x, y = nodes[0].inputs[0], nodes[-1].outputs[0]
        indices = self._constant(f"{y.name}_order", order)
        place = self._place(nodes[-1])
        for node in nodes:  # without inputs they are dropped at the end
            node.inputs.clear()
            node.outputs.clear()
        gather = gs.Node("Gather", name=nodes[-1].name, attrs={"axis": shuffle.axis}, inputs=[x, indices], outputs=[y])
        self.graph.nodes.insert(place, gather)

    def _keep_value(self, index: int, position: int) -> None:
        name = self.nodes[index].inputs[position].name
        if name in self.size_values:
            before = self.model.size_values[name]
            if not np.array_equal(before, self.size_values[name]):
                self._write_value(index, position, before)

    def _write_value(self, index: int, position: int, wanted: Array) -> None:
        """Make the numbers of an input what they must be, touching as little as possible."""
        inputs = self.nodes[index].inputs
        name = inputs[position].name if position < len(inputs) else ""
        now = self.size_values.get(name, self.model.value(name)) if name else None
        if now is None:
            self._connect(index, position, self._constant(f"{self.nodes[index].outputs[0].name}_sizes", wanted))
            return
        wanted = wanted.astype(now.dtype).reshape(now.shape if wanted.size == now.size else wanted.shape)
        if np.array_equal(now, wanted):
            return
        if name in self.model.stored and len(inputs[position].outputs) == 1 and name not in self.outputs:
            self.replaced[name] = wanted
        elif name in self.varying and now.shape == wanted.shape and now.dtype.kind in "if":
            self._scale(index, position, wanted, now)
        else:
            self._connect(index, position, self._constant(name, wanted))

    def _varying(self) -> set[str]:
        """Name the sizes that may differ from run to run: they look at free sizes, or at such as numbers decide."""
        declared = [sizes.declared_shape(value) for value in sizes.real_inputs(self.model.proto.graph)]
        are_free = any(shape is None or any(not isinstance(size, int) for size in shape) for shape in declared)
        varying = set(sizes.decided_by_numbers(self.model.proto.graph))
        for index in sorted(self.model.size_nodes):
            node = self.nodes[index]
            looks = are_free and node.op in ("Shape", "Size")
            if looks or any(tensor.name in varying for tensor in node.inputs):
                varying.update(tensor.name for tensor in node.outputs)
        return varying

    def _scale(self, index: int, position: int, wanted: Array, now: Array) -> None:
        """Multiply the sizes a node is given by `wanted` / `now`, so that free ones and their products stay free.

        Sizes that became zero (half of one channel) are given what they lack.
        """
        tensor = self.nodes[index].inputs[position]
        scales, lacks = (now != wanted) & (now != 0), (now != wanted) & (now == 0)
        changes = [("Mul", np.where(scales, wanted, 1)), ("Div", np.where(scales, now, 1))] if scales.any() else []
        if lacks.any():
            changes.append(("Add", np.where(lacks, wanted, 0)))
        for op, operand in changes:
            constant = self._constant(tensor.name, operand.astype(now.dtype))
            result = gs.Variable(f"{constant.name}_{op}")
            node = gs.Node(op, name=result.name, inputs=[tensor, constant], outputs=[result])
            self.graph.nodes.insert(self._place(self.nodes[index]), node)
            tensor = result
        self._connect(index, position, tensor)
