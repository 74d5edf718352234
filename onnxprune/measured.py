"""What was measured of cut models, kept as it happens, so that a run that goes on decides as it would have.

Times differ from one measurement to the next, and a run takes other widths, or moves its limits, by what it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxprune.attempt import Attempt
from onnxprune.judging import digest
from onnxprune.profiling import machine
from onnxprune.profiling.intervals import Interval


@dataclass(frozen=True)
class Measurement:
    """What was measured of one cut model beside its original.

    Attributes:
        plan: digest of what stays.
        cpu: on which.
        before: milliseconds of the original.
        after: milliseconds of the cut model.
        speedup: how many times faster that is.
        memory: bytes of a process with either, where they were measured.
    """

    plan: str
    cpu: str
    before: dict[str, float]
    after: dict[str, float]
    speedup: Interval
    memory: tuple[int, int] | None


class Measurements:
    """Fills attempts with what was measured, or measures it and remembers.

    Args:
        known: what an interrupted run has measured.
        append: keeps what is new.
    """

    def __init__(
        self, known: Sequence[Measurement] = (), append: Callable[[Measurement], None] = lambda new: None
    ) -> None:
        self._known = {(entry.plan, entry.cpu): entry for entry in known}
        self._append = append

    def fill(self, attempt: Attempt, measure: Callable[[], None]) -> None:
        """Take what is known of an attempt's plan; else have it measured.

        Args:
            attempt: one that has been cut.
            measure: sets its times, and its memory where that is asked for.
        """
        name, cpu = digest(attempt.plan), machine.processor()["cpu"]
        found = self._known.get((name, cpu))
        if found is not None:
            attempt.before, attempt.after, attempt.speedup = found.before, found.after, found.speedup
            attempt.memory = found.memory
            return
        measure()
        assert attempt.before is not None
        assert attempt.after is not None
        assert attempt.speedup is not None
        new = Measurement(name, cpu, attempt.before, attempt.after, attempt.speedup, attempt.memory)
        self._append(new)
        self._known[name, cpu] = new
