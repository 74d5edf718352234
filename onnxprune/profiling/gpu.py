"""What NVIDIA's driver says of the first GPU: its name, its clocks, and the memory that this process holds there."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
        yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        yield None
    finally:
        pynvml.nvmlShutdown()


def held() -> int | None:
    """Give the bytes that this process holds on the GPU; None where that cannot be told."""
    with _device() as found:
        if found is None:
            return None
        library, device = found
        processes = library.nvmlDeviceGetComputeRunningProcesses(device)
    return next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), 0)


def described() -> dict[str, Any]:
    """Name the GPU, its driver and its clocks (MHz); nothing where there is none."""
    with _device() as found:
        if found is None:
            return {}
        library, device = found
        return {
            "gpu": library.nvmlDeviceGetName(device),
            "driver": library.nvmlSystemGetDriverVersion(),
            "gpu_mhz": library.nvmlDeviceGetClockInfo(device, library.NVML_CLOCK_SM),
        }
