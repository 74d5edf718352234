"""How much memory a process needs to run a model: measured for some cuts of it, predicted for all others.

A process holds what onnxruntime itself needs, the weights, often twice (rearranged for its kernels), and an arena for
activations. What each of these weighs is fitted to processes that really ran.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from scipy.optimize import nnls

from onnxprune import model as models
from onnxprune import runtime
from onnxprune.channels import Channels
from onnxprune.errors import InputError
from onnxprune.metrics import Costs
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.predicting.device import Device
from onnxprune.problem import Counts
from onnxprune.profiling.process import Subject, write_feed
from onnxprune.progress import Progress
from onnxprune.surgery import cut
from onnxprune.weights import Floats

SHARES = (1.0, 0.75, 0.5, 0.3, 0.15, 0.05)  # of all widths, of the cuts that are measured
USES = 3  # runs whose memory is looked at
PARTS = ("file_bytes", "activation_bytes")


def needed(proto: ModelProto, model: Model, device: Device) -> int | None:
    """Run a model in a process of its own; returns the most bytes that it needs above those of an empty one.

    Args:
        proto: what to run.
        model: which it was made from; external data lies in its folder.
        device: what it runs on: on a GPU, the memory there counts.

    Returns:
        None where the system does not tell, or the model reads text, for which no inputs can be made up.

    Raises:
        InputError: onnxruntime cannot run it.
    """
    inputs = device.inputs(model)
    if any(values.dtype == object for values in inputs.values()):
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        file, feed = Path(scratch) / "model.onnx", Path(scratch) / "feed.npz"
        models.save(proto, file, model.folder)
        write_feed(feed, inputs)
        with Subject(file, feed, provider=device.provider, threads=device.threads or None) as subject:
            used, before = subject.use(USES), subject.loaded
    if device.provider == runtime.CPU:
        most, base = used["peak"], before["before"]
    else:
        most, base = used["device_held"], before["device_before"]
    return None if most is None or base is None else max(int(most) - int(base), 0)


def measure(channels: Channels, device: Device, progress: Progress) -> tuple[Counts, Floats]:
    """Measure some cuts of a model: the channels of each, (cuts, groups), and the bytes that they need.

    Raises:
        InputError: onnxruntime cannot run the model, or the system does not tell what a process holds.
    """
    rows, found = [], []
    for number, share in enumerate(SHARES):
        row = np.asarray([max(1, round(share * group.width)) for group in channels.groups])
        smaller = cut(channels, Plan(tuple(np.arange(count) for count in row)), runtime.evaluate)
        most = needed(smaller, channels.model, device)
        if most is None:
            raise InputError("--memory: it cannot be told here how much memory a process needs that runs this model")
        rows.append(row)
        found.append(float(most))
        progress.step(number + 1, len(SHARES))
    return np.stack(rows), np.asarray(found)


def predictor(costs: Costs, rows: Counts, target: Floats) -> tuple[Callable[[Floats], Floats], float]:
    """Learn from what was measured; returns what gives the bytes of plans (plans, groups), and its mean error.

    Args:
        costs: of the model.
        rows: cuts, see `measure`.
        target: the bytes they need.
    """
    parts = _parts(costs, rows)
    size = np.maximum(parts.max(axis=0), 1e-12)
    weights = nnls(parts / size / target[:, None], np.ones(len(target)))[0] / size  # errors count as parts

    def predict(counts: Floats) -> Floats:
        predicted: Floats = _parts(costs, counts) @ weights
        return predicted

    return predict, float(np.abs(parts @ weights / target - 1).mean())


def _parts(costs: Costs, counts: npt.ArrayLike) -> Floats:
    """Give what memory is made of: (plans, 1 + parts), first what any process needs."""
    counted = costs.counted(counts)
    return np.stack([np.ones(len(counted["macs"])), *(counted[name] for name in PARTS)], axis=1)
