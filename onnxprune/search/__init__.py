"""Searches, one per file: a file ``NAME.py`` with a function ``search`` is what ``--search NAME`` runs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from onnxprune.plan import Plan
from onnxprune.problem import Problem


@dataclass(frozen=True)
class SearchSettings:
    """What every search obeys.

    Attributes:
        budget: how many candidates it may judge; one that it comes to again costs nothing (but in `amc`).
        seed: same seed, same result.
        stop: tells whether it is to come to its end, with the best that it has; asked between candidates.
        policy: file of the policy that a search starts from, where it has one; None: it knows nothing.
        preset: how `gnn_rl` plays and learns, see `PRESETS`.
    """

    budget: int = 100
    seed: int = 0
    stop: Callable[[], bool] = lambda: False
    policy: Path | None = None
    preset: str = "default"


IDLE = 10  # times in a row that a search comes to no plan that is new: then it has seen what it can
TOGETHER = 8  # plans that a search asks for at once

PRESETS = ("default", "paper")
"""How `gnn_rl` plays and learns: as here, or as it was published."""

Progress = Callable[[int, int], None]
"""Told how many candidates are done, of how many."""

Search = Callable[[Problem, SearchSettings, Progress], Plan]


class Budget:
    """What a search has left of its budget; a plan that it comes to again costs nothing.

    Args:
        problem: where it judges plans.
        settings: what it obeys.
        progress: told whenever plans were new.
        used: how much of the budget is gone before it begins.
    """

    def __init__(self, problem: Problem, settings: SearchSettings, progress: Progress, used: int = 0) -> None:
        self._problem, self._settings, self._progress = problem, settings, progress
        self._used, self._known, self._idle = used, problem.judged, 0

    @property
    def left(self) -> int:
        """How many different plans it may still judge."""
        return self._settings.budget - self._used

    def goes_on(self) -> bool:
        """Tell whether it is to try more plans."""
        return self.left > 0 and self._idle < IDLE and not self._settings.stop()

    def count(self) -> None:
        """Take note of what was judged since the last time."""
        new = self._problem.judged - self._known
        self._used, self._known = self._used + new, self._known + new
        self._idle = 0 if new else self._idle + 1
        if new:
            self._progress(self._used, self._settings.budget)


def names() -> list[str]:
    """List the searches."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


def find(name: str) -> Search:
    """Import a search by name."""
    search: Search = _module(name).search
    return search


def learns(name: str) -> bool:
    """Tell whether a search learns from the plans that were judged before it, see `Problem.known`."""
    return bool(getattr(_module(name), "LEARNS", False))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
