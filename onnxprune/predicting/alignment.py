"""What widths should be a multiple of, on the device at hand: learnt from predicted times, not assumed."""

from __future__ import annotations

import numpy as np

from onnxprune.channels import Channels
from onnxprune.errors import TargetError
from onnxprune.metrics import Costs
from onnxprune.predicting.predictor import Predictor
from onnxprune.problem import Align, Problem
from onnxprune.targets import Target

MULTIPLES = (1, 2, 4, 8, 16, 32)
SHARES = (0.8, 0.65, 0.5, 0.4, 0.3)  # of the MACs, at which plans are compared
AS_FAST = 1.04  # times the best time for its MACs; finer widths leave more choice, so the finest that does is taken


def fastest_multiple(channels: Channels, costs: Costs, predictor: Predictor) -> int:
    """Find the smallest multiple with which no other is noticeably faster for the MACs that it keeps."""
    macs = float(costs.counted([group.width for group in channels.groups])["macs"][0])
    prices = {
        multiple: price for multiple in MULTIPLES if (price := _price(channels, costs, predictor, multiple, macs)) > 0
    }
    best = min(prices.values(), default=0.0)
    return next((multiple for multiple, price in prices.items() if price <= AS_FAST * best), 1)


def _price(channels: Channels, costs: Costs, predictor: Predictor, multiple: int, macs: float) -> float:
    """Give the mean time for the MACs that equal widths keep (0: no target can be met with these multiples)."""
    found = []
    for share in SHARES:
        problem = Problem(channels, costs, [Target("macs", share * macs, str(share))], [], Align(multiple))
        try:
            counts = problem.fit(np.ones(len(problem.widths)))
        except TargetError:
            continue
        found.append(float(predictor.ms(counts)[0]) / float(costs.counted(counts)["macs"][0]))
    return float(np.mean(found)) if len(found) == len(SHARES) else 0.0
