"""Searches, one per file: a file ``NAME.py`` with a function ``search`` is what ``--search NAME`` runs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from onnxprune.plan import Plan
from onnxprune.problem import Problem


@dataclass(frozen=True)
class SearchSettings:
    """What every search obeys.

    Attributes:
        budget: how many candidates it may judge.
        seed: same seed, same result.
    """

    budget: int = 100
    seed: int = 0


Progress = Callable[[int, int], None]
"""Told how many candidates are done, of how many."""

Search = Callable[[Problem, SearchSettings, Progress], Plan]


def names() -> list[str]:
    """List the searches."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Search:
    """Import a search by name."""
    search: Search = importlib.import_module(f"{__name__}.{name}").search
    return search
