"""Where axes split and merge, choose which of their common factors carries the channels.

An axis of 12 heads of 64 numbers can lose whole heads or, in every head, the same numbers, but not both. A factor
whose axis is held somewhere in the network cannot carry; of those that can, the outermost does (whole heads), or the
innermost where the inside of groups is to be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from onnxprune.components import Components
from onnxprune.ops.factors import Factor, index_of, shared_factors
from onnxprune.ops.rule import Atoms, Regroup
from onnxprune.tying import Reason, Tying

Choice = tuple[Regroup, list[Factor]]
WHY = "it mixes this axis with others"
WHY_MERGED = "it is merged with the channels"


def choose_carriers(tying: Tying, slots: bool) -> None:
    """Choose the carriers of all axes that split and merge, and tie them.

    Those that leave no choice come first, because they may hold what others could choose; then, of those that choose
    among the same channels, the first with the fewest factors to choose from.

    Args:
        tying: what all nodes said; ties are added.
        slots: prefer the inside of groups.
    """
    pending = tying.regroups
    while pending:
        components = Components.of(tying)
        found = [(regroup, _free_factors(regroup, components)) for regroup in pending]
        certain = [(regroup, factors) for regroup, factors in found if len(_apart(factors)) == len(factors)]
        chosen = certain or _first_of_each(found, components)
        for regroup, factors in chosen:
            _tie(tying, regroup, _apart(factors[::-1] if slots else factors))
        done = {id(regroup) for regroup, _ in chosen}
        pending = [regroup for regroup in pending if id(regroup) not in done]


def _free_factors(regroup: Regroup, components: Components) -> list[Factor]:
    """List the factors of which neither axis is held, outermost first."""
    factors = shared_factors([len(part) for part in regroup.left], [len(part) for part in regroup.right])
    held = [[components.are_held(part) for part in side] for side in (regroup.left, regroup.right)]
    free = [f for f in factors or [] if not held[0][f.left.axis] and not held[1][f.right.axis]]
    return _unspent(regroup, free, components)


def _unspent(regroup: Regroup, factors: list[Factor], components: Components) -> list[Factor]:
    """Leave out factors whose indices are tied together already, where others of the axis are not: these carry it."""
    for side, place_of in ((regroup.left, attrgetter("left")), (regroup.right, attrgetter("right"))):
        spent = {f for f in factors if _is_spent(side[place_of(f).axis], f.size, place_of(f).inner, components)}
        carried = {place_of(f).axis for f in factors if f not in spent}
        factors = [f for f in factors if f not in spent or place_of(f).axis not in carried]
    return factors


def _is_spent(axis: Atoms, size: int, inner: int, components: Components) -> bool:
    """Tell whether the indices of a factor are tied together all along an axis."""
    labels = components.label[axis].reshape(-1, size, inner)
    return bool((labels == labels[:, :1]).all())


def _first_of_each(found: Sequence[Choice], components: Components) -> list[Choice]:
    """Of those that choose among the same channels, take the first with the least choice; it may decide for others."""
    found = sorted(found, key=lambda choice: len(choice[1]))
    touched = []
    for regroup, factors in found:
        sides = (regroup.left, {f.left.axis for f in factors}), (regroup.right, {f.right.axis for f in factors})
        open_axes = [side[axis] for side, axes in sides if len(axes) > 1 for axis in axes]
        touched.append(np.concatenate(open_axes))
    return [found[i] for i in np.unique(components.clusters(touched), return_index=True)[1]]


def _apart(factors: Sequence[Factor]) -> list[Factor]:
    """Take the first factor of each axis."""
    chosen: list[Factor] = []
    for factor in factors:
        if all(factor.left.axis != f.left.axis and factor.right.axis != f.right.axis for f in chosen):
            chosen.append(factor)
    return chosen


def _tie(tying: Tying, regroup: Regroup, carriers: Sequence[Factor]) -> None:
    """Tie the indices of each carrier on both sides; axes without one stay."""
    for factor in carriers:
        left, right = regroup.left[factor.left.axis], regroup.right[factor.right.axis]
        tying.left += [left, left[index_of(factor.right, factor, right) * factor.left.inner]]
        tying.right += [right[index_of(factor.left, factor, left) * factor.right.inner], right]
    _freeze_others(tying, regroup.node, regroup.left, {f.left.axis for f in carriers})
    _freeze_others(tying, regroup.node, regroup.right, {f.right.axis for f in carriers})


def _freeze_others(tying: Tying, node: int, side: Sequence[Atoms], carried: set[int]) -> None:
    for axis, atoms in enumerate(side):
        if axis not in carried:
            tying.freeze(atoms, Reason(node, WHY_MERGED if carried else WHY))
