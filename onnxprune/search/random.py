"""The best of many random plans: what a search must beat at the same budget."""

from __future__ import annotations

import numpy as np

from onnxprune.plan import Plan
from onnxprune.problem import Problem
from onnxprune.search import Progress, SearchSettings

LEAST_SHARE = 0.1  # wishes are drawn from here to 1, then scaled together until the targets are met


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Draw shares per group, fit each draw to the targets and keep the plan with the best score."""
    rng = np.random.default_rng(settings.seed)
    best: tuple[float, Plan] | None = None
    for done in range(max(1, settings.budget)):
        plan = problem.plan(problem.fit(rng.uniform(LEAST_SHARE, 1, len(problem.widths))))
        score = problem.score(plan)
        if best is None or score > best[0]:
            best = (score, plan)
        progress(done + 1, settings.budget)
    assert best is not None
    return best[1]
