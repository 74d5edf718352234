"""Channel shuffles: a Reshape, a Transpose and a Reshape that together only permute the indices of an axis.

Node by node they would tie the same slot of every group together, and components would grow through the whole network.
As a permutation they tie nothing to anything but itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model import Model
from onnxprune.ops.factors import shared_factors
from onnxprune.ops.rule import Atoms, Mask, Rule, Ties
from onnxprune.shapes import Shape, is_default_domain

CHAIN = ("Reshape", "Transpose", "Reshape")


@dataclass(frozen=True)
class Shuffle(Rule):
    """Three nodes that permute one axis; the last of them speaks for all.

    Attributes:
        nodes: indices of the Reshape, the Transpose and the Reshape.
        axis: the axis that is permuted.
        order: index of the input that each index of the output comes from.
        split: shape after the first Reshape.
        pieces: axes of that shape which the axis is split into.
        perm: how the Transpose orders that shape.
    """

    nodes: tuple[int, int, int]
    axis: int
    order: Atoms
    split: Shape
    pieces: tuple[int, ...]
    perm: tuple[int, ...]

    def ties(self, node: Ties) -> None:
        """Tie every axis to itself, one of them in another order."""
        for axis in range(len(node.x)):
            atoms = node.x[axis]
            node.tie(atoms[self.order] if axis == self.axis else atoms, node.y[axis])

    def order_of(self, kept: Mask) -> Atoms:
        """Give the permutation of the indices that stay."""
        place = np.cumsum(kept) - 1
        picked: Atoms = place[self.order[kept[self.order]]]
        return picked

    def split_for(self, order: Atoms) -> Shape | None:
        """Find the shape to split into that gives a permutation (None: no shape does)."""
        if len(self.pieces) != 2:
            return None
        places = [self.perm.index(piece) for piece in self.pieces]
        for piece, other in (self.pieces, self.pieces[::-1]):
            if len(order) % self.split[piece]:
                continue
            shape = list(self.split)
            shape[other] = len(order) // self.split[piece]
            sizes = [shape[p] for p in self.pieces]
            swapped = np.arange(len(order)).reshape(sizes)
            swapped = swapped.T if places[0] > places[1] else swapped
            if np.array_equal(order, swapped.reshape(-1)):
                return tuple(shape)
        return None

    def moved(self, split: Shape) -> Shape:
        """Give the shape after the Transpose."""
        return tuple(split[axis] for axis in self.perm)


def find_shuffles(model: Model, elsewhere: Collection[str]) -> dict[int, Shuffle]:
    """Find the shuffles of a model, by their last node.

    Args:
        model: the model.
        elsewhere: tensors that are read outside the nodes of the graph.
    """
    places = {id(node): index for index, node in enumerate(model.graph.nodes)}
    found = {}
    for node in model.graph.nodes:
        chain = _chain(node, elsewhere) if node.op == CHAIN[0] else None
        shuffle = _shuffle(model, chain, [places[id(n)] for n in chain]) if chain else None
        if shuffle is not None:
            found[shuffle.nodes[-1]] = shuffle
    return found


def _chain(node: gs.Node, elsewhere: Collection[str]) -> list[gs.Node] | None:
    """Follow the only reader of each node's output (None: it is another op, or not the only one)."""
    chain = [node]
    for op in CHAIN[1:]:
        tensor = chain[-1].outputs[0]
        readers = tensor.outputs
        if len(readers) != 1 or tensor.name in elsewhere or readers[0].op != op or readers[0].inputs[0] is not tensor:
            return None
        chain.append(readers[0])
    return chain if all(is_default_domain(n.domain) for n in chain) else None


def _shuffle(model: Model, chain: Sequence[gs.Node], nodes: Sequence[int]) -> Shuffle | None:
    """Work out what a chain does to each axis; None unless it permutes one and leaves the others alone."""
    shapes = [model.shapes.get(t.name) for t in (chain[0].inputs[0], *(n.outputs[0] for n in chain))]
    if any(shape is None or 0 in shape for shape in shapes) or shapes[0] != shapes[3] or None in shapes:
        return None
    before, split, moved, after = (shape for shape in shapes if shape is not None)
    if any(model.value(node.inputs[1].name) is None for node in (chain[0], chain[2])):
        return None
    perm = chain[1].attrs.get("perm", list(range(len(split)))[::-1])
    parts, merged = _owners(before, split), _owners(after, moved)
    if parts is None or merged is None:
        return None
    permuted = []
    for axis in range(len(before)):
        own = [piece for piece, owner in enumerate(parts) if axis in owner]
        pieces = [perm[place] for place, owner in enumerate(merged) if axis in owner]
        if sorted(pieces) != own:
            return None
        if pieces != own:
            permuted.append((axis, own, [own.index(piece) for piece in pieces]))
    if len(permuted) != 1:
        return None
    axis, own, places = permuted[0]
    order = np.arange(before[axis]).reshape([split[piece] for piece in own]).transpose(places).reshape(-1)
    return Shuffle((nodes[0], nodes[1], nodes[2]), axis, order, split, tuple(own), tuple(perm))


def _owners(whole: Shape, parts: Shape) -> list[list[int]] | None:
    """Say for each part (an axis of a split shape) which whole axes it belongs to; one of size 1 belongs to none.

    Returns:
        None where a part reaches across several wholes and does not hold all of them.
    """
    wholes = [axis for axis, size in enumerate(whole) if size != 1]
    pieces = [axis for axis, size in enumerate(parts) if size != 1]
    factors = shared_factors([whole[axis] for axis in wholes], [parts[axis] for axis in pieces])
    if factors is None or any(not factor.right.alone and not factor.left.alone for factor in factors):
        return None
    owners: list[list[int]] = [[] for _ in parts]
    for factor in factors:
        owners[pieces[factor.right.axis]].append(wholes[factor.left.axis])
    return owners
