"""One report of a run; the terminal table and the JSON file are views of it."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from onnxprune.weights import Array

FORMAT = "onnxprune.report/1"


@dataclass
class Measured:
    """What a model costs and does; None where it was not measured.

    Attributes:
        macs: multiply-accumulates of one run at the measured input shape.
        params: stored numbers.
        file_bytes: size of the file, external data included.
        activation_bytes: most bytes of activations alive at once, counted.
        latency_ms: median, p10 and p90 of one run.
        per_second: samples, by that median.
        memory_bytes: most that a process needs to run it, above an empty one, see docs/measuring.md.
        accuracy: share of samples whose class is right.
    """

    macs: int
    params: int
    file_bytes: int
    activation_bytes: int
    latency_ms: dict[str, float] | None = None
    per_second: float | None = None
    memory_bytes: int | None = None
    accuracy: float | None = None


@dataclass
class Report:
    """What a run of compress did.

    Attributes:
        headline: the first line a user should read.
        model: the input file's name.
        output: the output file's name, None on a dry run.
        before: the original.
        after: the result.
        speedup: how many times faster the result runs, where that lies with a confidence of 95 %, and what its FLOPs
            suggest (``ideal``); None where nothing was timed.
        target: per metric what was asked, the limit, and the value reached.
        score: how the search judged the plan, larger is better: with data the error of its answers times -1, without
            the share of importance that it keeps.
        lossless: how many channels went at no cost, and the share of the MACs that went with them.
        groups: per group its name, width, channels kept and step.
        frozen: what stays and why, with its share of the MACs.
        stages: what the original, the cut, the repaired and the trained model answer to samples held out.
        data: which samples were used for what.
        checks: what was verified.
        alignments: what each alignment tried gave.
        search: plans that were judged, by effort, in how many seconds, and why the search ended early if it did.
        training: per epoch the mean loss, and loss and accuracy on the samples of the search; which epoch was taken
            (0 is before training), and what the user should know of it. Empty where nothing was trained.
        notes: what else the user should know.
        settings: the settings of the run.
        seconds: time per stage.
    """

    headline: str
    model: str
    output: str | None
    before: Measured
    after: Measured
    target: dict[str, dict[str, Any]]
    score: float | None
    groups: list[dict[str, Any]]
    frozen: list[dict[str, Any]]
    speedup: dict[str, float] | None = None
    lossless: dict[str, float] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    alignments: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_stages(self, stages: list[dict[str, Any]]) -> None:
        """Note what the original, the cut model and the result answer."""
        self.stages = stages
        self.before.accuracy = stages[0].get("accuracy")
        self.after.accuracy = stages[-1].get("accuracy")

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain JSON values."""
        return {
            "format": FORMAT,
            **{name: value for name, value in vars(self).items() if name not in ("before", "after")},
            "before": vars(self.before),
            "after": vars(self.after),
            "versions": versions(),
        }


def plain(value: Any) -> Any:
    """Put None for every number that is not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Name the versions that a number depends on."""
    found = {"python": platform.python_version()}
    for name in ("onnxprune", "onnx", "onnxruntime-gpu", "onnxruntime", "onnx-graphsurgeon", "numpy", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def latency(times: Array) -> dict[str, float]:
    """Sum up measured milliseconds."""
    p10, median, p90 = np.percentile(times, [10, 50, 90])
    return {"median": round(float(median), 4), "p10": round(float(p10), 4), "p90": round(float(p90), 4)}
