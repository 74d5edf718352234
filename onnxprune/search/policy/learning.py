"""How an agent learns from episodes: PPO with generalised advantages, several episodes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.plan import Plan
from onnxprune.search.policy.agent import Agent, Output, Shape
from onnxprune.search.policy.credit import Credit
from onnxprune.search.policy.encoder import Level, batch, side_by_side
from onnxprune.search.policy.environment import CONTEXT, Episodes, State
from onnxprune.stages import FEATURES
from onnxprune.weights import Floats

MOST_ACTION = 0.99  # of what an agent may do in a step, where its actions are shifted


@dataclass(frozen=True)
class Learning:
    """How an agent learns.

    Attributes:
        together: episodes that are played before it learns from them.
        rounds: times that it looks at each batch of them.
        rate: of the agent's weights.
        own_rate: of the corrections that belong to one network alone.
        clip: most that a group's probability changes, as a share, before its gradient ends.
        discount: of later rewards.
        trace: of generalised advantages: 1 looks to the end of the episode, 0 one step ahead.
        value: weight of the critic's error.
        entropy: weight of the spread of actions.
        norm: most that the norm of all gradients may be.
        boldness: how far what groups might matter is drawn from what they seem to, in parts of what is in doubt.
        new: least share of a batch's plans that is to be new; where fewer are, it is drawn more boldly.
        bolder: how much more.
        thoughts: further actions that are tried in each state, by the model of `Credit` alone.
        afterthoughts: batches of episodes that are thought of after each that is learnt from.
    """

    together: int = 8
    rounds: int = 5
    rate: float = 2e-3
    own_rate: float = 0.06
    clip: float = 0.2
    discount: float = 1.0
    trace: float = 0.95
    value: float = 0.5
    entropy: float = 1e-3
    norm: float = 1.0
    boldness: float = 0.25
    new: float = 0.5
    bolder: float = 1.5
    thoughts: int = 16
    afterthoughts: int = 2


@dataclass(frozen=True)
class Step:
    """One step of all episodes of a batch.

    Attributes:
        levels: graphs of the states.
        context: (episodes, numbers).
        before: (episodes, groups) corrections so far.
        said: by the agent.
        raw: (groups of all episodes,) the agent's actions before they are squashed.
        shifts: the same, what was added to them.
    """

    levels: Sequence[Level]
    context: Tensor
    before: Tensor
    said: Output
    raw: Tensor
    shifts: Tensor


def fresh() -> Agent:
    """Make an agent that has learnt nothing yet."""
    return Agent(Shape(tuple((len(nodes), len(edges)) for nodes, edges in FEATURES.values()), len(CONTEXT)))


def optimizer_of(agent: Agent, how: Learning, own: Sequence[Tensor] = ()) -> torch.optim.Optimizer:
    """Make an optimizer of an agent's weights, and of corrections that belong to one network."""
    weights = {"params": list(agent.parameters()), "lr": how.rate}
    # A clipped gradient is to stop the agent, so there is little momentum to carry it on.
    parts = [weights, *({"params": [values], "lr": how.own_rate} for values in own)]
    return torch.optim.Adam(parts, betas=(0.5, 0.9), fused=True)


