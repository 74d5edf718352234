"""Turns and rounds, with models that are made up and a clock that they move."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.profiling import intervals
from onnxprune.profiling.rounds import FEWEST, LONGEST_TURN, MOST, Rounds


class Machine:
    """A clock, and how much slower everything is at the moment."""

    def __init__(self, slow: float = 0.0) -> None:
        self.now = 0.0
        self._slow = slow

    def factor(self) -> float:
        return 1 + self._slow * (int(5 * self.now) % 2)  # a neighbour works every other fifth of a second


class Model:
    """Takes so many milliseconds, give or take some."""

    def __init__(self, machine: Machine, ms: float, noise: float = 0.0, seed: int = 0) -> None:
        self._machine, self._ms, self._noise = machine, ms, noise
        self._generator = np.random.default_rng(seed)
        self.turns: list[int] = []

    def run(self, count: int) -> list[float]:
        self.turns.append(count)
        found = []
        for _ in range(count):
            ms = self._ms * self._machine.factor() * float(np.exp(self._generator.normal(0, self._noise)))
            self._machine.now += ms / 1e3
            found.append(ms)
        return found


def measured(machine: Machine, *models: Model, precision: float = 0.01, seconds: float = 60.0) -> Rounds:
    rounds = Rounds(models, precision, seconds, lambda: machine.now)
    rounds.measure()
    return rounds


def test_quiet_models_take_the_fewest_rounds_there_are() -> None:
    machine = Machine()
    rounds = measured(machine, Model(machine, 5.0), Model(machine, 2.5))
    assert len(rounds.turns) == FEWEST
    assert intervals.ratio(*rounds.turns.T).median == pytest.approx(2)


def test_noise_takes_more_rounds_until_the_interval_is_narrow_enough() -> None:
    machine = Machine()
    rounds = measured(machine, Model(machine, 40, 0.1, 1), Model(machine, 20, 0.1, 2), precision=0.05, seconds=1e6)
    found = intervals.ratio(*rounds.turns.T)
    assert FEWEST < len(rounds.turns) < MOST
    assert found.width <= 0.05
    assert found.low <= 2 <= found.high


def test_the_time_that_was_given_ends_it() -> None:
    machine = Machine()
    rounds = measured(machine, Model(machine, 100, 0.5, 1), Model(machine, 100, 0.5, 2), precision=1e-6, seconds=9)
    assert 9 < machine.now < 11
    assert len(rounds.turns) >= FEWEST


def test_a_busy_neighbour_leaves_the_ratio_as_it_is() -> None:
    machine = Machine(slow=2.0)
    rounds = measured(machine, Model(machine, 15, 0.01, 1), Model(machine, 10, 0.01, 2), seconds=1e6)
    found = intervals.ratio(*rounds.turns.T)
    assert found.low <= 1.5 <= found.high
    assert np.ptp(rounds.turns[:, 0]) > 15  # although each alone varied threefold


def test_short_runs_are_put_together_and_each_run_is_kept() -> None:
    machine = Machine()
    short, long = Model(machine, 0.1), Model(machine, 30)
    rounds = measured(machine, short, long)
    assert short.turns[-1] == 1 + LONGEST_TURN  # one to warm the caches
    assert long.turns[-1] == 2
    assert [len(ms) for ms in rounds.ms] == [FEWEST * LONGEST_TURN, FEWEST]


def test_one_model_alone_is_measured_until_its_own_median_is_sure() -> None:
    machine = Machine()
    rounds = measured(machine, Model(machine, 20, 0.2, 1), precision=0.05, seconds=1e6)
    assert FEWEST < len(rounds.turns) < MOST
    assert intervals.median(rounds.turns[:, 0]).width <= 0.05
