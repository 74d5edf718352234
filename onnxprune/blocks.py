"""What a network computes with data, operation by operation, and the blocks it falls apart into.

A block reaches from one place where a single tensor is alive to the next: a residual block, an inception block, an
attention block. In a chain every place is one; there a block begins with each operation that multiplies and takes
along what follows (convolution, normalisation, activation). Nothing here depends on names, nor on the order in which
the file lists independent branches.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channels import Channels
from onnxprune.ops import rule_for
from onnxprune.ops.conv import Conv
from onnxprune.ops.rule import Mask
from onnxprune.shapes import Shape, numbers
from onnxprune.tying import captured
from onnxprune.weights import Ints

LARGE = 10  # operations that multiply; in blocks with more, places where a few tensors are alive are borders as well
FEW_ALIVE = 16  # tensors; no place where more are alive is a border
WORD = (1 << 64) - 1

RULES_OF = {
    "conv": ("Conv",),
    "product": ("Gemm", "MatMul", "Einsum"),
    "attention": ("Attention",),
    "recurrent": ("Recurrent",),
    "add": ("Sum", "QLinearAdd"),
    "mul": ("Product",),
    "elementwise": ("Elementwise", "Cast", "Dropout", "MicrosoftGelu", "QLinearLeakyRelu", "RotaryEmbedding"),
    "norm": (
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization"),
        *("LpNormalization", "MeanVarianceNormalization", "SkipLayerNormalization"),
    ),
    "softmax": ("Softmax",),
    "pool": ("Pool",),
    "reduce": ("Arg", "CumSum", "Reduce"),
    "concat": ("Concat",),
    "select": (
        *("Compress", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Slice", "Split"),
        *("TopK", "Trilu"),
    ),
    "reshape": (
        *("Col2Im", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Reshape", "Reverse"),
        *("SpaceToDepth", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    ),
    "resize": ("Pad", "Resize", "Sample"),
    "quantize": ("DynamicQuantizeLinear", "Quantize"),
}
"""Families of operators, and the rules that speak for them; those derived from a rule are of its family."""

FAMILIES = (*RULES_OF, "grouped", "depthwise", "other")
"""All families: convolutions in parts are told apart, and an operator without a rule is ``other``."""

_FAMILY_OF = {rule: family for family, rules in RULES_OF.items() for rule in rules}


@dataclass(frozen=True)
class Operation:
    """A node that computes with data; what is computed from sizes or from stored numbers alone is none.

    Attributes:
        node: its index in the graph.
        family: one of `FAMILIES`.
        reads: names of the activations that it reads, each once.
        makes: names of its outputs.
        window: sizes of the part of its input that one number of its output looks at; empty where it has none.
        stride: the largest of its strides.
        dilation: the largest of its dilations.
        parts: groups of a convolution.
    """

    node: int
    family: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    window: tuple[int, ...]
    stride: int
    dilation: int
    parts: int

    @property
    def kernel(self) -> int:
        """How many places of its input one number of its output looks at."""
        return max(1, numbers(self.window))


@dataclass(frozen=True)
class Blocks:
    """The operations of a network, and the blocks they are in.

    Attributes:
        operations: in an order in which they can run, branch after branch.
        depth: (operations,) how many operations run before it at least, one after the other.
        block: (operations,) the block it is in; never falls.
    """

    operations: tuple[Operation, ...]
    depth: Ints
    block: Ints

    @property
    def count(self) -> int:
        """Number of blocks."""
        return int(self.block[-1]) + 1 if len(self.block) else 0


def find_blocks(channels: Channels, costly: Collection[int]) -> Blocks:
    """Find the operations of a network, and cut it into blocks.

    Args:
        channels: of the model.
        costly: nodes that multiply and accumulate.
    """
    found = _operations(channels)
    wiring = _Wiring(found)
    order = wiring.order()
    operations = [found[place] for place in order]
    multiplies = np.asarray([operation.node in costly for operation in operations], bool)
    block = _merged(_segments(_alive(operations), multiplies), multiplies)
    return Blocks(tuple(operations), np.asarray(wiring.depth, np.int64)[order], block)


def family_of(node: gs.Node) -> str:
    """Name the family of a node's operator; one that no rule knows is ``other``."""
    rule = rule_for(node)
    names = [kind.__name__ for kind in type(rule).__mro__]
    return next((_FAMILY_OF[name] for name in names if name in _FAMILY_OF), "other")


def _operations(channels: Channels) -> list[Operation]:
    """List the nodes that compute with data, in the order of the file."""
    model = channels.model
    inside: dict[int, list[str]] = defaultdict(list)
    for index, name in captured(model):
        inside[index].append(name)
    active = set(model.bound)
    found = []
    for index, node in enumerate(model.graph.nodes):
        if index in model.size_nodes:
            continue
        names = dict.fromkeys([*(t.name for t in node.inputs), *inside[index]])
        reads = tuple(name for name in names if name in active)
        makes = tuple(t.name for t in node.outputs if t.name)
        if reads and makes:
            active.update(makes)
            found.append(_operation(node, index, reads, makes, model.shapes))
    return found


