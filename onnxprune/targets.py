"""What users ask for: costs that the result must not exceed, as a part of the original or as a number."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnxprune.errors import InputError
from onnxprune.metrics import LATENCY, MEMORY

OPTIONS = {"macs": "--flops", "params": "--params", LATENCY: "--latency", MEMORY: "--memory"}
SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
UNITS = {
    LATENCY: {"us": 1.0, "ms": 1e3, "s": 1e6},
    MEMORY: {"kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
}
"""What absolute values of a metric are given in, where that is not `SCALE`."""
EXAMPLES = {LATENCY: "5ms", MEMORY: "40MB"}
AMOUNTS = {LATENCY: (1e3, "ms"), MEMORY: (1e6, "MB")}
"""How much of a metric counts as one where it is shown, and of what; all else is shown as it is counted."""


@dataclass(frozen=True)
class Target:
    """A cost that the result must not exceed.

    Attributes:
        metric: name of a cost, see `Costs`.
        limit: the most it may be, in the metric's own unit.
        text: what the user asked for.
    """

    metric: str
    limit: float
    text: str


def parse_target(metric: str, text: str, original: float) -> Target:
    """Read a target: a fraction of the original (``0.3``, ``30%``) or an absolute value (``300M``).

    Raises:
        InputError: it is neither.
    """
    option, example = OPTIONS.get(metric, metric), EXAMPLES.get(metric, "300M")
    units = {"%": 0.01, "": 1.0, **UNITS.get(metric, SCALE)}
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*|%)\s*", text.lower())
    if match is None or match[2] not in units:
        raise InputError(f"{option} {text}: give a fraction of the original such as 0.3, or a number such as {example}")
    value, unit = float(match[1]), match[2]
    is_share = unit == "%" or (not unit and (value < 1000 or metric in UNITS))
    limit = value * units[unit]
    if value <= 0:
        raise InputError(f"{option} {text}: nothing can be kept of nothing; give a fraction above 0")
    if is_share and limit > 1:
        raise InputError(f"{option} {text}: a fraction is at most 1, an absolute value needs a unit such as {example}")
    if math.isinf(limit):
        raise InputError(
            f"{option} {text}: this is no number; give a fraction such as 0.3, or a number such as {example}"
        )
    if not original:
        raise InputError(
            f"{option} {text}: the model has none at all; `onnxprune inspect` shows its costs, "
            "and the input shape they are counted at"
        )
    return Target(metric, limit * original if is_share else limit, text.strip())


def amounts(metric: str, part: float, whole: float) -> str:
    """Show a part of a metric beside the whole."""
    if metric not in AMOUNTS:
        return f"{part:,.0f} of {whole:,.0f}"
    one, unit = AMOUNTS[metric]
    return f"{part / one:.4g} of {whole / one:.4g} {unit}"
