"""Evolution of corrections (CMA-ES, of the library `cma`), in the space that the policy moves in, from its start."""

from __future__ import annotations

import warnings

import numpy as np

from onnxprune.plan import Plan
from onnxprune.problem import Problem
from onnxprune.search import TOGETHER, Budget, Progress, SearchSettings
from onnxprune.search.greedy import warm_start
from onnxprune.search.policy.space import Space

LARGEST_SEED = 2**32 - 1  # that the library knows
SPREAD = 0.4  # of the first corrections, logarithms of what the price of a group's channels is multiplied by


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Start from the greedy plan, then let corrections of it evolve as long as the budget lasts."""
    with warnings.catch_warnings(action="ignore"):  # it misses what draws its plots
        import cma  # it takes a while to load

    start, used = warm_start(problem, settings, progress)
    space, size = Space(problem, start), len(start)
    own = np.random.RandomState(settings.seed % LARGEST_SEED + 1)  # else it draws from numpy's one for all
    options = {"randn": own.randn, "seed": np.nan, "popsize": TOGETHER, "verbose": -9}
    # It knows no space of one dimension; a second one that changes nothing does no harm.
    evolved = cma.CMAEvolutionStrategy(np.zeros(max(size, 2)), SPREAD, options)
    budget = Budget(problem, settings, progress, used)
    while budget.goes_on():
        drawn = evolved.ask()
        number = min(len(drawn), budget.left)
        scores = problem.scores([space.plan(np.asarray(x[:size])) for x in drawn[:number]])
        budget.count()
        if number < len(drawn):
            break  # it learns from whole generations only
        evolved.tell(drawn, [-score if np.isfinite(score) else 1e30 for score in scores])
    return problem.best(1)[0]
