"""How much memory this process holds, as the system counts it; on Linux alone, elsewhere nothing is known."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
FORGET_PEAK = "5"  # see `man proc`: the peak starts again from what is held now


def held() -> int | None:
    """Give the bytes that are held now."""
    return _read("VmRSS")


def peak() -> int | None:
    """Give the most bytes that were held since the start, or since `forget_peak`."""
    return _read("VmHWM")


def forget_peak() -> bool:
    """Count the peak anew from here; tells whether the system can."""
    try:
        CLEAR.write_text(FORGET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _read(name: str) -> int | None:
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith(f"{name}:")), None)
    return None if found is None else int(found[1]) * 1024
