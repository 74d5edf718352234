"""AMC: an agent walks through the network and decides group by group how much of it to keep; DDPG teaches it.

After He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices" (ECCV 2018, arXiv 1802.03494),
with the numbers of its released code (mit-han-lab/amc). As there, an action is bounded so that the targets can still be
met, only what the cut network answers is a reward, and every decision of an episode gets all of it.

What differs:

1. A decision is made for each group of channels, in the order of the problem, not for the input of each layer.
2. The bound is a bisection over what plans really cost, for any targets and for several at once. AMC has a formula for
   FLOPs in which each layer depends on two shares.
3. Where targets are so low that AMC's least share would leave no choice, that share is lower. AMC refuses such targets.
4. The actor answers between the least share and 1; in AMC it answers between 0 and 1 and is bounded from below, too.
5. Shares become a plan by `Problem.fit`: aligned, and scaled up where they ask for less than the targets leave room
   for. AMC rounds each share by itself, and a plan may cost less than it could.
6. An agent also sees kinds of operations, parameters, and how far each of several targets is.
7. Rewards are in units of how much they differed so far, since errors may have any unit. In AMC they are shares.
8. A run has as many episodes as the budget, 100 by default; AMC has 800. So a fifth are random (AMC: 100), the noise
   ends where AMC's is after 80 more, and for each decision of an episode the agent learns from `UPDATES` batches (AMC:
   from one), which is about as often in all.
9. How a plan is cut, repaired and judged is up to the problem. AMC ranks channels by magnitude, and its code repairs
   convolutions of 1 x 1 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from onnxprune.groups import GROUP_EDGE_FEATURES, GROUP_FEATURES
from onnxprune.plan import Plan
from onnxprune.problem import Problem
from onnxprune.search import Progress, SearchSettings
from onnxprune.stages import Stages
from onnxprune.weights import Floats

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

LEAST_SHARE = 0.2  # of each group that is kept
PART = 0.5  # of the share that would do if all groups kept it: the least share is never more
ROUNDS, POINTS = 2, 33  # of the search for a bound: to a thousandth

WARM = 0.2  # of the budget goes into random episodes
FIRST_SPREAD, LAST_SPREAD = 0.5, 0.01  # of actions; 80 episodes lie between where each has 0.95 of the one before
HIDDEN = 300
ACTOR_RATE, CRITIC_RATE = 1e-4, 1e-3
SLOWNESS = 0.01  # part of the networks that goes into their slow copies
BATCH = 64
UPDATES = 9  # for each decision of an episode: at the default budget about as many as AMC has in all
REMEMBERED = 100  # episodes
BASELINE_PART = 0.5  # of each batch's mean reward that goes into the baseline
MOST_REWARD = 5.0  # in units of how much rewards differ

DESCRIBED = (
    *("width", "positions", "kernel", "stride", "original macs", "original params"),
    *("depthwise", "grouped", "product", "residual", "gated", "joined", "attention"),
)
"""What an agent sees of a group, from `GROUP_FEATURES`; also its number, and how wide the layers around it are."""


def search(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
    """Play episodes, judge the plan of each, and learn from all of them."""
    from onnxprune.search.policy.learning import seeded  # PyTorch takes seconds to load

    problem.check_reachable()
    walk, rng = Walk(problem), np.random.default_rng(settings.seed)
    warm = max(1, round(WARM * settings.budget))
    with seeded(settings.seed):
        agent = Agent(walk.features, rng)
        for number in range(settings.budget):
            if number and settings.stop():
                break
            spread = spread_at(number - warm, settings.budget - warm) if number >= warm else np.inf
            episode = walk.play(agent, spread, rng)
            score = problem.score(problem.plan(problem.fit(episode.shares)))
            progress(number + 1, settings.budget)
            agent.remember(episode, score)
            if warm <= number + 1 < settings.budget:
                agent.learn(UPDATES * len(problem.widths))
    return problem.best(1)[0]


def spread_at(number: int, total: int) -> float:
    """Give the spread of actions in one of the episodes after the random ones."""
    return float(FIRST_SPREAD * (LAST_SPREAD / FIRST_SPREAD) ** (number / max(total, 1)))


def truncated(mean: float, spread: float, rng: np.random.Generator) -> float:
    """Draw from a normal distribution between 0 and 1; from a uniform one where the spread is infinite."""
    if np.isinf(spread):
        return float(rng.random())
    low, high = ndtr((np.asarray([0, 1]) - mean) / spread)
    return float(np.clip(mean + spread * ndtri(rng.uniform(low, high)), 0, 1))


@dataclass(frozen=True)
class Episode:
    """What was seen and done on one walk.

    Attributes:
        states: (groups, features) before each decision.
        actions: (groups,) what was answered, from 0, the least share, to 1, all; before it was bounded, as in AMC.
        shares: (groups,) of each group's channels that it came to.
    """

    states: Floats
    actions: Floats
    shares: Floats


class Walk:
    """The way through the groups of a problem: what is seen there, and what may be done.

    Args:
        problem: its targets must be reachable.

    Attributes:
        least: (groups,) share of each group that is kept at least; with these the targets are met.
        features: how many numbers are seen at a time.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._metrics = [target.metric for target in problem.targets] or ["macs"]
        self.least = least_shares(problem)
        self._described = described(problem)
        self.features = self._described.shape[1] + 2 * len(self._metrics) + 1

    def play(self, agent: Agent, spread: float, rng: np.random.Generator) -> Episode:
        """Walk from the first group to the last.

        Args:
            agent: who decides.
            spread: of the actions around what it says; infinite if it is not asked.
            rng: draws them.
        """
        shares, last, seen, actions = self.least.copy(), 1.0, list[Floats](), list[float]()
        for at in range(len(shares)):
            seen.append(self.state(shares, at, last))
            mean = 0.5 if np.isinf(spread) else agent.action(seen[-1])
            actions.append(truncated(mean, spread, rng))
            wanted = shares[at] + (1 - shares[at]) * actions[-1]
            shares[at] = last = min(wanted, self.bound(shares, at))
        return Episode(np.reshape(seen, (len(shares), self.features)), np.asarray(actions), shares)

    def bound(self, shares: Floats, at: int) -> float:
        """Find the largest share of a group with which all targets can still be met.

        Args:
            shares: (groups,) those that are decided, and the least ones of this group and of those that follow.
            at: the group.
        """
        low, high = float(shares[at]), 1.0
        for _ in range(ROUNDS):
            table = np.linspace(low, high, POINTS)
            rows = np.tile(shares, (POINTS, 1))
            rows[:, at] = table
            fits = self._problem.meets(rows * self._problem.most)
            if fits[-1]:
                return high
            last = max(int(np.argmin(fits)) - 1, 0)  # the first was found to fit when the share before was bounded
            low, high = float(table[last]), float(table[last + 1])
        return low

    def state(self, shares: Floats, at: int, last: float) -> Floats:
        """Describe a group where the shares of those before it are decided.

        Returns:
            (features,) what no decision changes, from 0 to 1; for each target the part of the cost that is gone, and
            the part that can still go; the share of the group before.
        """
        open_ = shares.copy()
        open_[at:] = 1
        found = self._problem.costs.of(np.stack([open_, shares]) * self._problem.most)
        now = [(1 - whole, whole - least) for whole, least in (self._parts(found[m], m) for m in self._metrics)]
        return np.concatenate([self._described[at], np.ravel(now), [last]])

    def _parts(self, costs: Floats, metric: str) -> Floats:
        return costs / max(self._problem.original[metric], 1)


