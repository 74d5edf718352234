"""Whether other processes are at work while something is measured."""

from __future__ import annotations

from pathlib import Path

SCHEDULER = Path("/proc/thread-self/schedstat")
MOST = 0.05  # of the time; on a machine that does nothing else it is 1 % at most


def waited() -> float:
    """Give the milliseconds that this thread could have run in, but others had the processor; 0 where nothing tells.

    Linux counts them: the second number of schedstat, in nanoseconds.
    """
    try:
        return int(SCHEDULER.read_text(encoding="ascii").split()[1]) / 1e6
    except (OSError, IndexError, ValueError):
        return 0.0


def is_busy(share: float) -> bool:
    """Tell whether so much of the time was lost to other processes that what was measured suffers."""
    return share > MOST
