"""GNN-RL as its paper has it, to be compared with ours: what the policy says of a network is one vector of ratios.

After Yu, Mazaheri and Jannesari (arXiv 2102.03214), with the numbers of their released code
(yusx-swapp/GNN-RL-Model-Compression). The agent sees the network as shrunk so far, pooled into one embedding, and
answers with a ratio to prune for each group; what is left of a group is multiplied by one minus that, but never falls
below a tenth of it. As soon as the targets are met, up to five steps later, the network is judged. Nothing else tells
the agent how far to go, so it may go much further. PPO teaches it.

What differs:

1. The graph is ours, of any network (`Stages`), and so is the encoder: three stages of one round of messages each, in
   both directions, pooled by mean and maximum. Theirs has two stages of a GCN, pooled by mean. Embeddings are as wide.
2. Nodes tell what they are. Theirs are described by noise that is drawn anew at each step, and dropout is never turned
   off, so that most of what their agent sees is noise: a defect of the code, not a setting.
3. The agent learns from each state as it was. Their encoder of batches gives the first state's embedding for all.
4. One action for each group of channels that must go together, not for each layer or for layers listed by hand.
5. Targets are what the cut network really costs, any and several of them. Theirs are FLOPs, estimated from ratios.
6. At least as many channels stay as the problem asks for. A tenth is the least share for all networks; the code
   has 0.9 for MobileNets.
7. A plan is judged as all others are: repaired, by its error. Theirs is masked, by top-1 or top-5 accuracy.
8. The agent learns after at least a fifth as many steps as the budget allows plans, but never more than 100, as theirs
   does, and only between episodes. Theirs cuts an episode off where its memory is full.
9. An episode that fails is rewarded with twice the worst error so far; theirs with -100, an error of all answers.
10. No bonus for entropy: as the spread of actions is fixed, it is a constant without a gradient.
11. In the end the best shares are scaled and aligned so that the targets are just met, as those of all searches are.
    In their code the result goes as far beyond the target as the episode did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.plan import Plan
from onnxprune.problem import Counts, Problem
from onnxprune.search.policy.encoder import Encoder, Level, batch
from onnxprune.search.policy.learning import seeded
from onnxprune.stages import Stage, Stages
from onnxprune.weights import Floats

if TYPE_CHECKING:
    from onnxprune.search import Progress, SearchSettings

LENGTH = 5  # steps that an episode may have
LEAST_SHARE = 0.1
SPREAD = 0.5  # of actions, which are not squashed
WIDTH, HIDDEN, ROUNDS = 50, 200, 1

CLIP, DISCOUNT, RATE, TIMES, VALUE = 0.2, 0.99, 3e-4, 10, 0.5
MOST_STEPS = 100  # after which the agent learns
PER_BUDGET = 5  # of the budget's plans, one part of so many counts as steps after which the agent learns
IDLE = 10  # times in a row that it plays, and no episode meets the targets: then it has learnt that none does
TRIES = 20  # episodes for each plan of the budget, those included that fail
LARGEST_LOG = 20.0  # of how much more likely an action became: beyond, numbers overflow


@dataclass(frozen=True)
class Step:
    """An action and what it answered to.

    Attributes:
        graph: of the network as shrunk so far.
        raw: (groups,) ratios to prune.
        log_prob: of all of them, when they were drawn.
    """

    graph: tuple[Stage, ...]
    raw: Tensor
    log_prob: float


@dataclass(frozen=True)
class Episode:
    """A network that was shrunk until it met the targets, or in vain.

    Attributes:
        steps: that were taken.
        shares: (groups,) of the channels that are left.
        is_met: whether the targets are met.
    """

    steps: tuple[Step, ...]
    shares: Floats
    is_met: bool


def search_as_paper(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Play episodes and learn, then bring the best shares to the targets; one plan of the budget is left for that."""
    problem.check_reachable()
    shrinking, ended = Shrinking(problem), Ended(problem)
    with seeded(settings.seed) as generator:
        learner = Learner(shrinking, generator)
        every = min(MOST_STEPS, max(LENGTH, settings.budget // PER_BUDGET))
        idle = 0
        while (open_ := settings.budget - 1 - len(ended.plans)) > 0 and ended.played < TRIES * settings.budget:
            if idle == IDLE or settings.stop():
                break
            episodes = learner.play(every, open_, TRIES * settings.budget - ended.played)
            rewards = ended.judge(episodes)
            idle += 1
            if any(episode.is_met for episode in episodes):
                idle = 0
                progress(len(ended.plans), settings.budget)
            learner.learn(episodes, rewards)
    plan = problem.plan(problem.fit(ended.best * problem.widths / problem.most))
    problem.score(plan)
    ended.forget()
    progress(len(ended.plans) + 1, settings.budget)
    return plan


class Shrinking:
    """A network that shrinks.

    Args:
        problem: whose targets it is to meet.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._stages = Stages(problem.channels, problem.costs, problem.importance)

    def graph(self, shares: Floats) -> tuple[Stage, ...]:
        """Draw the network with some shares of each group."""
        return self._stages.at(counts_of(self.problem, shares))

    def is_met(self, shares: Floats) -> bool:
        """Tell whether the targets are met."""
        return bool(self.problem.meets(counts_of(self.problem, shares))[0])


def after(shares: Floats, action: Floats) -> Floats:
    """Prune a ratio of what is left of each group, (groups,); a negative one lets it grow again."""
    return np.clip(shares * (1 - action), LEAST_SHARE, 1)


def counts_of(problem: Problem, shares: Floats) -> Counts:
    """Count the channels of shares, as many as the problem allows."""
    counts = np.clip(np.floor(problem.widths * shares).astype(np.int64), problem.least, problem.most)
    return counts if problem.depth is None else problem.depth.closed(counts)


class Ended:
    """The episodes that ended.

    Args:
        problem: that judges them.

    Attributes:
        played: how many there are.
        plans: of those that met the targets.
        best: (groups,) shares of the best one, of the one that came closest where all failed; all where none ended.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._merit = (False, -math.inf)
        self._range = (math.inf, -math.inf)
        self.played = 0
        self.plans: list[Plan] = []
        self.best: Floats = np.ones(len(problem.widths))

    def judge(self, episodes: Sequence[Episode]) -> list[float]:
        """Judge the plans of episodes that met the targets; returns the rewards of all."""
        plans = [
            self._problem.plan(counts_of(self._problem, episode.shares)) if episode.is_met else None
            for episode in episodes
        ]
        found = [plan for plan in plans if plan is not None]
        scores = iter(self._problem.scores(found) if found else ())
        scored = [math.nan if plan is None else next(scores) for plan in plans]
        self.played += len(episodes)
        self.plans += found
        for episode, score in zip(episodes, scored, strict=True):
            self._compare(episode, score)
        failed = self._failure()
        return [score if math.isfinite(score) else failed for score in scored]

    def _compare(self, episode: Episode, score: float) -> None:
        """Keep the better one of an episode and the best before."""
        if math.isfinite(score):
            self._range = min(self._range[0], score), max(self._range[1], score)
        else:
            score = -self._excess(episode.shares) if not episode.is_met else -math.inf
        merit = episode.is_met, score
        if merit > self._merit:
            self._merit, self.best = merit, episode.shares

    def _excess(self, shares: Floats) -> float:
        """Tell how often the costs contain their limits, at most."""
        costs = self._problem.costs.of(counts_of(self._problem, shares))
        return max((float(costs[t.metric][0]) / max(t.limit, 1) for t in self._problem.targets), default=0.0)

    def _failure(self) -> float:
        """Give the reward of failure: twice the worst error, and so far below all rewards in any case."""
        low, high = self._range
        return low - max(high - low, abs(low)) if math.isfinite(low) else -1.0

    def forget(self) -> None:
        """Take away, as candidates, plans on the way that are not aligned: none of them is a result."""
        if self.plans:
            rows = np.stack([plan.counts for plan in self.plans])
            for row in rows[~self._problem.admits(rows)]:
                self._problem.visited.pop(row.tobytes(), None)


class Agent(nn.Module):
    """A policy of one network, and the value of its states; each has an encoder of its own.

    Args:
        sizes: per stage the numbers of node and edge features.
        groups: of the network.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], groups: int) -> None:
        super().__init__()
        rounds = [ROUNDS] * len(sizes)
        self._sees, self._judges = Encoder(sizes, WIDTH, rounds), Encoder(sizes, WIDTH, rounds)
        self._actor = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, groups), nn.Tanh())
        self._critic = nn.Sequential(nn.Linear(WIDTH, 1), nn.Tanh())

    def mean(self, levels: Sequence[Level]) -> Tensor:
        """Give the middle of the ratios to prune, (states, groups)."""
        found: Tensor = self._actor(self._sees(levels)[1])
        return found

    def value(self, levels: Sequence[Level]) -> Tensor:
        """Give what is expected of states, (states,), in units of how much returns differ."""
        found: Tensor = self._critic(self._judges(levels)[1])
        return found.squeeze(1)


class Learner:
    """An agent that plays episodes of one problem and learns from them.

    Args:
        shrinking: the network.
        generator: of all that is drawn.
    """

    def __init__(self, shrinking: Shrinking, generator: torch.Generator) -> None:
        self._shrinking, self._generator = shrinking, generator
        self._groups = len(shrinking.problem.widths)
        self._first = shrinking.graph(np.ones(self._groups))
        self._agent = Agent([(s.nodes.shape[1], s.features.shape[1]) for s in self._first], self._groups)
        self._optimizer = torch.optim.Adam(self._agent.parameters(), lr=RATE, fused=True)

    def play(self, steps: int, met: int, episodes: int) -> list[Episode]:
        """Play until there are so many steps, so many episodes that met the targets, or so many in all."""
        found = list[Episode]()
        while (
            sum(len(episode.steps) for episode in found) < steps
            and sum(episode.is_met for episode in found) < met
            and len(found) < episodes
        ):
            found.append(self._episode())
        return found

    def _episode(self) -> Episode:
        shares, steps, is_met = np.ones(self._groups), list[Step](), False
        while not is_met and len(steps) < LENGTH:
            graph = self._shrinking.graph(shares) if steps else self._first
            with torch.no_grad():
                mean = self._agent.mean(batch([graph]))[0]
                raw = mean + SPREAD * torch.randn(mean.shape, generator=self._generator)
                steps.append(Step(graph, raw, float(log_prob(raw, mean))))
            shares = after(shares, raw.double().numpy())
            is_met = self._shrinking.is_met(shares)
        return Episode(tuple(steps), shares, is_met)

    def learn(self, episodes: Sequence[Episode], rewards: Sequence[float]) -> None:
        """Learn from some episodes (PPO, arXiv 1707.06347)."""
        steps = [step for episode in episodes for step in episode.steps]
        returns = torch.tensor(returns_of(episodes, rewards), dtype=torch.float32)
        levels = batch([step.graph for step in steps])
        raw, before = torch.stack([step.raw for step in steps]), torch.tensor([step.log_prob for step in steps])
        for _ in range(TIMES):
            value = self._agent.value(levels)
            more = (log_prob(raw, self._agent.mean(levels)) - before).clamp(-LARGEST_LOG, LARGEST_LOG)
            ratio, wanted = more.exp(), returns - value.detach()
            gain = torch.minimum(ratio * wanted, ratio.clamp(1 - CLIP, 1 + CLIP) * wanted)
            loss = -gain.mean() + VALUE * (value - returns).square().mean()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()


def log_prob(raw: Tensor, mean: Tensor) -> Tensor:
    """Give the log-density of all actions of a step together, (..., groups) each, but for a constant."""
    return -0.5 * ((raw - mean) / SPREAD).square().sum(dim=-1)


def returns_of(episodes: Sequence[Episode], rewards: Sequence[float]) -> Floats:
    """Give what each step led to: the reward at the end, less the longer it took, all put to mean 0 and spread 1."""
    found = np.asarray(
        [
            reward * DISCOUNT**left
            for episode, reward in zip(episodes, rewards, strict=True)
            for left in reversed(range(len(episode.steps)))
        ]
    )
    normal: Floats = (found - found.mean()) / (found.std() + 1e-7)
    return normal
