"""GNN-RL: a policy that sees the network's graph chooses the widths, and learns from what the cut networks answer.

After Yu, Mazaheri and Jannesari (arXiv 2102.03214). As there, a multi-stage graph network embeds the network as shrunk
so far, an agent acts several times, and the last plan's answers are the reward that it learns from by PPO. Unlike
there, every group of channels has an action of its own from one network that serves all models, the actions correct a
ranking of all channels instead of being ratios, and every plan meets the targets exactly (decision 0010).
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.plan import Plan
from onnxprune.problem import Problem
from onnxprune.search import Budget, Progress, SearchSettings, greedy
from onnxprune.weights import Floats

LEARNS = True  # from plans that were judged before
LENGTH = 2  # actions of an episode
PROBED = 0.125  # of the budget: groups that are cut alone at first
FEWEST_PROBED = 4  # what fewer of them do says nothing: they are compared with each other


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Let an agent correct the ranking of all channels and learn from what comes of it, as long as the budget lasts.

    A trained policy is followed where its own plan is better than the ranking as it is and the ranking in which all
    kinds of groups count alike; where the budget is a single plan, that is the policy's own, and nothing is judged.
    """
    if settings.preset == "paper":
        from onnxprune.search.policy.paper import search_as_paper  # PyTorch takes seconds to load

        return search_as_paper(problem, settings, progress)
    if problem.meets(problem.most)[0]:
        plan = problem.plan(problem.most)
        problem.score(plan)
        progress(1, settings.budget)
        return plan
    from onnxprune.search.policy.environment import Episodes
    from onnxprune.search.policy.learning import Learner, Learning, fresh, seeded
    from onnxprune.search.policy.storing import load

    how = Learning()
    with seeded(settings.seed) as generator:
        agent = fresh() if settings.policy is None else load(settings.policy)[0]
        episodes = Episodes(problem, greedy.descend(problem), LENGTH)
        probes, number = 0, int(PROBED * settings.budget)
        if problem.judging is not None and number >= FEWEST_PROBED:
            episodes.probed, probes = probe(
                problem, episodes.alike, number, lambda done, _: progress(done, settings.budget), settings.stop
            )
        learner = Learner(agent, episodes, how, generator)
        own = learner.play_likely()
        if settings.policy is not None and settings.budget == 1:
            progress(1, 1)
            return problem.plan(own.counts)
        budget = Budget(problem, settings, progress, probes)
        followed = [] if settings.policy is None else [problem.plan(own.counts)]
        begun = [problem.plan(episodes.space.start), *followed, episodes.space.plan(episodes.kinds)][: budget.left]
        gains = episodes.rewards(begun)
        if settings.policy is not None and gains[1] > 0 and gains[1] == gains.max():
            learner.believe(own.corrections)
        elif settings.policy is not None:
            learner = Learner(fresh(), episodes, how, generator)
        learner.recall(begun)
        learner.remember()
        budget.count()
        while budget.goes_on():
            learner.practise(min(how.together, budget.left))
            budget.count()
    return problem.best(1)[0]


def probe(
    problem: Problem, alike: Floats, number: int, progress: Progress, stop: Callable[[], bool]
) -> tuple[Floats, int]:
    """Cut a few groups alone, such as tell most of all others, and find the corrections that speak from what that does.

    Args:
        problem: what to solve.
        alike: (groups, groups) how much they have in common, see `prior.likeness`.
        number: of groups.
        progress: told how many are done.
        stop: tells whether those that are left must do without.

    Returns:
        (groups,) corrections; how many groups were cut.
    """
    from onnxprune.search.policy.prior import spread_out, told

    candidates = greedy.probes(problem)
    chosen = spread_out(alike, list(candidates), number)
    measured = greedy.sensitivities(problem, {group: candidates[group] for group in chosen}, progress, stop)
    return told(alike, chosen, measured[chosen]), len(chosen)
