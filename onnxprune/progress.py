"""What a run tells while it goes on, and how long its stages take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told what is going on; the command line shows it."""

    def say(self, text: str) -> None:
        """Say something that the user must read."""

    def stage(self, name: str) -> None:
        """Say that a stage begins."""

    def step(self, done: int, total: int, text: str = "", limit: float | None = None) -> None:
        """Say how far the stage is, what it has come to, and in how many seconds it ends at the latest."""


class Quiet:
    """Progress that nobody sees."""

    def say(self, text: str) -> None:
        """Ignore."""

    def stage(self, name: str) -> None:
        """Ignore."""

    def step(self, done: int, total: int, text: str = "", limit: float | None = None) -> None:
        """Ignore."""


class Clock:
    """Times the stages of a run."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and time it."""
        self._progress.stage(name)
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add to what a stage has taken."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)