def least_shares(problem: Problem) -> Floats:
    """Find the share of each group that is always kept: AMC's, or less where that would leave no choice; (groups,)."""
    own = problem.least / np.maximum(problem.most, 1)
    table = np.linspace(1, 0, 129)
    alike = table[int(np.argmax(problem.meets(np.maximum(own, table[:, None]) * problem.most)))]
    found: Floats = np.maximum(own, min(LEAST_SHARE, PART * float(alike)))
    return found


def described(problem: Problem) -> Floats:
    """Describe the groups by what no decision changes: (groups, features), each from 0 to 1."""
    stages = Stages(problem.channels, problem.costs)
    last = stages.at()[-1]
    nodes = dict(zip(GROUP_FEATURES, last.nodes.T.astype(np.float64), strict=True))
    columns = [np.arange(len(problem.widths)), *(nodes[name] for name in DESCRIBED), *_around(stages)]
    table = np.stack(columns, axis=1)
    low, high = table.min(axis=0, initial=np.inf), table.max(axis=0, initial=-np.inf)
    scaled: Floats = (table - low) / np.where(high > low, high - low, 1)
    return scaled


def _around(stages: Stages) -> tuple[Floats, Floats]:
    """Tell how wide the inputs of what makes each group are, and the outputs of what reads it."""
    last, widths = stages.at()[-1], stages.extents.original.widths
    is_of = {name: column > 0 for name, column in zip(GROUP_EDGE_FEATURES, last.features.T, strict=True)}
    number, operations = stages.extents.tensors, stages.blocks.operations
    read = np.asarray([widths[number[operation.reads[0]]] for operation in operations])
    made = np.asarray([widths[number[operation.makes[0]]] for operation in operations])
    before, behind = np.zeros((2, len(last.nodes)))
    for kind, end, sizes, found in (
        ("from frozen", 1, read, before),
        ("mixes", 1, read, before),
        ("mixes", 0, made, behind),
        ("into frozen", 0, made, behind),
    ):
        edges = np.flatnonzero(is_of[kind] & ~is_of["reversed"])
        np.maximum.at(found, last.edges[end, edges], sizes[stages.groups.operation[edges]])
    return before, behind


