"""What NVIDIA's driver says of the first GPU: its name, its clocks, and the memory that this process holds there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _device() -> Iterator[tuple[Any, Any] | None]:
    """Open the driver's library for as long as this lasts; None where there is none, or no GPU."""
    try:
        import pynvml  # in the extra `cuda`

        pynvml.nvmlInit()
    except Exception:  # it has an error of its own for each thing that can be missing
        yield None
        return
    try:
        device = _asked(pynvml, pynvml.nvmlDeviceGetHandleByIndex, 0)
        yield None if device is None else (pynvml, device)
    finally:
        pynvml.nvmlShutdown()


def _asked(library: Any, question: Callable[..., Any], *about: Any) -> Any:
    """Ask the driver; None where it does not know, as of a part of a GPU or in a virtual machine."""
    try:
        return question(*about)
    except library.NVMLError:
        return None


def held() -> int | None:
    """Give the bytes that this process holds on the GPU; None where that cannot be told."""
    with _device() as found:
        if found is None:
            return None
        library, device = found
        processes = _asked(library, library.nvmlDeviceGetComputeRunningProcesses, device)
    if processes is None:
        return None
    return next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), 0)


def described() -> dict[str, Any]:
    """Name the GPU, its driver and its clocks (MHz); nothing where there is none."""
    with _device() as found:
        if found is None:
            return {}
        library, device = found
        told = {
            "gpu": _asked(library, library.nvmlDeviceGetName, device),
            "driver": _asked(library, library.nvmlSystemGetDriverVersion),
            "gpu_mhz": _asked(library, library.nvmlDeviceGetClockInfo, device, library.NVML_CLOCK_SM),
        }
    return {name: value for name, value in told.items() if value is not None}
