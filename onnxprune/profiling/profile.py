"""Models side by side in onnxruntime: ``onnxprune profile``."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import model as models
from onnxprune import runtime
from onnxprune import shapes as sizes
from onnxprune.errors import InputError
from onnxprune.profiling import intervals, load, machine
from onnxprune.profiling.intervals import Interval
from onnxprune.profiling.kernels import Trace, by_node, by_op, by_provider, read_trace
from onnxprune.profiling.process import Subject, write_feed
from onnxprune.profiling.rounds import Rounds
from onnxprune.progress import Progress, Quiet
from onnxprune.reporting import latency, versions
from onnxprune.weights import Array, Floats, external_place, is_external

FORMAT = "onnxprune.profile/1"
USES = 3  # runs whose memory is looked at
TRACED, TRACE_WARM_UP = 12, 3  # runs whose kernels are timed, after some that do not count


@dataclass(frozen=True)
class ProfileSettings:
    """How models are measured.

    Attributes:
        provider: what runs them: a key of `runtime.PROVIDERS`, or onnxruntime's own name.
        batch: samples at a time; None: 1, or what the file fixes.
        threads: that one operator may use; 0 leaves it to onnxruntime.
        optimize: how far onnxruntime may rewrite the graph, see `runtime.LEVELS`.
        bind: whether inputs and outputs stay on the device, so that no copies count.
        precision: half of the interval of 95 % at which it is enough, as a part of its middle.
        seconds: after which it is enough in any case.
    """

    provider: str = "cpu"
    batch: int | None = None
    threads: int = 1
    optimize: str = "all"
    bind: bool = False
    precision: float = 0.01
    seconds: float = 20.0

    @property
    def provider_name(self) -> str:
        """The provider by the name that onnxruntime has for it."""
        return runtime.provider_name(self.provider)

    @property
    def session(self) -> dict[str, Any]:
        """How a process loads a model."""
        return {"provider": self.provider_name, "threads": self.threads or None, "optimize": self.optimize}


@dataclass(frozen=True)
class Profile:
    """What one model takes.

    Attributes:
        model: name of its file.
        file_bytes: of the file, data beside it included.
        inputs: shape of each.
        latency_ms: median, p10 and p90 of one run.
        interval_ms: where the median lies, see `Interval`.
        per_second: samples.
        runs: that were timed.
        load_ms: that it took to load.
        memory: bytes, see docs/measuring.md; None where it cannot be told.
        providers: kernels by the provider that runs them.
        ops: milliseconds by operator.
        nodes: name, operator and milliseconds of each node of the file that kernels compute, longest first; without an
            operator what belongs to no node.
    """

    model: str
    file_bytes: int
    inputs: dict[str, list[int]]
    latency_ms: dict[str, float]
    interval_ms: Interval
    per_second: float
    runs: int
    load_ms: float
    memory: dict[str, int | None]
    providers: dict[str, int] = field(default_factory=dict)
    ops: dict[str, float] = field(default_factory=dict)
    nodes: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ProfileReport:
    """What models take, side by side.

    Attributes:
        profiles: one a model, in the order given.
        speedups: of each model but the first: how much faster it is than the first, and where that lies.
        settings: how it was measured.
        machine: what on.
        notes: what else the user should know.
    """

    profiles: list[Profile]
    speedups: list[Interval]
    settings: dict[str, Any]
    machine: dict[str, Any]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain JSON values."""
        return {"format": FORMAT, **asdict(self), "versions": versions()}


