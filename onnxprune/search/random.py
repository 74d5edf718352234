"""The best of many random plans: what a search must beat at the same budget."""

from __future__ import annotations

import numpy as np

from onnxprune.plan import Plan
from onnxprune.problem import Problem
from onnxprune.search import TOGETHER, Budget, Progress, SearchSettings

LEAST_SHARE = 0.1  # wishes are drawn from here to 1, then scaled together until the targets are met


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Draw shares per group, fit each draw to the targets and keep the plan with the best score."""
    rng = np.random.default_rng(settings.seed)
    best: tuple[float, Plan] | None = None
    budget = Budget(problem, settings, progress)
    while best is None or budget.goes_on():
        wishes = rng.uniform(LEAST_SHARE, 1, (min(TOGETHER, budget.left), len(problem.widths)))
        plans = [problem.plan(problem.fit(wish)) for wish in wishes]
        for score, plan in zip(problem.scores(plans), plans, strict=True):
            if best is None or score > best[0]:
                best = (score, plan)
        budget.count()
    return best[1]
