"""Axes in blocks that must stay equally large: grouped convolutions that lose channels inside every group.

Which channels go together is nobody's tie, but a choice: a bundle takes as many from each block of every such axis,
those that matter least first. Once bundled, the channels of a bundle are one channel, and all blocks stay equal
whatever goes. Tying the same slot of every group in advance would not do: shuffles between the layers tie those to
other slots, until all of them are one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

from onnxprune.components import Components
from onnxprune.ops.rule import Balance
from onnxprune.tying import Reason, Tying
from onnxprune.weights import Floats, Ints, slice_norms

WHY = "groups must stay equally large, and some of it is held"
DIGITS = 5  # of the ranks, so that the last bits of sums, which differ between machines, do not decide


def bundle(tying: Tying, components: Components, signature: npt.NDArray[np.uint64]) -> None:
    """Merge the components that go together so that the blocks of every balance stay equally large.

    Args:
        tying: what all nodes said.
        components: of all ties; merged in place.
        signature: per component, the axes it touches.
    """
    _hold_together(tying, components)
    balances = [b for b in tying.balances if not components.are_held(b.blocks.reshape(-1))]
    rank = _ranks(tying, components, balances)
    for cluster in _clusters(balances, components):
        bundles = _bundles(cluster, components.label, signature, rank)
        label = np.arange(components.count)
        for members in bundles:
            label[members] = members[0]
        _give_slots(cluster, components.label, label, bundles)
        components.label = label[components.label]


def _hold_together(tying: Tying, components: Components) -> None:
    """Hold all blocks of an axis, and its slots, where a part of it is held."""
    while True:
        before = components.reason.copy()
        for balance in tying.balances:
            atoms = balance.blocks.reshape(-1)
            if balance.slots is not None:
                atoms = np.concatenate([atoms, balance.slots])
            if components.are_held(atoms):
                labels = np.unique(components.label[atoms])
                free = labels[components.reason[labels] < 0]
                if len(free):
                    components.reason[free] = len(tying.reasons)
                    tying.reasons.append(Reason(balance.node, WHY))
        if np.array_equal(before, components.reason):
            return


def _ranks(tying: Tying, components: Components, balances: Sequence[Balance]) -> Floats:
    """Rank components by the norms of what they have in the weights that are cut inside their groups."""
    rank = np.zeros(components.count)
    for balance in balances:
        if balance.weight is None or not isinstance(balance.weight, str):
            continue
        axes = tying.axes[balance.weight]
        values = tying.model.array(balance.weight)
        blocks = len(balance.blocks)
        rows = values.reshape(blocks, -1, *values.shape[1:])
        slots = np.stack([slice_norms(block, 2)[1] for block in rows])
        for atoms, norms in ((axes[0], slice_norms(values, 2)[0]), (balance.blocks.reshape(-1), slots.reshape(-1))):
            np.add.at(rank, components.label[atoms], norms / max(float(norms.mean()), 1e-30))
    return np.round(rank, DIGITS)


def _clusters(balances: Sequence[Balance], components: Components) -> list[list[Balance]]:
    """Put balances together that share channels."""
    clusters: dict[int, list[Balance]] = {}
    for balance, cluster in zip(balances, components.clusters([b.blocks for b in balances]), strict=True):
        clusters.setdefault(int(cluster), []).append(balance)
    return list(clusters.values())


def _bundles(cluster: Sequence[Balance], label: Ints, signature: npt.NDArray[np.uint64], rank: Floats) -> list[Ints]:
    """Share out the components of a cluster among bundles, each with as many in every block of each balance."""
    members = np.unique(np.concatenate([label[b.blocks].reshape(-1) for b in cluster]))
    rows, owner = _block_rows(cluster, label, members)
    keys = np.vstack([rows, signature[members].view(np.int64)[None]])
    _, cell_of = np.unique(keys, axis=1, return_inverse=True)
    cells = [members[cell_of == cell] for cell in range(int(cell_of.max()) + 1)]
    cells = [cell[np.lexsort((cell, rank[cell]))] for cell in cells]
    per_cell = np.stack([rows[:, np.searchsorted(members, cell[0])] for cell in cells], axis=1)
    taken = np.zeros(len(cells), np.int64)
    sizes = np.asarray([len(cell) for cell in cells])
    bundles = []
    while (taken < sizes).any():
        one = _smallest(per_cell, owner, sizes - taken)
        times = int(((sizes - taken)[one > 0] // one[one > 0]).min())
        for _ in range(times):
            parts = [cell[at : at + n] for cell, at, n in zip(cells, taken, one, strict=True)]
            bundles.append(np.concatenate(parts))
            taken = taken + one
    return bundles


def _block_rows(cluster: Sequence[Balance], label: Ints, members: Ints) -> tuple[Ints, Ints]:
    """Count what each member has in each block; equal balances count once.

    Returns:
        Counts (blocks, members), and which balance each block belongs to.
    """
    rows: list[Ints] = []
    owner: list[int] = []
    seen = set()
    for number, balance in enumerate(cluster):
        counts = np.zeros((len(balance.blocks), len(members)), np.int64)
        for row, block in zip(counts, balance.blocks, strict=True):
            np.add.at(row, np.searchsorted(members, label[block]), 1)
        if counts.tobytes() not in seen:
            seen.add(counts.tobytes())
            rows.append(counts)
            owner += [number] * len(counts)
    return np.concatenate(rows), np.unique(owner, return_inverse=True)[1]


def _smallest(rows: Ints, owner: Ints, left: Ints) -> Ints:
    """Find the smallest number of components of each cell that has as many in every block of a balance.

    Args:
        rows: what one component of each cell has in each block, (blocks, cells).
        owner: the balance of each block.
        left: components left of each cell.
    """
    some = np.flatnonzero(left)  # HiGHS crashes on some problems with variables that have no choice
    cells, balances = len(some), int(owner.max()) + 1
    per_block = np.zeros((len(rows), balances))
    per_block[np.arange(len(rows)), owner] = -1
    cost = np.concatenate([np.ones(cells), np.zeros(balances)])
    most = rows @ left  # in each block
    result = milp(
        cost,
        integrality=np.ones(cells + balances, np.int64),
        bounds=Bounds(0, np.concatenate([left[some], np.full(balances, most.max())])),
        constraints=[
            LinearConstraint(np.hstack([rows[:, some], per_block]), 0, 0),
            LinearConstraint(cost[None], 1, np.inf),
        ],
    )
    if result.x is None:
        return left
    taken = np.zeros_like(left)
    taken[some] = np.round(result.x[:cells])
    return taken


def _give_slots(cluster: Sequence[Balance], label: Ints, merged: Ints, bundles: Sequence[Ints]) -> None:
    """Let each bundle own as many slots of a weight as it has channels in one block."""
    for balance in cluster:
        if balance.slots is None:
            continue
        first = np.sort(label[balance.blocks[0]])
        used = 0
        for members in bundles:
            count = int(np.isin(first, members).sum())
            merged[label[balance.slots[used : used + count]]] = members[0]
            used += count
