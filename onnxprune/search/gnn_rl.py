"""GNN-RL: a policy that sees the network's graph chooses the widths, and learns from what the cut networks answer.

After Yu, Mazaheri and Jannesari (arXiv 2102.03214). As there, a multi-stage graph network embeds the network as shrunk
so far, an agent acts several times, and the last plan's answers are the reward that it learns from by PPO. Unlike
there, every group of channels has an action of its own from one network that serves all models, the actions correct a
ranking of all channels instead of being ratios, and every plan meets the targets exactly (decision 0010).
"""

from __future__ import annotations

from dataclasses import replace

from onnxprune.plan import Plan
from onnxprune.problem import Problem, by_kind
from onnxprune.search import Budget, Progress, SearchSettings, greedy

LENGTH = 2  # actions of an episode


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Let an agent correct a plan and learn from what comes of it, as long as the budget lasts.

    A trained policy starts from the ranking as it is; where the budget is a single plan, that is the policy's own, and
    nothing is judged. An agent that knows nothing starts from the greedy plan, which takes part of the budget, and so
    does the search where the policy's own plan is no better than those that need no policy.
    """
    if settings.preset == "paper":
        from onnxprune.search.policy.paper import search_as_paper  # PyTorch takes seconds to load

        return search_as_paper(problem, settings, progress)
    from onnxprune.search.policy.environment import Episodes
    from onnxprune.search.policy.learning import Learner, Learning, fresh, seeded
    from onnxprune.search.policy.storing import load

    how, used, is_followed = Learning(), 0, False
    with seeded(settings.seed) as generator:
        if settings.policy is not None:
            agent, _ = load(settings.policy)
            learner = Learner(agent, Episodes(problem, greedy.descend(problem), LENGTH), how, generator)
            own = learner.own_plan()
            if settings.budget == 1:
                progress(1, 1)
                return own
            alike = problem.plan(greedy.descend(problem, by_kind(problem)))
            learner.believe()
            gains = learner.recall([own, alike][: settings.budget - 1])
            used, is_followed = 1 + len(gains), bool(gains[0] > 0 and gains[0] >= gains.max())
            progress(used, settings.budget)
        if not is_followed and used < settings.budget:
            start, judged = greedy.warm_start(problem, replace(settings, budget=settings.budget - used), progress)
            learner = Learner(fresh(), Episodes(problem, start, LENGTH), how, generator)
            used += judged
        budget = Budget(problem, settings, progress, used)
        while budget.goes_on():
            learner.practise(min(how.together, budget.left))
            budget.count()
    return problem.best(1)[0]
