"""Targets that are predicted during a search and measured in the end: limits move until what is measured is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.attempt import Attempt
from onnxprune.metrics import LATENCY, MEMORY
from onnxprune.targets import Target

NEAR = 0.05  # part of what was asked for; what is measured as close to it as that is right
MOST = 2.0  # times that a limit moves at once


class Limits:
    """Targets, and what of them is measured in the end.

    Args:
        targets: as they were asked for.
        original: costs of the original.

    Attributes:
        targets: with their limits as they are now.
        asked: share of the original's that was asked for, of each metric that is measured in the end.
    """

    def __init__(self, targets: Sequence[Target], original: Mapping[str, float]) -> None:
        self.targets = list(targets)
        self.asked = {t.metric: t.limit / original[t.metric] for t in targets if t.metric in (LATENCY, MEMORY)}
        self._known: dict[str, list[tuple[float, float]]] = {metric: [] for metric in self.asked}

    def wrong(self, attempt: Attempt) -> list[str]:
        """List the metrics whose measured share is not what was asked for, and that a limit can be blamed for."""
        found = []
        for metric, share in self.asked.items():
            measured = attempt.measured_share(metric)
            if measured is not None and abs(measured / share - 1) > NEAR:
                found += [metric] if measured > share or attempt.is_limited_by(metric) else []
        return found

    def meets(self, attempt: Attempt) -> bool:
        """Tell whether everything that was measured is as small as was asked for."""
        return not self.misses(attempt)[0]

    def misses(self, attempt: Attempt) -> tuple[bool, float]:
        """Say how far what was measured is off: whether anything is too large, and by what parts in all."""
        shares = {metric: attempt.measured_share(metric) for metric in self.asked}
        off = [found / self.asked[metric] - 1 for metric, found in shares.items() if found is not None]
        return any(part > NEAR for part in off), sum(map(abs, off))

    def move(self, attempt: Attempt) -> None:
        """Move the limits of what is wrong."""
        for metric in self.wrong(attempt):
            found = attempt.measured_share(metric)
            assert found is not None, "only what was measured can be wrong"
            now = next(target.limit for target in self.targets if target.metric == metric)
            self._known[metric].append((now, found))
            by = float(np.clip(next_limit(self._known[metric], self.asked[metric]) / now, 1 / MOST, MOST))
            self.targets = [replace(t, limit=t.limit * by) if t.metric == metric else t for t in self.targets]

    def hold(self, lowest: Mapping[str, float]) -> None:
        """Keep the limits that were moved where a plan can still meet them."""
        self.targets = [
            replace(t, limit=max(t.limit, lowest[t.metric])) if t.metric in self.asked else t for t in self.targets
        ]


def next_limit(known: Sequence[tuple[float, float]], share: float) -> float:
    """Choose a limit from those that were tried and the shares that were measured with them.

    Between one that is too low and one that is too high it is found by interpolation, else by scaling the last.
    """
    known = [(limit, max(found, 1e-6)) for limit, found in known]  # memory that is too little to be seen measures as 0
    below = max((entry for entry in known if entry[1] < share), key=lambda entry: entry[1], default=None)
    above = min((entry for entry in known if entry[1] > share), key=lambda entry: entry[1], default=None)
    if below is None or above is None or below[0] >= above[0]:
        limit, found = known[-1]
        return limit * share / found
    (low, least), (high, most) = below, above
    way = (np.log(share) - np.log(least)) / (np.log(most) - np.log(least))
    return float(np.exp(np.log(low) + way * (np.log(high) - np.log(low))))
