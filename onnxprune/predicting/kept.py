"""Times and memory that were measured once are kept in the user's cache, by model, machine and version."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from onnxprune.channels import Channels
from onnxprune.files import aside
from onnxprune.metrics import Costs
from onnxprune.predicting import memory
from onnxprune.predicting.device import Device
from onnxprune.predicting.features import Features
from onnxprune.predicting.predictor import Predictor
from onnxprune.predicting.samples import Samples, measure
from onnxprune.profiling import machine
from onnxprune.progress import Progress
from onnxprune.reporting import versions
from onnxprune.weights import Array, Floats

FORMAT = 2  # of what is kept
MOST = 200  # files; those that were used longest ago go first
KEPT = {"latency": ("counts", "ms", "nodes"), "memory": ("counts", "bytes")}
SEED = 0  # of the plans that are measured, which no search has a part in


def predictor(channels: Channels, costs: Costs, device: Device, progress: Progress) -> Predictor:
    """Get ready to predict the times of plans, from times that are measured now, or were before.

    Raises:
        InputError: onnxruntime cannot run the model, or not on this device.
    """

    def taken() -> dict[str, Array]:
        samples = measure(channels, device, SEED, progress)
        return {"counts": samples.counts, "ms": samples.ms, "nodes": samples.nodes}

    kept = _kept("latency", channels, device, taken)
    return Predictor(Features(channels, costs), Samples(**kept), device)


def memory_predictor(
    channels: Channels, costs: Costs, device: Device, progress: Progress
) -> tuple[Callable[[Floats], Floats], float]:
    """Get ready to predict the memory of plans, see `memory.predictor`: the same again, however much processes vary.

    Raises:
        InputError: onnxruntime cannot run the model, or the system does not tell what a process holds.
    """

    def taken() -> dict[str, Array]:
        counts, most = memory.measure(channels, device, progress)
        return {"counts": counts, "bytes": most}

    kept = _kept("memory", channels, device, taken)
    return memory.predictor(costs, kept["counts"], kept["bytes"])


def _kept(what: str, channels: Channels, device: Device, measure: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Take what was measured before, or measure it now."""
    file = user_cache_path("onnxprune") / what / f"{_key(channels, device)}.npz"
    found = _load(file, KEPT[what])
    if found is None:
        found = measure()
        with suppress(OSError):  # a folder that cannot be written: it is measured again next time
            _save(file, found)
    return found


def _key(channels: Channels, device: Device) -> str:
    """Name what times depend on."""
    model, about = channels.model, machine.described()
    where = {name: about.get(name) for name in ("cpu", "cores", "gpu", "driver")}
    used = {name: version for name, version in versions().items() if name.startswith(("onnxruntime", "onnxprune"))}
    groups = [(group.name, group.width) for group in channels.groups]
    text = f"{FORMAT} {SEED} {sorted(model.bound.items())} {device} {where} {used} {groups} {model.sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _load(file: Path, names: Sequence[str]) -> dict[str, Array] | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
    with suppress(OSError):
        os.utime(file)
    return found


def _save(file: Path, found: Mapping[str, Array]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as draft:
        np.savez(draft, **found)  # type: ignore[arg-type]
    kept = sorted(file.parent.glob("*.npz"), key=lambda other: other.stat().st_mtime, reverse=True)
    for old in kept[MOST:]:
        old.unlink(missing_ok=True)
