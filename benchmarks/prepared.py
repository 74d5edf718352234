"""What several benchmarks begin with."""

from __future__ import annotations

import argparse
from pathlib import Path

import onnxprune
from onnxprune.criteria import Evidence, importance
from onnxprune.prepare import Prepared, Source, prepare
from onnxprune.problem import FINE, Align, Problem
from onnxprune.settings import CompressSettings, resolve
from onnxprune.statistics import Statistics
from onnxprune.targets import parse_target


def ready(arguments: argparse.Namespace, seed: int = 0) -> tuple[Prepared, Statistics, Problem]:
    """Load a model and its data, and rank its channels for one target."""
    settings = resolve(CompressSettings({"macs": arguments.flops}, seed=seed), True)
    prepared = prepare(Source(arguments.model, settings, arguments.data, arguments.preprocess))
    statistics, channels = prepared.statistics(), prepared.lossless.channels
    target = parse_target("macs", arguments.flops, prepared.original_costs["macs"])
    worth = importance(Evidence(channels, seed, statistics), "obs")
    asked = getattr(arguments, "align", None)
    align = FINE if asked is None else Align(asked)
    return prepared, statistics, Problem(channels, prepared.costs, [target], worth, align, lossless=prepared.lossless)


def macs(file: Path) -> int:
    """Count what a model multiplies."""
    return onnxprune.inspect(file).costs["macs"]
