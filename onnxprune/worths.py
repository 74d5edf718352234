"""What channels are worth, group by group, seen against the rest of the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.extents import in_tens
from onnxprune.weights import Floats, Ints

REACH = 3.0  # powers of ten; what is further from the usual is as far
NOTHING = 1e-30  # a worth of this or less


class Worths:
    """What channels are worth; the least worthy of a group go first.

    Args:
        importance: per group the worth of each channel; empty where nothing is known of it.
        widths: (groups,) channels.
    """

    def __init__(self, importance: Sequence[Floats], widths: Ints) -> None:
        given = [_finite(worth) for worth in importance] or [np.zeros(width) for width in widths]
        self._widths = widths
        ordered = [np.sort(worth) for worth in given]
        self._start = np.cumsum(widths + 1) - (widths + 1)
        self._sorted = np.concatenate([*(np.append(worth, 0) for worth in ordered), np.empty(0)])
        self._below = np.concatenate([*(np.append(0, np.cumsum(worth)) for worth in ordered), np.empty(0)])
        self._total = np.asarray([worth.sum() for worth in ordered])
        quantiles = np.asarray([np.quantile(worth, (0.1, 0.5, 0.9)) for worth in ordered]).reshape(-1, 3)
        self._usual = _usual(quantiles[:, 1])
        names = ("low worth", "median worth", "high worth")
        self._fixed = {name: _in_tens_of(q, self._usual) for name, q in zip(names, quantiles.T, strict=True)}
        self._fixed["share of all worth"] = in_tens(self._total, float(self._total.sum()))

    def columns(self, counts: Ints, macs: Floats) -> dict[str, Floats]:
        """Tell what is lost already, and what is lost next.

        Args:
            counts: (groups,) channels kept.
            macs: (groups,) share of the original's multiply-accumulates that go with one channel.
        """
        at = self._start + self._widths - counts
        worth = self._sorted[at]
        price = worth / np.maximum(macs, 1e-9)
        return {
            **self._fixed,
            "lost worth": self._below[at] / np.where(self._total > 0, self._total, 1),
            "next worth": _in_tens_of(worth, self._usual),
            "next worth for its macs": _in_tens_of(price, _usual(price)),
        }


def _finite(worth: Floats) -> Floats:
    """Replace what is no number, or too large, so that all can be added up."""
    return np.clip(np.nan_to_num(np.asarray(worth, np.float64)), 0, 1e30)


def _usual(values: Floats) -> float:
    """Find the median of what is worth something (0: nothing is)."""
    positive = values[values > NOTHING]
    return float(np.median(positive)) if len(positive) else 0.0


def _in_tens_of(values: Floats, usual: float) -> Floats:
    """Count in powers of ten of what is usual, as far as `REACH`."""
    if not usual:
        return np.zeros(len(values))
    found: Floats = np.log10(np.clip(values / usual, 10**-REACH, 10**REACH))
    return found
