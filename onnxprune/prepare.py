"""What is known of a model and its data before a search begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from onnxprune import model as models
from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.data import Data, Split, read_data, read_preprocess, split
from onnxprune.errors import InputError
from onnxprune.judging import Candidates, judge_on
from onnxprune.lossless import Lossless, find_lossless
from onnxprune.metrics import LATENCY, MEMORY, Costs
from onnxprune.model import Model
from onnxprune.predicting import kept
from onnxprune.predicting.alignment import fastest_multiple
from onnxprune.problem import FINE, Align, Problem
from onnxprune.progress import Progress
from onnxprune.settings import CompressSettings
from onnxprune.shapes import check_batch
from onnxprune.statistics import Statistics, collect
from onnxprune.targets import Target, parse_target

CALIBRATION, CALIBRATION_MACS = (256, 2048), 2e12
"""Samples to calibrate with where nothing is asked for: as many as run in a few minutes."""


@dataclass(frozen=True)
class Source:
    """What the user gave.

    Attributes:
        path: the model file.
        settings: targets, search and the rest, nothing left open.
        data: samples, see `read_data`; None where there are none.
        preprocess: how pixels become inputs, see `read_preprocess`.
        label_offset: the output index of a class is its label plus this.
        teacher: whose answers training learns; None: the model itself as it was.
    """

    path: Path
    settings: CompressSettings
    data: str | Path | None = None
    preprocess: str = "none"
    label_offset: int = 0
    teacher: Path | None = None

    def find(self, model: Model) -> Channels:
        """Find the channels of a model in the way that the settings ask for."""
        asked = self.settings
        return find_channels(model, asked.keep, approximate=asked.approximate, slots=asked.slots)


@dataclass(frozen=True)
class Prepared:
    """What is known before a search begins.

    Attributes:
        source: what the user gave.
        original: what can be cut from the model.
        lossless: the same, with what goes at no cost.
        costs: what plans cost.
        parts: the data, in parts that have no sample in common; None where there is none.
    """

    source: Source
    original: Channels
    lossless: Lossless
    costs: Costs
    parts: Split | None

    @cached_property
    def original_costs(self) -> dict[str, float]:
        """What the model costs as it was given."""
        return self.problem().original

    def problem(self, targets: Sequence[Target] = ()) -> Problem:
        """Pose the problem of the finest widths, for what can be told of it without importance."""
        asked = self.source.settings
        align = FINE if asked.multiple is None else Align(asked.multiple)
        return Problem(self.lossless.channels, self.costs, targets, [], align, asked.min_keep, self.lossless)

    def check_targets(self) -> None:
        """Make sure that targets which are counted can be met at all, before anything is measured.

        Raises:
            InputError: one is not understood.
            TargetError: one cannot be reached.
        """
        asked, original = self.source.settings.targets, self.original_costs
        counted = [parse_target(name, text, original[name]) for name, text in asked.items() if name in original]
        self.problem(counted).check_reachable()

    def statistics(self, progress: Progress | None = None) -> Statistics:
        """Collect what the layers of the model read on the calibration samples."""
        assert self.parts is not None
        return collect(
            self.lossless.channels, self.parts.calibration, seed=self.source.settings.seed, progress=progress
        )

    def candidates(self, statistics: Statistics, threads: int | None = None) -> Candidates:
        """Get ready to judge plans."""
        assert self.parts is not None
        asked = self.source.settings
        return Candidates(
            self.lossless.channels,
            self.parts,
            statistics,
            repair=asked.repair,
            seed=asked.seed,
            label_offset=self.source.label_offset,
            threads=threads,
        )


def prepare(source: Source) -> Prepared:
    """Load a model and its data, and find what can be cut.

    Raises:
        InputError: a file or an option is wrong.
    """
    runtime.check_provider(source.settings.device.provider)
    has_data = source.data is not None
    model = models.load(source.path, runtime.evaluate, source.settings.shapes, runs_batches=has_data)
    check_batch(source.path.name, source.settings.batch, source.settings.device.samples(model))
    data = None
    if source.data is not None:
        data = read_data(source.data, model, read_preprocess(source.preprocess), source.label_offset)
    original = source.find(model)
    parts = None if data is None else _parts(source, original, data)
    lossless = find_lossless(original, source.find, runtime.evaluate)
    return Prepared(source, original, lossless, Costs(lossless.channels), parts)


def predict(prepared: Prepared, progress: Progress) -> tuple[Prepared, dict[str, float]]:
    """Measure cuts where something is asked for that cannot be counted: time, memory, or which widths are fast.

    Returns:
        The same, with costs that tell what targets ask for and a multiple for all widths; and for each metric that is
        predicted its mean error, as a part of it.

    Raises:
        InputError: onnxruntime cannot run the model, or not on the device asked for.
    """
    asked, costs, errors = prepared.source.settings, prepared.costs, dict[str, float]()
    given = prepared.lossless.channels, costs, asked.device, progress
    if LATENCY in asked.targets or asked.align == "auto":
        predictor = kept.predictor(*given)
        if LATENCY in asked.targets:
            costs.predicted[LATENCY] = lambda counts: predictor.ms(counts) * 1e3
            errors[LATENCY] = predictor.error
        if asked.align == "auto":
            asked = replace(asked, align=fastest_multiple(prepared.lossless.channels, costs, predictor))
    if MEMORY in asked.targets:
        costs.predicted[MEMORY], errors[MEMORY] = kept.memory_predictor(*given)
    return replace(prepared, source=replace(prepared.source, settings=asked)), errors


def most_to_calibrate(source: Source, original: Channels) -> int:
    """Give the most samples that statistics and repair look at: fewer of a large model, unless it was said."""
    if source.settings.calibration is not None:
        return source.settings.calibration
    macs = float(Costs(original).of([group.width for group in original.groups])["macs"][0])
    return int(np.clip(CALIBRATION_MACS / max(macs, 1), *CALIBRATION))


def _parts(source: Source, original: Channels, data: Data) -> Split:
    """Split the data, and make sure that every part of it will do, before any work is done.

    Raises:
        InputError: there are too few samples, or labels that are not among the classes.
    """
    parts = split(data, seed=source.settings.seed, calibration=most_to_calibrate(source, original))
    fixed = original.model.fixed_batch(data.inputs[0].name)
    if fixed is not None and len(parts.calibration) < fixed:
        raise InputError(
            f"--data {data.source}: {len(parts.calibration)} of its samples are to calibrate with, and the model takes "
            f"{fixed} at once; give more samples, or export the model with a free batch"
        )
    if data.y is not None:
        judge_on(original, data.take(np.asarray([data.y.argmin(), data.y.argmax()])), source.label_offset)
    return parts
