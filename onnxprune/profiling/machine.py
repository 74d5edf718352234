"""The machine that numbers were measured on, as far as it can be read."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from onnxprune.profiling import gpu

CPUINFO = Path("/proc/cpuinfo")


def described() -> dict[str, Any]:
    """Name the processor, its cores and clock (MHz, where it can be read), the system, and the GPU if there is one."""
    return {"system": platform.platform()} | processor() | gpu.described()


def processor() -> dict[str, Any]:
    """Name the processor, its cores and clock (MHz, where it can be read)."""
    found: dict[str, Any] = {"cpu": platform.processor(), "cores": os.cpu_count()}
    try:
        lines = [line.partition(":") for line in CPUINFO.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    about = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # the first core wins
    found["cpu"] = about.get("model name", found["cpu"]) or platform.machine()
    if "cpu MHz" in about:
        found["cpu_mhz"] = float(about["cpu MHz"])
    return found