def _operation(
    node: gs.Node, index: int, reads: tuple[str, ...], makes: tuple[str, ...], shapes: dict[str, Shape]
) -> Operation:
    rule, family = rule_for(node), family_of(node)
    window = _sizes(node, "kernel_shape")
    parts = 1
    if isinstance(rule, Conv):
        weight = shapes.get(node.inputs[rule.weight].name, ()) if rule.weight < len(node.inputs) else ()
        window = list(weight[2:]) or window
        parts = max([1, *_sizes(node, "group")])
        if parts > 1:
            family = "depthwise" if len(weight) > 1 and 1 in weight[:2] else "grouped"
    stride, dilation = (max([1, *_sizes(node, name)]) for name in ("strides", "dilations"))
    return Operation(index, family, reads, makes, tuple(window), stride, dilation, parts)


def _sizes(node: gs.Node, name: str) -> list[int]:
    """Read sizes from an attribute; files hold attributes that make no sense."""
    try:
        return [int(size) for size in np.atleast_1d(node.attrs.get(name, ()))]
    except (TypeError, ValueError, OverflowError):
        return []


class _Wiring:
    """Which operations follow which.

    Args:
        operations: in an order in which they can run.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        maker = {name: place for place, operation in enumerate(operations) for name in operation.makes}
        self.before = [sorted({maker[n] for n in operation.reads if n in maker}) for operation in operations]
        self.after: list[list[int]] = [[] for _ in operations]
        self.depth: list[int] = []
        for place, sources in enumerate(self.before):
            self.depth.append(max((self.depth[source] + 1 for source in sources), default=0))
            for source in sources:
                self.after[source].append(place)
        self.height = [0] * len(operations)
        self.code = [0] * len(operations)
        for place in reversed(range(len(operations))):
            below = self.after[place]
            self.height[place] = max((self.height[reader] + 1 for reader in below), default=0)
            self.code[place] = _code(operations[place], [self.code[reader] for reader in below])

    def order(self) -> list[int]:
        """Order operations branch after branch, short ones first; it starts where most is still to come.

        Where two are alike, what follows them decides, so that the order in the file does not.
        """
        waiting = [len(sources) for sources in self.before]
        ready = [place for place, count in enumerate(waiting) if not count]
        stack = sorted(ready, key=lambda place: (self.height[place], self.code[place], -place))
        order = []
        while stack:
            place = stack.pop()
            order.append(place)
            ready = []
            for reader in self.after[place]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
            stack += sorted(ready, key=lambda reader: (-self.height[reader], self.code[reader], -reader))
        return order


def _code(operation: Operation, after: Sequence[int]) -> int:
    """Sum up an operation and all that follows it in one number."""
    shape = (operation.family, operation.kernel, operation.stride, operation.dilation, operation.parts)
    own = zlib.crc32(repr(shape).encode())
    mixed = (own + sum(after) * 0x9E3779B97F4A7C15 + len(after)) & WORD
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    return mixed ^ (mixed >> 27)


def _alive(operations: Sequence[Operation]) -> Ints:
    """Count the activations that are known after each operation and still needed, (operations,)."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for place, operation in enumerate(operations):
        for name in operation.reads:
            first.setdefault(name, place)  # an input of the model comes to life where it is first read
            last[name] = place
        first.update(dict.fromkeys(operation.makes, place))
    change = np.zeros(len(operations) + 1, np.int64)
    np.add.at(change, np.asarray([first[name] for name in last], np.int64), 1)
    np.add.at(change, np.asarray(list(last.values()), np.int64), -1)
    return np.cumsum(change)[:-1]


def _segments(alive: Ints, multiplies: Mask) -> Ints:
    """Cut a sequence of operations where one tensor is alive, and large pieces where few are; (operations,)."""
    starts = np.zeros(len(alive), bool)
    for level in range(1, FEW_ALIVE + 1):
        piece = np.cumsum(starts)
        is_large = np.bincount(piece, multiplies)[piece[1:]] > (LARGE if level > 1 else -1)
        starts[1:] |= (alive[:-1] <= level) & is_large
    return np.cumsum(starts, dtype=np.int64)


def _merged(segment: Ints, multiplies: Mask) -> Ints:
    """Put segments that multiply nothing to the one before; the first ones, to the first that multiplies."""
    costly = np.bincount(segment, multiplies) > 0
    begins = costly & (np.cumsum(costly) > 1)
    return np.cumsum(begins, dtype=np.int64)[segment]
