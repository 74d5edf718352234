"""What each part of gnn_rl brings: the same search without it, at the same budget.

    python benchmarks/ablation.py MODEL --flops 0.3 --data train.npz [--budget 100] [--seeds 3] [--parts full,no-gnn]

The least error found (KL divergence on search samples), as a logarithm beside that of the greedy plan: -0.1 is 10 %
less. `no-agent`: the agent learns nothing. `no-gnn`: the agent sees no graph, but the features of each group alone.
`one-stage`: the graph of groups without those below. `no-alike`: groups that are alike in the graph are not taken to
matter alike. `no-probes`: no group is cut alone at first. `no-aims`: episodes are the agent's own, none is shifted to
what might be best. `no-obs`: no feature tells what channels are worth. `no-state`: the graph is that of the whole
network, whatever was cut. `no-thought`: no actions but those played.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from prepared import ready
from threadpoolctl import threadpool_limits
from torch import nn

from onnxprune.problem import Counts, Problem
from onnxprune.runtime import BLAS_THREADS
from onnxprune.search import SearchSettings, gnn_rl, greedy
from onnxprune.search.policy import environment, learning
from onnxprune.search.policy.agent import Agent, Shape
from onnxprune.search.policy.encoder import Level
from onnxprune.search.policy.environment import Episodes, State
from onnxprune.search.policy.learning import Learner
from onnxprune.search.policy.prior import ALIKE
from onnxprune.stages import Stage, Stages
from onnxprune.weights import Floats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--flops", default="0.3")
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS))
    arguments = parser.parse_args()
    prepared, statistics, problem = ready(arguments)
    problem.judging = prepared.candidates(statistics)
    with threadpool_limits(limits=BLAS_THREADS, user_api="blas"):
        start = problem.plan(greedy.warm_start(problem, SearchSettings(arguments.budget), lambda done, of: None)[0])
        (least,) = problem.judging.errors([start])
        for part in arguments.parts.split(","):
            gains = [
                gain(problem, part, SearchSettings(arguments.budget, seed), least) for seed in range(arguments.seeds)
            ]
            told = " ".join(f"{value:+.3f}" for value in gains)
            print(f"{arguments.model.stem} | {arguments.flops} | {part} | {np.mean(gains):+.3f} | {told}", flush=True)


def gain(problem: Problem, part: str, settings: SearchSettings, least: float) -> float:
    """Search without a part, and give the logarithm of the least error beside that of the greedy plan."""
    problem = untouched(problem)
    with ExitStack() as stack:
        for place, name, stand_in in PARTS[part]:
            stack.enter_context(patch.object(place, name, stand_in))
        gnn_rl.search(problem, settings, lambda done, of: None)
    return float(np.log(min(-score for _, score in problem.visited.values()) / least))


def untouched(problem: Problem) -> Problem:
    """Give the same problem of which no plan was judged: one that was counts for nothing of a budget."""
    found = copy(problem)
    found.visited, found.asked, found.known = {}, set(), []
    return found


class Alone(Agent):
    """An agent without a graph: it sees the features of each group, and the context."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.encoder = Blind(shape.width)  # type: ignore[assignment]


class Blind(nn.Module):
    """Stands in for an encoder, and tells nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width

    def forward(self, levels: Sequence[Level]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give embeddings of zeros, of the groups and of the states."""
        graph = levels[-1].graph
        return torch.zeros(len(graph), self._width), torch.zeros(int(graph.max()) + 1, self._width)


class OneStage(Episodes):
    """The graph of groups alone."""

    def graph(self, state: State) -> tuple[Stage, ...]:
        """Draw a state."""
        return super().graph(state)[-1:]


class Frozen(Episodes):
    """The graph of the whole network, with no corrections yet."""

    def graph(self, state: State) -> tuple[Stage, ...]:
        """Draw the first state."""
        return super().graph(self.begin())


class Worthless(Episodes):
    """No feature tells what channels are worth; plans still follow it."""

    def __init__(self, problem: Problem, start: Counts, length: int) -> None:
        super().__init__(problem, start, length)
        self.stages = Stages(problem.channels, problem.costs)

    def graph(self, state: State) -> tuple[Stage, ...]:
        """Draw a state without the plan to start from and what kinds of groups count."""
        nothing = np.zeros(self.groups)
        return self.stages.at(state.counts, np.stack([state.corrections, nothing, nothing], axis=1))

    def context(self, state: State) -> Floats:
        """Describe a state without what the plan to start from loses."""
        return np.asarray([*super().context(state)[:-1], 0.0])


def unlike(features: Floats) -> Floats:
    """Take no group to be like another."""
    return ALIKE * np.eye(len(features))


SHAPE, LEARNING = learning.fresh().shape, learning.Learning()
PARTS: dict[str, list[tuple[object, str, object]]] = {
    "full": [],
    "no-agent": [(learning, "Learning", lambda: replace(LEARNING, rate=0.0, own_rate=0.0))],
    "no-gnn": [(learning, "fresh", lambda: Alone(SHAPE))],
    "one-stage": [
        (environment, "Episodes", OneStage),
        (learning, "fresh", lambda: Agent(replace(SHAPE, sizes=SHAPE.sizes[-1:], rounds=SHAPE.rounds[-1:]))),
    ],
    "no-alike": [(environment, "likeness", unlike)],
    "no-probes": [(gnn_rl, "PROBED", 0.0)],
    "no-aims": [(Learner, "aims", lambda learner, number: [])],
    "no-obs": [(environment, "Episodes", Worthless)],
    "no-state": [(environment, "Episodes", Frozen)],
    "no-thought": [(learning, "Learning", lambda: replace(LEARNING, thoughts=0))],
}
"""What stands in for what without a part: where that is, its name, and the stand-in."""


if __name__ == "__main__":
    main()
