"""Run an ONNX graph in PyTorch: the stored floats are its parameters, under their own names."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote, unquote

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, inliner
from torch import Tensor, fx, nn

from onnxprune import runtime
from onnxprune.errors import InputError, at
from onnxprune.model import Model, analyse, constant_tensor
from onnxprune.nodes import attributes_of, every_node
from onnxprune.shapes import is_default_domain, real_inputs
from onnxprune.training.functions import Call, Function, as_tensor, find
from onnxprune.training.functions.quantization import nearest
from onnxprune.training.quantized import find_quantized
from onnxprune.training.sharing import FLOATS, Unshared, single_parameters, writable, write
from onnxprune.weights import Array, read

HIDDEN = -1e3  # what is added to a score that nothing may come of; its exponential is zero
LONGEST_LOOP = 1000  # rounds; a longer one would be a graph of as many copies


class Executor(nn.Module):
    """An ONNX model as a module of torch: called with its inputs, in its order, it gives a tuple of its outputs.

    For each shape of the inputs a program is made once, in which all that follows from sizes is known. Halves are
    computed in single precision. Weights that are stored as whole numbers are parameters as the floats that they stand
    for, and run as the nearest that can be stored.

    Args:
        proto: the model; it stays as it is, see `model`.
        folder: where its external data lies.
        outputs: tensors to give in place of its outputs.
        compiled: whether torch compiles each program.

    Raises:
        InputError: it holds an operator that has no function, or cannot be read.
    """

    def __init__(
        self, proto: ModelProto, folder: Path, outputs: Sequence[str] | None = None, compiled: bool = False
    ) -> None:
        super().__init__()
        self.proto, self.folder, self.compiled = proto, folder, compiled
        self.outputs = [value.name for value in proto.graph.output] if outputs is None else list(outputs)
        self._unshared = Unshared(proto, folder)
        apart = self._unshared.proto
        self._inlined = inliner.inline_local_functions(apart) if apart.functions else apart
        self.inputs = [value.name for value in real_inputs(proto.graph)]
        stored = writable(apart)
        trained, self.followed = _roles(self._inlined, stored)
        self.weights = nn.ParameterDict()
        self.statistics = nn.Module()
        for name in trained:
            values = as_tensor(read(stored[name], folder))
            if not _is_mask(values):
                self.weights[_key(name)] = nn.Parameter(values)
        self.quantized = dict(find_quantized(self._inlined, stored, folder))
        for name, quantized in self.quantized.items():
            self.weights[_key(name)] = nn.Parameter(as_tensor(quantized.steps.floats(read(stored[name], folder))))
        for name in self.followed.intersection(stored):
            self.statistics.register_buffer(_key(name), as_tensor(read(stored[name], folder)))
        self._programs: dict[object, _Program] = {}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the graph.

        Raises:
            InputError: the inputs do not fit the model.
        """
        inputs = tuple(x.float() if x.dtype in (torch.half, torch.bfloat16) else x for x in inputs)
        key = (*(tuple(x.shape) for x in inputs), self.training)
        if key not in self._programs:
            self._programs[key] = self._program([tuple(x.shape) for x in inputs])
        return self._programs[key].run(inputs)

    def tensor(self, name: str) -> Tensor:
        """Give a parameter or a statistic by its name in the model."""
        key = _key(name)
        found: Tensor = self.weights[key] if key in self.weights else getattr(self.statistics, key)
        return found

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Give all parameters and statistics by their names in the model."""
        for key, parameter in self.weights.items():
            yield unquote(key[1:]), parameter
        for key, buffer in self.statistics.named_buffers():
            yield unquote(key[1:]), buffer

    def model(self) -> ModelProto:
        """Give the model with the numbers as they are now; what did not change stays to the letter."""
        result = ModelProto()
        result.CopyFrom(self._unshared.proto)
        stored = writable(result)
        for name, values in self.named():
            quantized = self.quantized.get(name)
            numbers = values.detach().cpu().numpy()
            write(stored[name], numbers if quantized is None else quantized.steps.whole(numbers), self.folder)
        self._unshared.rejoin(result)
        return result

    def _program(self, shapes: Sequence[tuple[int, ...]]) -> _Program:
        if len(shapes) != len(self.inputs):
            raise InputError(f"the model takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), not {len(shapes)}")
        asked = dict(zip(self.inputs, shapes, strict=True))
        return _Writer(self, analyse(self._inlined, self.folder, runtime.evaluate, asked)).write()


@dataclass
class _Program:
    """What runs for one shape of the inputs.

    Attributes:
        module: called with the inputs, then with what else it reads.
        reads: parameters and statistics by name, and constants.
        tensor: finds what goes by a name.
    """

    module: Callable[..., tuple[Tensor, ...]]
    reads: list[str | Tensor]
    tensor: Callable[[str], Tensor]

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        device = inputs[0].device if inputs else None
        for place, given in enumerate(self.reads):
            if isinstance(given, Tensor) and device is not None and given.device != device:
                self.reads[place] = given.to(device)
        return self.module(*inputs, *(self.tensor(given) if isinstance(given, str) else given for given in self.reads))


class _Writer:
    """Writes a program, node by node.

    Args:
        executor: whose program it is.
        model: its graph, with all sizes known.
    """

    def __init__(self, executor: Executor, model: Model) -> None:
        self.executor, self.model = executor, model
        self.opsets = {"" if is_default_domain(o.domain) else o.domain: o.version for o in model.proto.opset_import}
        self.own = {name for name, _ in executor.named()}
        self.graph = fx.Graph()
        self.reads: list[str | Tensor] = []
        self._last: fx.Node | None = None
        self.values = {name: self._placeholder() for name in executor.inputs}
        self.loose = _shaped_by_data(model)
        sizes = {name: values for name, values in model.size_values.items() if name not in self.loose}
        self.known: dict[str, Array] = sizes  # sizes, and what is stored and not trained
        self.known |= {name: read(t, model.folder) for name, t in model.stored.items() if name not in self.own}

    def write(self) -> _Program:
        """Write the whole graph."""
        graph = self.model.proto.graph
        sized = self.model.size_nodes
        self._nodes([n for index, n in enumerate(graph.node) if index not in sized or n.output[0] in self.loose])
        self.graph.output(tuple(self._value(name) for name in self.executor.outputs))
        self.graph.eliminate_dead_code()
        module = fx.GraphModule(nn.Module(), self.graph)
        run = torch.compile(module, dynamic=False) if self.executor.compiled else module
        return _Program(run, self.reads, self.executor.tensor)

    def _nodes(self, nodes: Sequence[NodeProto]) -> None:
        for node in nodes:
            if is_default_domain(node.domain) and node.op_type in INLINED:
                INLINED[node.op_type](self, node)
            else:
                self._call(node)

    def _call(self, node: NodeProto) -> None:
        """Let torch compute a node."""
        found = find(node.domain, node.op_type)
        if found is None:
            where = at(node.name, f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
            raise InputError(
                f"{where} cannot be run in PyTorch: no function for this operator; "
                "compress without training, or add one as docs/extending.md says"
            )
        domain = "" if is_default_domain(node.domain) else node.domain
        attributes = attributes_of(node)
        if node.op_type == "DequantizeLinear" and node.input[0] in self.executor.quantized:
            found, attributes = replace(found, run=nearest), self.executor.quantized[node.input[0]].attributes
        outputs = max((place for place, name in enumerate(node.output, start=1) if name), default=0)
        is_training = self.executor.training and (node.op_type != "BatchNormalization" or self._is_followed(node))
        call = Call(node.op_type, node.name, self.opsets.get(domain, 1), attributes, outputs, is_training)
        operands: list[Any]
        if node.op_type in COUNTS and all(name in self.known for name in node.input):  # such as the number of a round
            operands = [as_tensor(self.known[name]) for name in node.input]
        else:
            operands = [self._operand(name, position in found.sizes) for position, name in enumerate(node.input)]
        if not any(map(_is_value, operands)):  # it follows from what is known alone
            self._know(node.output[0], found.run(call, *operands).numpy())
            return
        result = self.graph.call_function(_bound(found, call, operands), tuple(filter(_is_value, operands)))
        for place, name in enumerate(node.output):
            if name:
                picked = outputs > 1
                if name not in self.model.size_values:  # a body before may have known something by this name
                    self.known.pop(name, None)
                self.values[name] = self.graph.call_function(operator.getitem, (result, place)) if picked else result

    def _is_followed(self, node: NodeProto) -> bool:
        """Tell whether the mean of a BatchNormalization is a statistic that moves; others stay what they are."""
        return node.input[3] in self.executor.followed

    def _operand(self, name: str, holds_sizes: bool) -> fx.Node | Array | None:
        """Give an operand: a number where it holds sizes that are known, None where it is left out."""
        if not name:
            return None
        return self.known[name] if holds_sizes and name in self.known else self._value(name)

    def _value(self, name: str) -> fx.Node:
        """Give a tensor while the program runs."""
        if name not in self.values:
            if name not in self.own and name not in self.known:
                raise InputError(f"tensor {name!r} is stored in a form that cannot be trained; leave training out")
            self.reads.append(name if name in self.own else as_tensor(self.known[name]))
            self.values[name] = self._placeholder()
        return self.values[name]

    def _placeholder(self) -> fx.Node:
        """Take one more tensor, after those before."""
        with self.graph.inserting_after(self._last):
            self._last = self.graph.placeholder(f"tensor_{len(self.graph.nodes)}")
        return self._last

    def _constant(self, node: NodeProto) -> None:
        """Constant nodes are stored numbers."""
        tensor = constant_tensor(node)
        if tensor is None:
            raise InputError(f"{at(node.name, node.op_type)} holds text or a sparse tensor, which PyTorch cannot run")
        if node.output[0] not in self.own:
            self._know(node.output[0], read(tensor, self.model.folder))

    def _identity(self, node: NodeProto) -> None:
        self._rename(node.input[0], node.output[0])

    def _if(self, node: NodeProto) -> None:
        """An If whose condition is known is the branch that it takes."""
        condition = self.known.get(node.input[0])
        if condition is None:
            raise _depends_on_data(node, "decides by the data")
        wanted = "then_branch" if condition.item() else "else_branch"
        body = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        self._body(body)
        for inner, outer in zip(body.output, node.output, strict=True):
            self._rename(inner.name, outer)

    def _loop(self, node: NodeProto) -> None:
        """A Loop whose number of rounds is known is so many copies of its body."""
        rounds, goes_on = (self.known.get(name) if name else None for name in (*node.input[:2], "")[:2])
        if rounds is None or rounds.item() > LONGEST_LOOP or (node.input[1] and goes_on is None):
            raise _depends_on_data(node, f"runs for a number of rounds that the data decide, or over {LONGEST_LOOP}")
        body, carried = node.attribute[0].g, list(node.input[2:])
        scanned: list[list[fx.Node]] = [[] for _ in body.output[1 + len(carried) :]]
        for number in range(int(rounds.item()) if goes_on is None or goes_on.item() else 0):
            given = [value.name for value in body.input]
            self._know(given[0], np.asarray(number, np.int64))
            self._know(given[1], np.asarray(True))
            for inner, outer in zip(given[2:], carried, strict=True):
                self._rename(outer, inner)
            self._body(body)
            made = [value.name for value in body.output]
            again = self.known.get(made[0])
            if again is None:
                raise _depends_on_data(node, "may end early")
            carried = [f"{name}@{number}" for name in made[1 : 1 + len(carried)]]  # the next round makes these anew
            for inner, outer in zip(made[1:], carried, strict=False):
                self._rename(inner, outer)
            for found, name in zip(scanned, made[1 + len(carried) :], strict=True):
                found.append(self._value(name))
            if not again.item():
                break
        if not all(scanned):
            raise _depends_on_data(node, "collects what no round gives")
        for name, outer in zip(carried, node.output, strict=False):
            self._rename(name, outer)
        for found, outer in zip(scanned, node.output[len(carried) :], strict=True):
            self.values[outer] = self.graph.call_function(torch.stack, (found,))

    def _body(self, body: GraphProto) -> None:
        for tensor in body.initializer:
            self._know(tensor.name, read(tensor, self.model.folder))
        self._nodes(body.node)

    def _know(self, name: str, values: Array) -> None:
        self.known[name] = values
        self.values.pop(name, None)

    def _rename(self, old: str, new: str) -> None:
        """Let another name stand for a value."""
        self.values.pop(new, None)
        self.known.pop(new, None)
        if old in self.known:
            self.known[new] = self.known[old]
        if old in self.values or old not in self.known:
            self.values[new] = self._value(old)


COUNTS = frozenset({"Add", "And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Sub"})
"""Operators that loops count with, and tell when to end."""

INLINED: dict[str, Callable[[_Writer, NodeProto], None]] = {
    "Constant": _Writer._constant,
    "Identity": _Writer._identity,
    "If": _Writer._if,
    "Loop": _Writer._loop,
}
"""Operators of which a program keeps no trace."""


def _depends_on_data(node: NodeProto, what: str) -> InputError:
    return InputError(
        f"{at(node.name, node.op_type)} {what}; that cannot be trained through, so compress without training"
    )


def _bound(function: Function, call: Call, operands: Sequence[fx.Node | Array | None]) -> Callable[..., Any]:
    """Close a function over its node and over the operands that are known."""
    known = [np.array(o) if isinstance(o, np.ndarray) else None for o in operands]  # torch compiles no read-only ones
    places = [place for place, operand in enumerate(operands) if _is_value(operand)]
    run = function.run

    def bound(*tensors: Tensor) -> Any:
        given: list[Any] = list(known)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return run(call, *given)

    bound.__name__ = call.op.lower()
    return bound


def _shaped_by_data(model: Model) -> set[str]:
    """Name the tensors whose shapes depend on the data, and sizes that follow: analysis knows those of its probe."""
    known = {*model.stored, *model.size_values, ""}
    loose: set[str] = set()
    for node in model.proto.graph.node:
        found = find(node.domain, node.op_type)
        sizes = [name for position, name in enumerate(node.input) if found and position in found.sizes]
        if node.op_type == "NonZero" or not loose.isdisjoint(node.input) or not known.issuperset(sizes):
            loose.update(node.output)
    return loose


def _is_value(operand: object) -> TypeGuard[fx.Node]:
    return isinstance(operand, fx.Node)


def _roles(proto: ModelProto, stored: Mapping[str, TensorProto]) -> tuple[list[str], set[str]]:
    """Tell which stored floats are trained, and what goes by the names of statistics that a BatchNormalization moves.

    What an operator reads as a size, a bound or a statistic is not trained, nor are single numbers, but for those that
    layers learn.
    """
    followed, fixed, root = set[str](), set[str](), dict[str, str]()
    for node in every_node(proto.graph):
        found = find(node.domain, node.op_type)
        if node.op_type == "BatchNormalization":
            followed.update(node.input[3:5])
        elif node.op_type == "Identity":
            continue
        for position, name in enumerate(node.input):
            if found is None or position in (*found.sizes, *found.fixed):
                fixed.add(name)
    for node in proto.graph.node:
        if node.op_type == "Identity":
            root[node.output[0]] = root.get(node.input[0], node.input[0])
    for node in reversed(proto.graph.node):
        if node.op_type in BROUGHT and node.output[0] in fixed:
            fixed.add(node.input[0])
        if node.op_type == "Identity" and node.output[0] in followed:
            followed.add(node.input[0])
    floats = [name for name, tensor in stored.items() if tensor.data_type in FLOATS]
    followed = {name for name in followed if root.get(name, name) in floats}
    fixed |= followed | {value.name for value in proto.graph.output}
    single = single_parameters(proto.graph)
    large = [name for name in floats if np.prod(stored[name].dims) > 1 or name in single]
    return [name for name in large if name not in fixed], followed


BROUGHT = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that bring stored numbers to where they are read."""


def _is_mask(values: Tensor) -> bool:
    """Tell whether numbers only hide something: all are zero, or one that is as good as minus infinity."""
    if not values.isfinite().all():
        return True
    lowest = values.min()
    return bool(lowest <= HIDDEN) and bool(((values == 0) | (values == lowest)).all())


def _key(name: str) -> str:
    """Write a name without dots, which torch takes for a path, and unlike any method of a module."""
    return "=" + quote(name, safe="/:").replace(".", "%2E")
