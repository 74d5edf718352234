"""What is drawn of a network: its blocks, its groups, and which meet which."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.blocks import Operation
from onnxprune.stages import Stages

LONGEST = 46  # characters of a name that are shown
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Box:
    """A block as it is drawn.

    Attributes:
        operations: what it consists of.
        motif: which of the unlike blocks it is.
        share: of the original's multiply-accumulates.
    """

    operations: list[Operation]
    motif: int
    share: float


@dataclass(frozen=True)
class Row:
    """A group as it is drawn.

    Attributes:
        name: of the group.
        width: its channels, those that are left where some are not.
        share: of the original's multiply-accumulates, what goes with all of them.
        boxes: the blocks it runs through.
    """

    name: str
    width: str
    share: float
    boxes: list[int]


class Picture:
    """What is drawn of a network.

    Args:
        stages: its graph.
        title: its name.
        counts: (groups,) channels kept; all of them if left out.

    Attributes:
        boxes: the blocks, in the order in which they run.
        rows: the groups, in the order in which they are met.
        flows: pairs of blocks of which the second reads what the first makes.
    """

    def __init__(self, stages: Stages, title: str, counts: npt.ArrayLike | None = None) -> None:
        self.title = title
        self._nodes = stages.channels.model.graph.nodes
        widths = np.asarray([group.width for group in stages.channels.groups], np.int64)
        kept = widths if counts is None else np.asarray(counts, np.int64)
        extent, whole = stages.extents.of(kept), max(stages.extents.macs, 1)
        block = stages.blocks.block
        macs = np.bincount(block, extent.macs, stages.blocks.count) / whole
        self.boxes = [Box([], int(m), float(s)) for m, s in zip(stages.motifs(kept), macs, strict=True)]
        maker: dict[str, int] = {}
        flows = dict[tuple[int, int], None]()
        for operation, at in zip(stages.blocks.operations, block.tolist(), strict=True):
            self.boxes[at].operations.append(operation)
            maker.update(dict.fromkeys(operation.makes, at))
            flows.update({(maker[name], at): None for name in operation.reads if maker.get(name, at) != at})
        self.flows = list(flows)
        sizes = zip(stages.extents.tensors, extent.widths, stages.extents.places, strict=True)
        self._sizes = {name: f"{width:.0f} {TIMES} {places:.0f}" for name, width, places in sizes}
        boxes: list[set[int]] = [set() for _ in widths]
        for group, place in stages.groups.touched.T.tolist():
            boxes[group].add(int(block[place]))
        rows = [
            Row(g.name, str(g.width) if n == g.width else f"{n} of {g.width}", float(m) / whole, sorted(b))
            for g, n, m, b in zip(stages.channels.groups, kept, extent.group_macs, boxes, strict=True)
        ]
        self.rows = sorted(rows, key=lambda row: sum(row.boxes) / max(len(row.boxes), 1))

    def label(self, operation: Operation) -> str:
        """Name an operation: ``Conv 3x3 /2``."""
        window = TIMES.join(map(str, operation.window)) if operation.kernel > 1 else ""
        stride = f"/{operation.stride}" if operation.stride > 1 else ""
        parts = f"in {operation.parts}" if operation.parts > 1 else ""
        return " ".join(part for part in (self._nodes[operation.node].op, window, stride, parts) if part)

    def text(self, box: Box) -> str:
        """Sum up a block: ``2 Conv 3x3, 2 Relu, Add``."""
        counted = Counter(map(self.label, box.operations))
        return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counted.items())

    def size(self, tensor: str) -> str:
        """Give the size of an activation: channels times positions."""
        return self._sizes[tensor]


def clean(text: str) -> str:
    """Replace what cannot be printed; a file may hold any text."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def end_of(text: str) -> str:
    """Show the end of a long name: files call things by where they are, the outermost first."""
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def start_of(text: str) -> str:
    """Show the beginning of what a block consists of."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
