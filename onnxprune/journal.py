"""Every plan that was judged, kept as it happens, so that a run that goes on judges nothing twice.

A search that goes on starts from its beginning, with the same seed. What it asks for is answered from here until it
comes to what the interrupted run had not seen, so it ends where an uninterrupted one does.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnxprune.judging import digest
from onnxprune.plan import Plan
from onnxprune.problem import Effort, Judging

DIGITS = 3  # of seconds


Kind = Literal["probe", "quick", "full", "drop"]


@dataclass(frozen=True)
class Entry:
    """One plan that was judged.

    Attributes:
        plan: its digest.
        effort: with which it was judged; ``drop``: the points that it loses on the samples held out.
        error: what came of it; smaller is better. None stands for a number that is not finite.
        counts: channels kept per group.
        seconds: of searching until then, in all that the run took.
    """

    plan: str
    effort: Kind
    error: float | None
    counts: tuple[int, ...]
    seconds: float


class Journal:
    """Judges plans, and remembers.

    Args:
        judging: judges what is not known.
        entries: what is known.
        began: how many of them there were when this run began; the others are its own, of before it was interrupted.
        earlier: how many of them are of runs for something else that finished before it.
        together: plans that are judged at once; an interrupt loses no more than these.
        append: keeps new entries; called for every question, before it is answered, whether or not there are any.
        clock: gives the time in seconds.

    Attributes:
        entries: all that is known.
        earlier: what finished runs for something else have left.
        seconds: of searching, when a plan was last judged. What is only repeated counts as it did the first time: a
            search that asks for the time gets the same answers when it goes on.
    """

    def __init__(
        self,
        judging: Judging,
        entries: Sequence[Entry] = (),
        *,
        began: int = 0,
        earlier: int = 0,
        together: int = 1,
        append: Callable[[Sequence[Entry]], None] = lambda entries: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._judging, self._together, self._append, self._clock = judging, together, append, clock
        self.entries = list(entries)
        self.earlier = tuple(entries[:earlier])
        self.seconds = 0.0
        self._known: dict[tuple[str, Kind], Entry] = {(entry.plan, entry.effort): entry for entry in entries}
        self._own = {(entry.plan, entry.effort) for entry in entries[began:]}
        self._asked: dict[tuple[str, Kind], None] = {}  # in the order of the questions
        self._since = clock()

    @property
    def judged(self) -> dict[str, int]:
        """Number of plans that this run asked for, by effort."""
        return dict(Counter(effort for _, effort in sorted(self._asked)))

    @property
    def answered(self) -> list[Entry]:
        """What earlier runs have left, and what this one has asked for so far: the same when it goes on."""
        return list(dict.fromkeys([*self.earlier, *(self._known[asked] for asked in self._asked)]))

    def errors(self, plans: Sequence[Plan], *, effort: Effort = "quick") -> list[float]:
        """Judge plans; each only once. What is not a number is infinite here."""
        names = [digest(plan) for plan in plans]
        unknown = {name: plan for name, plan in zip(names, plans, strict=True) if (name, effort) not in self._known}
        missing = list(unknown.values())
        for name in names:
            if name not in unknown:
                self._answer(name, effort)  # its time counts before that of the others
        for start in range(0, len(missing), self._together):
            part = missing[start : start + self._together]
            self._note(part, self._judging.errors(part, effort=effort), effort)
        if not missing:
            self._append([])
        return [self._answer(name, effort) for name in names]

    def drop(self, plan: Plan, measure: Callable[[], float]) -> float:
        """Give the points that a plan loses on the samples held out; measured once."""
        name = digest(plan)
        if (name, "drop") not in self._known:
            self._note([plan], [measure()], "drop")
        return self._answer(name, "drop")

    def _note(self, plans: Sequence[Plan], errors: Sequence[float], effort: Kind) -> None:
        seconds = round(self._clock() - self._since, DIGITS)
        new = [
            Entry(digest(plan), effort, float(e) if math.isfinite(e) else None, tuple(plan.counts.tolist()), seconds)
            for plan, e in zip(plans, errors, strict=True)
        ]
        self._append(new)
        self.entries += new
        self._known |= {(entry.plan, entry.effort): entry for entry in new}
        self._own |= {(entry.plan, entry.effort) for entry in new}

    def _answer(self, name: str, effort: Kind) -> float:
        entry = self._known[name, effort]
        self._asked[name, effort] = None
        if (name, effort) in self._own:
            self.seconds = max(self.seconds, entry.seconds)
            self._since = min(self._since, self._clock() - self.seconds)
        return math.inf if entry.error is None else entry.error


def pareto(errors: npt.ArrayLike, costs: npt.ArrayLike) -> list[int]:
    """Find the plans that none beats: no other costs and errs as little, and less in one of these.

    Args:
        errors: (plans,).
        costs: (plans, kinds) what each costs.

    Returns:
        Their positions, cheapest first, by the first kind of cost.
    """
    numbers = np.column_stack([np.asarray(costs, float), np.asarray(errors, float)])
    found = list[int]()
    for position in np.lexsort(numbers.T[::-1]):  # what beats a plan comes before it
        least, own = numbers[found], numbers[position]
        if not ((least <= own).all(axis=1) & (least < own).any(axis=1)).any():
            found.append(int(position))
    return found
