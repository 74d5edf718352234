"""Episodes behind the interface of Gymnasium, for agents of others."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from onnxprune.search.policy.environment import CONTEXT, Episodes
from onnxprune.weights import Floats


class PruningEnv(gymnasium.Env[dict[str, Any], Floats]):
    """One episode at a time, behind the interface of Gymnasium.

    Observations: ``kept``, the share of each group that is left; ``corrections``; ``context``, see `CONTEXT`. The graph
    follows from them: `Episodes.graph`. Actions: a number from -1 to 1 for each group. The reward comes at the end.

    Args:
        episodes: where it takes place.
    """

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self.state = episodes.begin()
        groups, box = episodes.groups, gymnasium.spaces.Box
        reach = episodes.largest * episodes.length * (1 + 1e-9)  # sums are rounded
        self.action_space = box(-1, 1, (groups,), np.float64)
        self.observation_space = gymnasium.spaces.Dict(
            kept=box(0, 1, (groups,), np.float64),
            corrections=box(-reach, reach, (groups,), np.float64),
            context=box(-np.inf, np.inf, (len(CONTEXT),), np.float64),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin with the whole network."""
        super().reset(seed=seed)
        self.state = self.episodes.begin()
        return self._observed(), {}

    def step(self, action: Floats) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Make groups dearer or cheaper; at the end of the episode, judge the plan that comes of it."""
        if self.state.step >= self.episodes.length:
            raise gymnasium.error.ResetNeeded("the episode has ended; call reset")
        self.state = self.episodes.after(self.state, np.asarray(action, np.float64))
        if self.state.step < self.episodes.length:
            return self._observed(), 0.0, False, False, {}
        plan = self.episodes.problem.plan(self.state.counts)
        return self._observed(), float(self.episodes.rewards([plan])[0]), True, False, {"counts": plan.counts}

    def _observed(self) -> dict[str, Any]:
        state = self.state
        return {
            "kept": state.counts / np.maximum(self.episodes.problem.widths, 1),
            "corrections": state.corrections,
            "context": self.episodes.context(state),
        }
