"""The agent: an action for each group, the value of a state, and how it learns (PPO).

Every group acts by itself, on what the graph tells of it, so that one agent serves every network. It learns by PPO
(Schulman et al., arXiv 1707.06347). Ratios are clipped group by group: in a network of many groups the product of all
ratios leaves any range at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onnxprune.search.policy.encoder import Encoder, Level

LEAST_SPREAD, MOST_SPREAD = 0.05, 1.0  # of actions before they are squashed


@dataclass(frozen=True)
class Shape:
    """How large an agent is, and what it is told.

    Attributes:
        sizes: per stage the numbers of node and edge features.
        context: numbers that describe the state as a whole.
        width: of embeddings.
        rounds: of messages in each stage.
        spread: of actions before anything is learnt.
    """

    sizes: tuple[tuple[int, int], ...]
    context: int
    width: int = 48
    rounds: tuple[int, ...] = (1, 2, 3)
    spread: float = 0.1


@dataclass(frozen=True)
class Output:
    """What an agent says of some states.

    Attributes:
        mean: (groups of all states,) of actions, before they are squashed.
        spread: (groups of all states,) standard deviation of the same.
        value: (states,) what the agent expects.
    """

    mean: Tensor
    spread: Tensor
    value: Tensor

    def log_prob(self, raw: Tensor) -> Tensor:
        """Give the log-density of actions, (groups of all states,), but for what cancels in every ratio."""
        return -0.5 * ((raw - self.mean) / self.spread).square() - self.spread.log()


class Agent(nn.Module):
    """One network for the policy and the value of states.

    Args:
        shape: how large it is.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape.sizes, shape.width, shape.rounds)
        told = 2 * shape.width + shape.sizes[-1][0] + shape.context
        self.actor = _head(told, shape.width, 2)
        self.critic = _head(shape.width + shape.context, shape.width, 1)
        with torch.no_grad():  # the first actions are no corrections, with the spread that was asked for
            for head in (self.actor, self.critic):
                for values in head[-1].parameters():
                    values.mul_(0.01)

    def forward(self, levels: Sequence[Level], context: Tensor, offset: Tensor | None = None) -> Output:
        """Look at a batch of states.

        Args:
            levels: their graphs.
            context: (states, numbers that describe each).
            offset: (groups of all states,) what is added to the mean: corrections that belong to one network alone.
        """
        nodes, whole = self.encoder(levels)
        graph, features = levels[-1].graph, levels[-1].nodes
        mean, log_spread = self.actor(torch.cat([nodes, features, whole[graph], context[graph]], dim=1)).unbind(1)
        spread = (self.shape.spread * log_spread.exp()).clamp(LEAST_SPREAD, MOST_SPREAD)
        mean = mean if offset is None else mean + offset
        return Output(mean, spread, self.critic(torch.cat([whole, context], dim=1)).squeeze(1))


def _head(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))