class Learner:
    """An agent that plays episodes of one problem and learns from them.

    Args:
        agent: it is changed.
        episodes: where it plays.
        how: it learns.
        generator: of all that is drawn.
        optimizer: of the agent's weights alone, where several learners share it; by default this network gets
            corrections of its own beside what the agent says of every network.
    """

    def __init__(
        self,
        agent: Agent,
        episodes: Episodes,
        how: Learning,
        generator: torch.Generator,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.agent, self.episodes, self.how, self._generator = agent, episodes, how, generator
        self.own = torch.zeros(episodes.groups, requires_grad=optimizer is None)
        self.believe(episodes.prior.mean)
        self._boldness = how.boldness
        self._drawing = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        self._is_for_others = optimizer is not None
        self._optimizer = optimizer or optimizer_of(agent, how, [self.own])

    def play(self, number: int, aims: Sequence[Floats] = (), *, likely: int = 0) -> tuple[list[Step], list[State]]:
        """Play some episodes up to their ends, without judging them.

        Args:
            number: of episodes.
            aims: (groups,) corrections that the last of them are to come to; there the agent's actions are shifted.
            likely: in so many of the first each action is the most likely one; in the others actions are drawn.
        """
        shifts = torch.zeros(number, self.episodes.groups)
        if len(aims):
            unshifted = self._raw(self.play_likely().corrections)
            shifts[-len(aims) :] = torch.from_numpy(self._raw(np.stack(aims)) - unshifted)
        states, steps = [self.episodes.begin() for _ in range(number)], list[Step]()
        for _ in range(self.episodes.length):
            steps.append(self.act(states, shifts, likely))
            states = self.moved(states, steps[-1])
        return steps, states

    def _raw(self, corrections: Floats) -> Floats:
        """Give the action that, taken in every step, leads to corrections; before it is squashed."""
        reach = self.episodes.length * self.episodes.largest
        return np.asarray(np.arctanh(np.clip(corrections / reach, -MOST_ACTION, MOST_ACTION)))

    def moved(self, states: Sequence[State], step: Step) -> list[State]:
        """Give the states that actions lead to."""
        actions = torch.tanh(step.raw + step.shifts).double().numpy().reshape(len(states), -1)
        return [self.episodes.after(state, action) for state, action in zip(states, actions, strict=True)]

    def own_plan(self) -> Plan:
        """Give the plan that the most likely actions lead to; nothing is judged."""
        return self.episodes.problem.plan(self.play_likely().counts)

    def practise(self, number: int) -> Floats:
        """Play some episodes, let their plans be judged and learn from that; returns their rewards.

        Their actions are shifted to what is best by all that is known, and to what would be best if groups mattered as
        they might (Thompson sampling). Nearly half keep the noise of the agent's actions, too, for what no model tells.
        One is the agent's own, as soon as by all that is known it is as good as the best plan so far. Where widths come
        in large steps, that leads to plans that are known, so it is drawn more boldly until enough plans are new. Where
        none is, nothing is learnt, unless for other networks, too.
        """
        known, aims = self.episodes.problem.judged, self.aims(number - self._is_worth_judging(self.play_likely()))
        steps, ends = self.play(number, aims, likely=number - (number - 1) // 2)
        rewards = self.episodes.rewards([self.episodes.problem.plan(end.counts) for end in ends])
        new = self.episodes.problem.judged - known
        if new or self._is_for_others:
            self.learn(steps, ends, rewards)
            for _ in range(self.how.afterthoughts):
                self.think(number)
        is_new_enough = new >= self.how.new * number
        bolder = 1 / self.how.bolder if is_new_enough else self.how.bolder
        self._boldness = max(self.how.boldness, self._boldness * bolder)
        return rewards

    def _is_worth_judging(self, end: State) -> bool:
        own, best = self._credit.expected(np.stack([end.counts, self._credit.best]))
        return bool(own >= best)

    def aims(self, number: int) -> list[Floats]:
        """Give the corrections that are best by all that is known, unless they were tried, and such as might be.

        Returns:
            (groups,) each.
        """
        best = self._credit.targets()
        likely = [] if self._credit.knows(self.episodes.space.counts(best)) else [best]
        drawn = self._credit.draw(max(number - len(likely), 0), self._drawing, self._boldness)
        return [*likely, *(self._credit.targets(weights) for weights in drawn)][:number]

    def recall(self, plans: Sequence[Plan]) -> Floats:
        """Let plans be judged that no episode led to, and learn from them what groups matter; returns their rewards."""
        rewards = self.episodes.rewards(plans)
        self._credit.add([plan.counts for plan in plans], rewards)
        return rewards

    def remember(self) -> None:
        """Learn what groups matter from the plans that were judged before this search, for whatever targets."""
        self._credit.add(*self.episodes.remembered())

    def think(self, number: int) -> None:
        """Play some episodes that nobody judges, and learn from what the model of `Credit` says of them."""
        steps, ends = self.play(number)
        expected = self._expected(ends)
        self._learn(steps, expected, expected)

    def act(self, states: Sequence[State], shifts: Tensor, likely: int = 0) -> Step:
        """Look at some states and act in each, see `play`."""
        levels = batch([self.episodes.graph(state) for state in states])
        context = torch.from_numpy(np.stack([self.episodes.context(state) for state in states])).float()
        with torch.no_grad():
            said = self._say(levels, context)
            noise = torch.randn(said.mean.shape, generator=self._generator)
            noise[: likely * self.episodes.groups] = 0
            raw = said.mean + said.spread * noise
            before = torch.from_numpy(np.stack([state.corrections for state in states])).float()
            return Step(levels, context, before, said, raw, shifts.flatten())

    def learn(self, steps: Sequence[Step], ends: Sequence[State], rewards: Floats) -> None:
        """Learn from a batch of episodes, whose rewards came at their ends.

        Each group answers for what its own corrections brought by the model of `Credit`, which knows as well what
        other actions would have brought; what it does not explain is shared by all.
        """
        self._credit.add([end.counts for end in ends], rewards)
        self._learn(steps, rewards, self._expected(ends))

    def _expected(self, ends: Sequence[State]) -> Floats:
        return self._credit.expected(np.stack([end.counts for end in ends]))

    def _learn(self, steps: Sequence[Step], rewards: Floats, expected: Floats) -> None:
        total, returns = self._advantages(steps, torch.from_numpy(rewards).float())
        explained = torch.from_numpy(expected).float()
        unexplained = total - total.mean() - (explained - explained.mean())  # (steps, episodes)
        raw, gains = self._thoughts(steps)
        gains[:, 0] += unexplained.unsqueeze(2) / self.episodes.groups
        advantages = gains.transpose(0, 1).reshape(len(raw), -1)
        advantages = advantages / (advantages.std() + 1e-8)
        levels, context, said = joined(steps)
        old = said.log_prob(raw)
        for _ in range(self.how.rounds):
            loss = self._loss(self._say(levels, context), raw, old, advantages, returns.flatten())
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.agent.parameters(), self.how.norm)
            self._optimizer.step()

    def _thoughts(self, steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
        """Draw further actions in every state, and tell by the model of `Credit` what each is worth to its group.

        After each step of an episode, corrections should have come as much nearer to those that would be best.

        Returns:
            (thoughts, groups of all steps and episodes) the actions taken and those thought of, before they are
            squashed; (steps, thoughts, episodes, groups) what each gains.
        """
        wanted = torch.from_numpy(self._credit.targets()).float()
        drawn, gains = list[Tensor](), list[Tensor]()
        for number, step in enumerate(steps, start=1):
            noise = torch.randn(self.how.thoughts, len(step.raw), generator=self._generator)
            drawn.append(torch.cat([step.raw[None], step.said.mean + step.said.spread * noise]))
            actions = torch.tanh(drawn[-1]).reshape(-1, *step.before.shape)
            after = step.before + self.episodes.largest * actions
            gains.append(-0.5 * (after - wanted * number / len(steps)).square())
        gained = torch.stack(gains)
        return torch.cat(drawn, dim=1), gained - gained.mean(dim=(1, 2), keepdim=True)

    def believe(self, corrections: Floats) -> None:
        """Take corrections (groups,) to be the best until more is known, and forget what was learnt of the groups."""
        self._credit = Credit(self.episodes.space, self.episodes.prior.doubt, corrections)

    def play_likely(self) -> State:
        """Play the most likely episode."""
        _, (end,) = self.play(1, likely=1)
        return end

    def _advantages(self, steps: Sequence[Step], ends: Tensor) -> tuple[Tensor, Tensor]:
        """Generalised advantages (Schulman et al., arXiv 1506.02438) of rewards that come at the ends of episodes.

        Returns:
            (steps, episodes) how much better it came out than the critic expected, and what was to be expected.
        """
        later, trace, found = torch.zeros_like(ends), torch.zeros_like(ends), list[Tensor]()
        for step in reversed(steps):
            reward = torch.zeros_like(ends) if found else ends
            wrong = reward + self.how.discount * later - step.said.value
            trace = wrong + self.how.discount * self.how.trace * trace
            later = step.said.value
            found.insert(0, trace)
        advantages = torch.stack(found)
        return advantages, advantages + torch.stack([step.said.value for step in steps])

    def _say(self, levels: Sequence[Level], context: Tensor) -> Output:
        said: Output = self.agent(levels, context, self.own.repeat(len(context)))
        return said

    def _loss(self, said: Output, raw: Tensor, old: Tensor, advantage: Tensor, expected: Tensor) -> Tensor:
        ratio = torch.exp(said.log_prob(raw) - old)
        clipped = ratio.clamp(1 - self.how.clip, 1 + self.how.clip)
        gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
        wrong = (said.value - expected).square().mean()
        result: Tensor = -gain + self.how.value * wrong - self.how.entropy * said.spread.log().mean()
        return result


def joined(steps: Sequence[Step]) -> tuple[list[Level], Tensor, Output]:
    """Put the states of several steps side by side, and what was said of them, to look at all of them at once."""
    said = Output(*(torch.cat([getattr(step.said, name) for step in steps]) for name in ("mean", "spread", "value")))
    return side_by_side([step.levels for step in steps]), torch.cat([step.context for step in steps]), said


@contextmanager
def seeded(seed: int) -> Iterator[torch.Generator]:
    """Draw weights and actions from a seed, on one thread: the same again, bit for bit, and no slower for so little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield torch.Generator().manual_seed(seed)
    finally:
        torch.set_num_threads(threads)
