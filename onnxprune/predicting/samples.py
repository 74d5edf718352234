"""Times of cut networks, measured beside the original: what a model of times is fitted to.

Networks are cut at random, run in turns with the original, and their kernels are timed. Noise only ever adds, so of all
runs the shortest counts, as a part of the shortest of the original in the same turns. Each turn is two runs, of which
the second counts: the first finds the caches as the others left them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.channels import Channels
from onnxprune.model import Model
from onnxprune.plan import Plan
from onnxprune.predicting.device import Device
from onnxprune.problem import Align, step_of
from onnxprune.profiling.kernels import read_trace
from onnxprune.progress import Progress
from onnxprune.surgery import cut
from onnxprune.weights import Array, Floats, Ints

PLANS, FEWEST = 36, 16
LONGEST = 150.0  # seconds after which the fewest plans are enough
TURNS, MOST_TURNS = 6, 40  # of each plan
SECONDS = 0.4  # that a plan is measured for, if it has had its turns
ALIGNMENTS = (Align(8, 8), Align(8, 8), Align(16, 2), Align(1))  # of plans in turn: the widths that searches try
LEAST, SPREAD = 0.1, 0.4  # share of all widths, and how far each group's own goes from it, as a logarithm


@dataclass(frozen=True)
class Samples:
    """What was measured.

    Attributes:
        counts: (plans, groups) channels kept; the first plan keeps all.
        ms: (plans,) milliseconds of a run.
        nodes: (plans, nodes + 1) milliseconds of the kernels of each node of the model; the last is what moves data
            between layouts, or is not known.
    """

    counts: Ints
    ms: Floats
    nodes: Floats


def draw(channels: Channels, count: int, seed: int) -> Ints:
    """Draw plans that differ much in how much they keep, and of what: (count, groups), the first keeps all."""
    generator = np.random.default_rng(seed)
    widths = np.asarray([group.width for group in channels.groups], np.int64)
    rows = [widths]
    for number in range(1, count):
        align = ALIGNMENTS[number % len(ALIGNMENTS)]
        steps = np.asarray([step_of(group, align) for group in channels.groups], np.int64)
        shares = generator.uniform(LEAST, 1) * np.exp(generator.normal(0, SPREAD, len(widths)))
        rows.append(np.clip(np.round(shares * widths / steps) * steps, np.minimum(steps, widths), widths).astype(int))
    return np.stack(rows)


def measure(channels: Channels, device: Device, seed: int, progress: Progress) -> Samples:
    """Cut a model in many ways and time what comes out.

    Raises:
        InputError: onnxruntime cannot run the model, or not on this device.
    """
    model = channels.model
    feed = device.inputs(model)
    known = makers(model)
    original = device.session(model.proto, model.folder)
    rows, ms, nodes, start = draw(channels, PLANS, seed), [], [], time.monotonic()
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for number, row in enumerate(rows):
            if number >= FEWEST and time.monotonic() - start > LONGEST:
                break
            kept = (np.sort(generator.permutation(g.width)[:n]) for g, n in zip(channels.groups, row, strict=True))
            smaller = cut(channels, Plan(tuple(kept)), runtime.evaluate)
            plain = device.session(smaller, model.folder)
            traced = device.session(smaller, model.folder, Path(scratch) / str(number))
            ms.append(turns((original, plain, traced), feed, SECONDS)[:2])
            nodes.append(by_maker(traced.end_profile(), smaller, known, len(model.graph.nodes)))
            progress.step(number + 1, len(rows))
    before, after = np.asarray(ms).T
    whole = float(before.min())
    return Samples(rows[: len(ms)], after / before * whole, np.stack(nodes) * (whole / before)[:, None])


def turns(sessions: Sequence[runtime.Session], feed: Mapping[str, Array], seconds: float) -> Floats:
    """Run in turns, for so long if they have had the fewest; returns the shortest milliseconds of each session."""
    for session in sessions:
        session.run(feed)
    found: list[list[float]] = []
    start = time.perf_counter()
    while len(found) < TURNS or (len(found) < MOST_TURNS and time.perf_counter() - start < seconds):
        found.append([runtime.warm_runs(session, feed, 1)[0] for session in sessions])
    shortest: Floats = np.asarray(found, np.float64).min(axis=0)
    return shortest


def makers(model: Model) -> dict[str, int]:
    """Name the node that makes each tensor."""
    return {t.name: at for at, node in enumerate(model.graph.nodes) for t in node.outputs if t.name}


def by_maker(file: Path, model: ModelProto, known: Mapping[str, int], count: int) -> Floats:
    """Add up the shortest times of kernels by the node of the original that makes the same tensor."""
    found = np.zeros(count + 1)
    for kernel in read_trace(file, model.graph, 1).kernels:
        name = next(iter(model.graph.node[kernel.node].output), "") if kernel.node >= 0 else ""
        found[known.get(name, count)] += kernel.least_ms
    return found
