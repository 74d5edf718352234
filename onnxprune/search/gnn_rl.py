"""GNN-RL: a policy that sees the network's graph chooses the widths, and learns from what the cut networks answer.

After Yu, Mazaheri and Jannesari (arXiv 2102.03214). As there, a multi-stage graph network embeds the network as shrunk
so far, an agent acts several times, and the last plan's answers are the reward that it learns from by PPO. Unlike
there, every group of channels has an action of its own from one network that serves all models, the actions correct a
ranking of all channels instead of being ratios, and every plan meets the targets exactly (decision 0010).
"""

from __future__ import annotations

import numpy as np

from onnxprune.plan import Plan
from onnxprune.problem import Counts, Problem
from onnxprune.search import Progress, SearchSettings, greedy

LENGTH = 2  # actions of an episode
WARM = 0.5  # of the budget that the plan to start from may take


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Let an agent correct a plan and learn from what comes of it, as long as the budget lasts.

    An agent that knows nothing starts from the greedy plan, which takes part of the budget. A trained policy starts
    from the ranking as it is; where the budget is a single plan, that is the policy's own, and nothing is judged.
    """
    from onnxprune.search.policy.environment import Episodes  # PyTorch takes seconds to load
    from onnxprune.search.policy.learning import Learner, Learning, fresh, seeded
    from onnxprune.search.policy.paper import search_as_paper
    from onnxprune.search.policy.storing import load

    if settings.preset == "paper":
        return search_as_paper(problem, settings, progress)
    how = Learning()
    with seeded(settings.seed) as generator:
        if settings.policy is None:
            start, used = warm_start(problem, settings, progress)
            episodes = Episodes(problem, start, LENGTH)
            learner = Learner(fresh(), episodes, how, generator)
        else:
            agent, _ = load(settings.policy)
            episodes = Episodes(problem, greedy.descend(problem, np.ones(len(problem.widths))), LENGTH)
            learner = Learner(agent, episodes, how, generator)
            plan = episodes.plan_of(learner.play(1, is_drawn=False)[1][0].counts)
            used = min(2, settings.budget)
            progress(used, settings.budget)
            if used < 2:
                return plan
            episodes.rewards([plan])
        while used < settings.budget and not settings.stop():
            steps, ends = learner.play(min(how.together, settings.budget - used))
            rewards = episodes.rewards([episodes.plan_of(state.counts) for state in ends])
            used += len(ends)
            progress(used, settings.budget)
            learner.learn(steps, ends, rewards)
    return problem.best(1)[0]


def warm_start(problem: Problem, settings: SearchSettings, progress: Progress) -> tuple[Counts, int]:
    """Find the plan to start from with part of the budget; returns it, and how many plans were judged for it."""
    used = 0

    def told(done: int, total: int) -> None:
        nonlocal used
        used = done
        progress(done, settings.budget)

    allowed = max(greedy.WAYS, int(WARM * settings.budget))
    asked = SearchSettings(min(allowed, settings.budget), settings.seed, settings.stop)
    plan = greedy.search(problem, asked, told)
    if not problem.visited:  # without data nothing had to be judged so far
        problem.score(plan)
        used = 1
    return plan.counts, used