class Agent:
    """An actor and the critic that teaches it, by deep deterministic policy gradients (arXiv 1509.02971).

    Args:
        features: how many numbers a state has.
        rng: draws what is learnt from.
    """

    def __init__(self, features: int, rng: np.random.Generator) -> None:
        import torch

        self._actor, self._critic = _network(features, squash=True), _network(features + 1)
        self._slow_actor, self._slow_critic = (
            deepcopy(network).requires_grad_(False) for network in (self._actor, self._critic)
        )
        self._actor_steps = torch.optim.Adam(self._actor.parameters(), lr=ACTOR_RATE, fused=True)
        self._critic_steps = torch.optim.Adam(self._critic.parameters(), lr=CRITIC_RATE, fused=True)
        self._rng = rng
        self._episodes: list[Episode] = []
        self._scores: list[float] = []
        self._baseline: float | None = None

    def action(self, state: Floats) -> float:
        """Answer to a state, (features,), with a number from 0 to 1."""
        return float(self._actor(_tensor(state)).detach())

    def remember(self, episode: Episode, score: float) -> None:
        """Take note of an episode and of how good its plan was; the oldest ones are forgotten."""
        self._episodes = [*self._episodes, episode][-REMEMBERED:]
        self._scores = [*self._scores, score][-REMEMBERED:]

    def learn(self, updates: int) -> None:
        """Learn from single decisions of all episodes, drawn at random."""
        states, actions = (
            np.stack([getattr(episode, name) for episode in self._episodes]) for name in ("states", "actions")
        )
        rewards = rewards_of(self._scores)
        count, groups = actions.shape
        for _ in range(updates if groups else 0):
            episode, at = self._rng.integers((count, groups), size=(BATCH, 2)).T
            later = np.minimum(at + 1, groups - 1)
            self._update(
                _tensor(states[episode, at]),
                _tensor(actions[episode, at, None]),
                _tensor(self._over_baseline(rewards[episode])[:, None]),
                _tensor(states[episode, later]),
                _tensor((at < groups - 1)[:, None]),
            )

    def _over_baseline(self, rewards: Floats) -> Floats:
        """Take off a moving average, which is of the batches, as in AMC."""
        mean = float(rewards.mean())
        self._baseline = mean if self._baseline is None else self._baseline + BASELINE_PART * (mean - self._baseline)
        return rewards - self._baseline

    def _update(self, state: Tensor, action: Tensor, reward: Tensor, later: Tensor, goes_on: Tensor) -> None:
        """Learn from a batch: what actions are worth in the end, and then which are worth more."""
        worth = self._slow_critic(_pair(later, self._slow_actor(later)))
        wrong = self._critic(_pair(state, action)) - (reward + goes_on * worth).detach()
        _step(self._critic_steps, wrong.square().mean())
        _step(self._actor_steps, -self._critic(_pair(state, self._actor(state))).mean())
        for slow, fast in ((self._slow_actor, self._actor), (self._slow_critic, self._critic)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.data.lerp_(new.data, SLOWNESS)


def rewards_of(scores: Sequence[float]) -> Floats:
    """Put scores into units of how much they differ; what is no number is as bad as the worst."""
    found = np.asarray(scores, np.float64)
    good = found[np.isfinite(found)]
    if not len(good):
        return np.zeros(len(found))
    middle = float(np.median(good))
    unit = float(np.median(np.abs(good - middle))) * 1.4826  # of a normal distribution this is the standard deviation
    found = np.where(np.isfinite(found), found, good.min())
    return np.clip((found - middle) / unit, -MOST_REWARD, MOST_REWARD) if unit > 0 else np.sign(found - middle)


def _network(features: int, *, squash: bool = False) -> nn.Module:
    from torch import nn

    layers = [nn.Linear(features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)]
    return nn.Sequential(*layers, *([nn.Sigmoid()] if squash else []))


def _tensor(values: npt.NDArray[np.generic]) -> Tensor:
    import torch

    return torch.from_numpy(values.astype(np.float32))


def _pair(state: Tensor, action: Tensor) -> Tensor:
    import torch

    return torch.cat([state, action], dim=1)


def _step(optimizer: Optimizer, loss: Tensor) -> None:
    """Move the weights of one network: no gradients of the other's are needed."""
    import torch

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    optimizer.step()
