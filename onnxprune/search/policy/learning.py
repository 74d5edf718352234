"""How an agent learns from episodes: PPO with generalised advantages, several episodes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onnxprune.plan import Plan
from onnxprune.problem import Floats
from onnxprune.search.policy.agent import Agent, Shape
from onnxprune.search.policy.credit import Credit
from onnxprune.search.policy.encoder import Level, batch, side_by_side
from onnxprune.search.policy.environment import CONTEXT, Episodes, State
from onnxprune.stages import FEATURES


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
    """

    together: int = 8
    rounds: int = 10
    rate: float = 3e-3
    own_rate: float = 0.1
    clip: float = 0.2
    discount: float = 1.0
    trace: float = 0.95
    value: float = 0.5
    entropy: float = 1e-3
    norm: float = 1.0


@dataclass(frozen=True)
class Step:
    """One step of all episodes of a batch.

    Attributes:
        levels: graphs of the states.
        context: (episodes, numbers).
        raw: (groups of all episodes,) actions before they are squashed.
        log_prob: of these, when they were drawn.
        value: (episodes,) what the critic expected.
    """

    levels: Sequence[Level]
    context: Tensor
    raw: Tensor
    log_prob: Tensor
    value: Tensor


def fresh() -> Agent:
    """Make an agent that has learnt nothing yet."""
    return Agent(Shape(tuple((len(nodes), len(edges)) for nodes, edges in FEATURES.values()), len(CONTEXT)))


def optimizer_of(agent: Agent, how: Learning, own: Sequence[Tensor] = ()) -> torch.optim.Optimizer:
    """Make an optimizer of an agent's weights, and of corrections that belong to one network."""
    weights = {"params": list(agent.parameters()), "lr": how.rate}
    return torch.optim.Adam([weights, *({"params": [values], "lr": how.own_rate} for values in own)])


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
        self._credit = Credit(episodes.groups)
        self._optimizer = optimizer or optimizer_of(agent, how, [self.own])

    def play(self, number: int, *, is_drawn: bool = True) -> tuple[list[Step], list[State]]:
        """Play some episodes up to their ends, without judging them.

        Args:
            number: of episodes.
            is_drawn: whether actions are drawn; else each is the most likely one.
        """
        states, steps = [self.episodes.begin() for _ in range(number)], list[Step]()
        for _ in range(self.episodes.length):
            steps.append(self._act(states, is_drawn))
            actions = torch.tanh(steps[-1].raw).double().numpy().reshape(number, -1)
            states = [self.episodes.after(state, action) for state, action in zip(states, actions, strict=True)]
        return steps, states

    def own_plan(self) -> Plan:
        """Give the plan that the most likely actions lead to; nothing is judged."""
        _, (end,) = self.play(1, is_drawn=False)
        return self.episodes.problem.plan(end.counts)

    def practise(self, number: int) -> Floats:
        """Play some episodes, let their plans be judged and learn from that; returns their rewards."""
        steps, ends = self.play(number)
        rewards = self.episodes.rewards([self.episodes.problem.plan(end.counts) for end in ends])
        self.learn(steps, ends, rewards)
        return rewards

    def _act(self, states: Sequence[State], is_drawn: bool) -> Step:
        levels = batch([self.episodes.graph(state) for state in states])
        context = torch.from_numpy(np.stack([self.episodes.context(state) for state in states])).float()
        with torch.no_grad():
            said = self.agent(levels, context, self.own.repeat(len(states)))
            noise = torch.randn(said.mean.shape, generator=self._generator) if is_drawn else torch.zeros(())
            raw = said.mean + said.spread * noise
            return Step(levels, context, raw, said.log_prob(raw), said.value)

    def learn(self, steps: Sequence[Step], ends: Sequence[State], rewards: Floats) -> None:
        """Learn from a batch of episodes, whose rewards came at their ends.

        Each group answers for what its own corrections brought by the linear fit of `Credit`; what that does not
        explain is shared by all.
        """
        corrections = np.stack([state.corrections for state in ends])
        self._credit.add(corrections, rewards)
        slopes = torch.from_numpy(self._credit.slopes).float()
        acted = torch.stack([torch.tanh(step.raw) for step in steps]).reshape(len(steps), len(ends), -1)
        earned = slopes * self.episodes.largest * (acted - acted.mean(dim=1, keepdim=True))
        given = torch.from_numpy(rewards).float()
        shared, returns = self._advantages(steps, given - earned.sum(dim=(0, 2)))
        advantages = earned + (shared - shared.mean()).unsqueeze(2) / self.episodes.groups
        advantages = (advantages / (advantages.std() + 1e-8)).flatten()
        played = joined(steps)
        for _ in range(self.how.rounds):
            loss = self._loss(played, advantages, returns.flatten())
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.agent.parameters(), self.how.norm)
            self._optimizer.step()

    def _advantages(self, steps: Sequence[Step], ends: Tensor) -> tuple[Tensor, Tensor]:
        """Generalised advantages (Schulman et al., arXiv 1506.02438) of rewards that come at the ends of episodes.

        Returns:
            (steps, episodes) how much better it came out than the critic expected, and what was to be expected.
        """
        later, trace, found = torch.zeros_like(ends), torch.zeros_like(ends), list[Tensor]()
        for step in reversed(steps):
            reward = torch.zeros_like(ends) if found else ends
            wrong = reward + self.how.discount * later - step.value
            trace = wrong + self.how.discount * self.how.trace * trace
            later = step.value
            found.insert(0, trace)
        advantages = torch.stack(found)
        return advantages, advantages + torch.stack([step.value for step in steps])

    def _loss(self, played: Step, advantage: Tensor, expected: Tensor) -> Tensor:
        said = self.agent(played.levels, played.context, self.own.repeat(len(expected)))
        ratio = torch.exp(said.log_prob(played.raw) - played.log_prob)
        clipped = ratio.clamp(1 - self.how.clip, 1 + self.how.clip)
        gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
        wrong = (said.value - expected).square().mean()
        result: Tensor = -gain + self.how.value * wrong - self.how.entropy * said.spread.log().mean()
        return result


def joined(steps: Sequence[Step]) -> Step:
    """Put several steps side by side, to look at all of them at once."""
    columns = ([getattr(step, name) for step in steps] for name in ("context", "raw", "log_prob", "value"))
    return Step(side_by_side([step.levels for step in steps]), *(torch.cat(column) for column in columns))


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
