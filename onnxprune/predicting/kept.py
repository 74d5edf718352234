"""Times that were measured once are kept in the user's cache, by model, machine and version."""

from __future__ import annotations

import hashlib
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from onnxprune.channels import Channels
from onnxprune.files import aside
from onnxprune.metrics import Costs
from onnxprune.predicting.device import Device
from onnxprune.predicting.features import Features
from onnxprune.predicting.predictor import Predictor
from onnxprune.predicting.samples import Samples, measure
from onnxprune.profiling import machine
from onnxprune.progress import Progress
from onnxprune.reporting import versions

FORMAT = 2  # of what is kept
MOST = 200  # files; those that were used longest ago go first
SEED = 0  # of the plans that are measured, which no search has a part in


def predictor(channels: Channels, costs: Costs, device: Device, progress: Progress) -> Predictor:
    """Get ready to predict the times of plans, from times that are measured now, or were before.

    Raises:
        InputError: onnxruntime cannot run the model, or not on this device.
    """
    home = user_cache_path("onnxprune") / "latency"
    file = home / f"{_key(channels, device)}.npz"
    samples = _load(file)
    if samples is None:
        samples = measure(channels, device, SEED, progress)
        with suppress(OSError):  # a folder that cannot be written: it is measured again next time
            _save(file, samples)
    return Predictor(Features(channels, costs), samples, device)


def _key(channels: Channels, device: Device) -> str:
    """Name what times depend on."""
    model, about = channels.model, machine.described()
    where = {name: about.get(name) for name in ("cpu", "cores", "gpu", "driver")}
    used = {name: version for name, version in versions().items() if name.startswith(("onnxruntime", "onnxprune"))}
    groups = [(group.name, group.width) for group in channels.groups]
    text = f"{FORMAT} {SEED} {sorted(model.bound.items())} {device} {where} {used} {groups} {model.sha256}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _load(file: Path) -> Samples | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            found = Samples(arrays["counts"], arrays["ms"], arrays["nodes"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None
    with suppress(OSError):
        os.utime(file)
    return found


def _save(file: Path, samples: Samples) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as draft:
        np.savez(draft, counts=samples.counts, ms=samples.ms, nodes=samples.nodes)
    kept = sorted(file.parent.glob("*.npz"), key=lambda other: other.stat().st_mtime, reverse=True)
    for old in kept[MOST:]:
        old.unlink(missing_ok=True)
