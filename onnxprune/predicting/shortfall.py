"""Why a cut brings less speed than its FLOPs suggest: where the time is that should have gone with them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxprune.channels import Channels
from onnxprune.metrics import Costs
from onnxprune.predicting.device import Device
from onnxprune.predicting.features import BLOCKS, Features
from onnxprune.predicting.samples import by_maker, makers, turns
from onnxprune.weights import Floats, Ints

WORTH_TELLING = 0.1  # of the time that is missing
MOST_TOLD = 3
SECONDS = 0.15  # that kernels are timed for, if they have had the fewest turns
BLOCK = 8  # channels that kernels work on at least


@dataclass(frozen=True)
class Shortfall:
    """What keeps a cut network from being as fast as its FLOPs suggest.

    Attributes:
        missing_ms: that should have gone, and did not.
        reasons: words, and the milliseconds that they are about, most first; what is negative makes up for others.
    """

    missing_ms: float
    reasons: dict[str, float]

    def __str__(self) -> str:
        told = [
            f"{ms / self.missing_ms:.0%} {words}"
            for words, ms in self.reasons.items()
            if ms > WORTH_TELLING * self.missing_ms
        ]
        return f"of {self.missing_ms:.3g} ms that should have gone with the FLOPs, {', '.join(told[:MOST_TOLD])}"


def shortfall(channels: Channels, costs: Costs, counts: Ints, before: Floats, after: Floats) -> Shortfall | None:
    """Say where the time is that should have gone.

    Args:
        channels: of the model.
        costs: of the same channels.
        counts: (groups,) channels that were kept.
        before: (nodes + 1,) milliseconds of each node of the original, the last what moves data between layouts.
        after: the same of the cut network.

    Returns:
        None where nothing is missing.
    """
    features = Features(channels, costs)
    is_work = features.is_work()
    place = features.place[is_work]
    terms = features.terms(np.stack([[group.width for group in channels.groups], counts]))[:, is_work]

    def by_node(row: int, way: int) -> Floats:
        return np.bincount(place, terms[row, :, way], len(before)).astype(np.float64)

    def stays(way: int) -> Floats:
        """Give the part of each node's FLOPs that stays, as counted in one way."""
        return np.divide(by_node(1, way), by_node(0, way), out=np.zeros(len(before)), where=works)

    works = by_node(0, 0) > 0
    share = terms[1, :, 0].sum() / max(terms[0, :, 0].sum(), 1e-30)
    missing = float(after.sum() - share * before.sum())
    if missing <= 0:
        return None
    irregular, expected = by_node(1, -1) > 0, before * stays(0)
    late, others = np.where(works, after - expected, 0.0), np.where(works, 0.0, after - share * before)
    filled = np.clip(before * stays(BLOCKS.index(BLOCK)) - expected, 0, np.maximum(late, 0)) * ~irregular
    reasons = {
        "is in nodes without FLOPs": float(others[:-1].sum()),
        "moves data between layouts of kernels": float(others[-1]),
        "is in layers whose widths are no multiple of 4": float(late[irregular].sum()),
        f"is in layers whose widths fill no whole blocks of {BLOCK}": float(filled.sum()),
        "is in layers that are too small to be fast": float((late - filled)[~irregular].sum()),
        "is where more FLOPs stayed than elsewhere": float((expected - share * before)[works].sum()),
    }
    return Shortfall(missing, dict(sorted(reasons.items(), key=lambda entry: -entry[1])))


def kernel_times(channels: Channels, smaller: ModelProto, device: Device) -> tuple[Floats, Floats]:
    """Time the kernels of a model and of what was cut from it, in turns: (nodes + 1,) milliseconds each.

    Raises:
        InputError: onnxruntime cannot run them.
    """
    model = channels.model
    feed, known, nodes = device.inputs(model), makers(model), len(model.graph.nodes)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        protos = (model.proto, smaller)
        sessions = [device.session(proto, model.folder, Path(scratch) / str(at)) for at, proto in enumerate(protos)]
        turns(sessions, feed, SECONDS)
        before, after = (
            by_maker(session.end_profile(), proto, known, nodes)
            for session, proto in zip(sessions, protos, strict=True)
        )
    return before, after