def profile(
    paths: Sequence[str | Path],
    settings: ProfileSettings | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> ProfileReport:
    """Measure models in onnxruntime, each in a fresh process, in turns.

    Args:
        paths: the model files; all others are compared with the first.
        settings: how.
        shapes: sizes for inputs that leave them free, of any of the models.
        progress: told what is going on.

    Raises:
        InputError: a file or a setting is wrong, the provider cannot be had, or a model does not run.
    """
    settings, told = settings or ProfileSettings(), progress or Quiet()
    _check(settings)
    given = [Given(Path(path), settings, shapes or {}) for path in paths]
    if not given:
        raise InputError("there is no model to measure; give one or more .onnx files")
    known = {name for one in given for name in one.feed}
    for name in (shapes or {}).keys() - known:
        raise InputError(f"--shape names {name!r}, which is no input of any model; inputs: {', '.join(sorted(known))}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        feeds = [Path(scratch) / f"{number}.npz" for number in range(len(given))]
        for one, feed in zip(given, feeds, strict=True):
            write_feed(feed, one.feed)
        runs = _run(given, feeds, settings, told)
        traces = []
        told.stage("time kernels")
        for one, feed in zip(given, feeds, strict=True):
            traces.append(_trace(one, feed, settings))
            told.step(len(traces), len(given))
    profiles = [_profile(one, run, trace) for one, run, trace in zip(given, runs, traces, strict=True)]
    speedups = [intervals.ratio(runs[0].turns, other.turns) for other in runs[1:]]
    notes = [note for one in given for note in one.notes] + _busy(given, runs)
    return ProfileReport(profiles, speedups, asdict(settings), machine.described(), list(dict.fromkeys(notes)))


@dataclass(frozen=True)
class Ran:
    """What a process has told of the model that it ran.

    Attributes:
        loaded: seconds and memory of loading it.
        used: memory of running it.
        ms: of each run.
        turns: median milliseconds of each turn, as many as the other models have had.
        waiting: share of that time in which other processes had the processor.
    """

    loaded: Mapping[str, Any]
    used: Mapping[str, Any]
    ms: Sequence[float]
    turns: Floats
    waiting: float


def _run(given: Sequence[Given], feeds: Sequence[Path], settings: ProfileSettings, told: Progress) -> list[Ran]:
    """Run all models in turns, each in a process of its own."""
    with ExitStack() as stack:
        told.stage("load")
        subjects = list[Subject]()
        for one, feed in zip(given, feeds, strict=True):
            subjects.append(stack.enter_context(Subject(one.path, feed, settings.bind, **settings.session)))
            told.step(len(subjects), len(given))
        told.stage("measure")
        used = [subject.use(USES) for subject in subjects]
        rounds = Rounds(subjects, settings.precision, settings.seconds)
        rounds.measure(told.step)
        found = zip(subjects, used, rounds.ms, rounds.turns.T, strict=True)
        return [Ran(subject.loaded, use, ms, turns, subject.waiting) for subject, use, ms, turns in found]


def _difference(value: int | None, base: int | None) -> int | None:
    return None if value is None or base is None else max(0, value - base)


def _busy(given: Sequence[Given], runs: Sequence[Ran]) -> list[str]:
    """Warn of other processes that are at work."""
    share, name = max((run.waiting, one.path.name) for one, run in zip(given, runs, strict=True))
    if not load.is_busy(share):
        return []
    return [
        f"this machine is busy: {name} waited {share:.0%} of its time for a processor, and long runs lose more by that "
        "than short ones; measure again when nothing else runs"
    ]


class Given:
    """A model to measure, and what it is fed."""

    def __init__(self, path: Path, settings: ProfileSettings, asked: Mapping[str, Sequence[int]]) -> None:
        self.path = path
        self.proto = models.read_file(path)
        external = [tensor for tensor in self.proto.graph.initializer if is_external(tensor)]
        self._data = {external_place(tensor, path.parent)[0] for tensor in external}
        known = {value.name for value in sizes.real_inputs(self.proto.graph)}
        own = {name: shape for name, shape in asked.items() if name in known}
        bound, self.notes = sizes.bind_inputs(self.proto.graph, own, settings.batch or 1)
        self.feed: dict[str, Array] = sizes.example_inputs(self.proto.graph, bound)
        self.batch = sizes.samples(bound)
        sizes.check_batch(path.name, settings.batch, self.batch)
        if any(values.dtype == object for values in self.feed.values()):
            raise InputError(f"{path.name} reads text, for which no inputs can be made up")

    @property
    def file_bytes(self) -> int:
        """Size of the file and of what lies beside it."""
        return sum(file.stat().st_size for file in (self.path, *self._data))


def _check(settings: ProfileSettings) -> None:
    if settings.batch is not None and settings.batch < 1:
        raise InputError(f"--batch {settings.batch}: give 1 or more")
    if settings.threads < 0:
        raise InputError(f"--threads {settings.threads}: give 1 or more, or 0 to leave it to onnxruntime")
    if settings.optimize not in runtime.LEVELS:
        raise InputError(f"optimize {settings.optimize!r} is none of: {', '.join(runtime.LEVELS)}")
    if not settings.precision > 0 or not settings.seconds > 0:
        raise InputError("--precision and --seconds must be above 0")


def _trace(one: Given, feed: Path, settings: ProfileSettings) -> Trace:
    """Time the kernels of a model, in a process of its own: it slows the whole."""
    place = str(feed.with_suffix(".trace"))
    with Subject(one.path, feed, settings.bind, **settings.session, profile=place) as subject:
        subject.run(TRACE_WARM_UP + TRACED)
        return read_trace(subject.end_profile(), one.proto.graph, TRACE_WARM_UP)


def _profile(one: Given, run: Ran, trace: Trace) -> Profile:
    middle = intervals.median(run.turns)
    nodes = one.proto.graph.node
    longest = sorted(by_node(trace).items(), key=lambda entry: -entry[1])
    return Profile(
        one.path.name,
        one.file_bytes,
        {name: list(values.shape) for name, values in one.feed.items()},
        latency(np.asarray(run.ms)),
        middle,
        one.batch / middle.median * 1e3,
        len(run.ms),
        run.loaded["seconds"] * 1e3,
        _memory(run.loaded, run.used, trace),
        by_provider(trace),
        by_op(trace),
        [
            {"name": "" if at < 0 else nodes[at].name, "op": "" if at < 0 else nodes[at].op_type, "ms": time}
            for at, time in longest
        ],
    )


def _memory(loaded: Mapping[str, Any], use: Mapping[str, Any], trace: Trace) -> dict[str, int | None]:
    """Say what is held above what the process held before the model was loaded."""
    return {
        "loaded": _difference(loaded["loaded"], loaded["before"]),
        "load_peak": _difference(loaded["load_peak"], loaded["before"]),
        "steady": _difference(use["held"], loaded["before"]),
        "peak": _difference(use["peak"], loaded["before"]),
        "arena": trace.arena_bytes,
        "arena_used": trace.used_bytes,
        "device_loaded": _difference(loaded["device_loaded"], loaded["device_before"]),
        "device_steady": _difference(use["device_held"], loaded["device_before"]),
    }
