"""What repeated measurements say, and how surely: medians, and intervals that hold whatever the noise looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median, and where it lies with a confidence of `CONFIDENCE`.

    Attributes:
        median: of what was measured.
        low: the least that it may be.
        high: the most that it may be.
    """

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Half of the interval, as a part of the median."""
        return (self.high - self.low) / 2 / self.median if self.median > 0 else float("inf")


def median(values: npt.ArrayLike) -> Interval:
    """Find a median and its interval, by counting: half of all values lie above it, whatever they look like.

    Values between which the median lies with the confidence asked for are found from the binomial distribution
    (Conover, "Practical Nonparametric Statistics", 1999). Below six values there are none, and the interval is endless.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    middle = float(np.median(ordered))
    below = int(binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    if below < 1:
        return Interval(middle, 0.0, float("inf"))
    return Interval(middle, float(ordered[below - 1]), float(ordered[len(ordered) - below]))


def ratio(above: npt.ArrayLike, below: npt.ArrayLike) -> Interval:
    """Find by how much one series exceeds another one that was measured in turns with it, round by round."""
    return median(np.asarray(above, np.float64) / np.asarray(below, np.float64))


def is_real(found: Interval) -> bool:
    """Tell whether a ratio shows a difference: 1 lies outside of its interval."""
    return found.low > 1 or found.high < 1
