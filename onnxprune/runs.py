"""The folder of a run: what was asked for, what its numbers depend on, and every plan that was judged.

``run.json`` is there before ``judged.jsonl`` gets its first line. A folder in which nothing was judged goes again,
however its run ends.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from onnxprune.errors import InputError
from onnxprune.files import append_lines, read_lines, replace_json
from onnxprune.journal import Entry, Journal, pareto
from onnxprune.measured import Measurement, Measurements
from onnxprune.metrics import METRICS
from onnxprune.prepare import Prepared
from onnxprune.problem import Judging, Problem
from onnxprune.records import ASKED, JUDGED, MEASURED, PARETO, Place, Record, State, is_ours, policy_hash, read_record
from onnxprune.reporting import versions

PARETO_FORMAT = "onnxprune.pareto/1"
NAMED = 16  # digits of a hash that name a folder


def identity(prepared: Prepared) -> dict[str, str]:
    """Tell what the numbers of a run depend on, by name."""
    source, parts, model = prepared.source, prepared.parts, prepared.original.model
    assert parts is not None
    asked = source.settings
    samples = [part.sha256 for part in (parts.calibration, parts.search, parts.holdout)]
    return {
        "model": model.sha256,
        "samples": hashlib.sha256(" ".join(samples).encode()).hexdigest(),
        "--repair": asked.repair,
        "--seed": str(asked.seed),
        "--label-offset": str(source.label_offset),
        "--keep": json.dumps(sorted(asked.keep)),
        "--approximate": str(asked.approximate),
        "--slots": str(asked.slots),
        "--shape": json.dumps({name: list(shape) for name, shape in sorted(model.bound.items())}),
        "version of onnxprune": versions().get("onnxprune", ""),
    }


class Run:
    """One run and its folder, to be used in a ``with``; without a folder it keeps nothing.

    A run that was interrupted or failed goes on where the same is asked for. Where it ends well, its folder goes unless
    it is to stay; else it stays if anything was judged.

    Args:
        prepared: the model and its data.
        out: the file to write.
        place: of the folder; None where nothing is to be kept.
        dry_run: whether nothing is to be written.

    Raises:
        InputError: the folder is another's or damaged, or cannot be written.
    """

    def __init__(self, prepared: Prepared, out: Path, place: Place | None, dry_run: bool = False) -> None:
        self._prepared, self._out, self._place, self._dry_run = prepared, out, place, dry_run
        self._entries: list[Entry] = []
        self._record: Record | None = None
        self._lock: BinaryIO | None = None
        self._is_new = self._has_made = self._has_begun = self._goes_on = self._is_done = False

    def __enter__(self) -> Self:
        if self._place is not None:
            try:
                self._open(self._place)
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def _open(self, place: Place) -> None:
        before, mine = read_record(place.folder), identity(self._prepared)
        if before is not None:
            _check_same(place.folder, before.identity, mine)
        self._is_new = not _has_work(place.folder)
        self._has_made = not place.folder.exists()
        self._lock = take(place.folder / JUDGED)  # from here on the folder is this run's
        self._entries = read_lines(place.folder / JUDGED, Entry)
        self._record = self._asked(place, read_record(place.folder), mine)

    def _asked(self, place: Place, before: Record | None, mine: dict[str, str]) -> Record:
        """Say what this run is; it is the one before, going on, where that has not finished and asks for the same."""
        source, count = self._prepared.source, len(self._entries)
        new = Record(
            format="onnxprune.run/1",
            identity=mine,
            settings=source.settings,
            policy=policy_hash(source.settings),
            data=str(source.data),
            preprocess=source.preprocess,
            label_offset=source.label_offset,
            output=str(self._out),
            place=str(Path.cwd()),
            dry_run=self._dry_run,
            is_kept=place.is_given,
            began=count,
            earlier=0,
            state="searching",
        )
        if before is None:
            return new
        new = replace(new, is_kept=new.is_kept or before.is_kept)
        is_finished, is_other = (
            before.state == "finished",
            (before.settings, before.policy) != (new.settings, new.policy),
        )
        # The user may have taken lines away. The same again knows as little as it did, and does the same.
        new = replace(new, earlier=count if is_finished and is_other else min(before.earlier, count))
        if is_finished or is_other or before.dry_run != new.dry_run:
            return new
        self._goes_on = True
        return replace(new, began=min(before.began, count), state=before.state)

    @property
    def folder(self) -> Path:
        """The folder; there must be one."""
        assert self._place is not None
        return self._place.folder

    def known(self) -> str:
        """Say what is known from before, or nothing."""
        if self._record is None or not self._entries:
            return ""
        others, mine = self._entries[: self._record.began], self._entries[self._record.began :]
        began, own = (len({entry.plan for entry in entries}) for entries in (others, mine))
        parts = [f"the interrupted run goes on, {own} plans are judged"] if own else []
        return f"{self.folder}: " + ", ".join([*parts, *([f"{began} are known from other runs"] if began else [])])

    def journal(self, judging: Judging, together: int) -> Journal:
        """Judge through this run's folder.

        Args:
            judging: judges what is not known.
            together: plans that are judged at once.
        """
        record = self._record
        began, earlier = (0, 0) if record is None else (record.began, record.earlier)
        return Journal(judging, self._entries, began=began, earlier=earlier, together=together, append=self._append)

    def measurements(self) -> Measurements:
        """Measure through this run's folder; what other runs have measured is measured again."""
        if self._place is None:
            return Measurements()
        file = self.folder / MEASURED
        return Measurements(read_lines(file, Measurement) if self._goes_on and file.exists() else (), self._measured)

    def _measured(self, new: Measurement) -> None:
        self.begin()
        with (self.folder / MEASURED).open("ab") as file:
            append_lines(file, [new])

    def begin(self) -> None:
        """Write down what is asked for, once there is something to keep."""
        if not self._has_begun and self._record is not None:
            if not self._goes_on:
                (self.folder / MEASURED).unlink(missing_ok=True)  # times of another run
            self._mark(self._record.state)

    def _append(self, entries: Sequence[Entry]) -> None:
        self.begin()
        if entries and self._place is not None:
            with (self.folder / JUDGED).open("ab") as file:
                append_lines(file, entries)

    def _mark(self, state: State) -> None:
        assert self._record is not None
        self._record = replace(self._record, state=state)
        replace_json(self.folder / ASKED, asdict(self._record))
        self._has_begun = True

    def writing(self) -> None:
        """Note that results are about to be written."""
        if self._record is not None:
            self._mark("writing")

    def finish(self, problem: Problem | None = None) -> None:
        """Note that the run has ended well.

        Args:
            problem: tells what plans cost, for a list of the best ones; None leaves it out.
        """
        if self._record is not None and self._record.is_kept:
            if problem is not None:
                replace_json(self.folder / PARETO, best_of(read_lines(self.folder / JUDGED, Entry), problem))
            self._mark("finished")
            (self.folder / MEASURED).unlink(missing_ok=True)  # only a run that goes on needs it
        self._is_done = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is None:
            return
        self._lock.close()
        kept = self._record is not None and self._record.is_kept
        goes = not kept if self._is_done else self._is_new and not _has_work(self.folder)
        if goes:
            _remove(self.folder)
        if goes and (self._has_made or not kept):
            with suppress(OSError):  # something else is in it
                self.folder.rmdir()


def best_of(entries: Sequence[Entry], problem: Problem) -> dict[str, Any]:
    """List the plans that no other beats in error and in what has a target, cheapest first, with what they cost."""
    widths = problem.widths.tolist()
    limited = [target.metric for target in problem.targets] or [METRICS[0]]
    listed = dict.fromkeys([*METRICS, *limited])
    sound = [
        (entry, entry.error)
        for entry in entries
        if entry.effort == "quick"
        and entry.error is not None
        and len(entry.counts) == len(widths)
        and all(0 <= count <= width for count, width in zip(entry.counts, widths, strict=True))
    ]
    counts = np.asarray([entry.counts for entry, _ in sound] or [widths], np.int64)
    costs = {name: values[: len(sound)] for name, values in problem.costs.of(counts).items()}
    return {
        "format": PARETO_FORMAT,
        "groups": [group.name for group in problem.channels.groups],
        "original": {name: problem.original[name] for name in listed},
        "plans": [
            {
                "plan": sound[at][0].plan,
                "counts": counts[at].tolist(),
                "error": sound[at][1],
                "costs": {name: float(costs[name][at]) for name in listed},
            }
            for at in pareto([error for _, error in sound], np.column_stack([costs[name] for name in limited]))
        ],
    }


def name_of(content: Any) -> str:
    """Name a folder by what it is for."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:NAMED]


def _check_same(folder: Path, theirs: dict[str, str], mine: dict[str, str]) -> None:
    """Make sure that what was judged holds here.

    Raises:
        InputError: it does not.
    """
    other = [name for name in mine if theirs.get(name) != mine[name]]
    if "--seed" in other and "samples" in other:
        other.remove("samples")  # which it draws
    if other:
        raise InputError(
            f"the runs in {folder} had another {', another '.join(other)}, and what was judged there does not hold "
            "here; give another --run, or remove the folder"
        )


def take(path: Path) -> BinaryIO:
    """Open a file of a run's folder to add to, and let no other run at it as long as it is open.

    The folder is made where there is none. Where the system has no locks, nothing keeps others away.

    Raises:
        InputError: it cannot be written, or another run is at work there.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"--run {folder} cannot be written ({error.strerror}); give another") from error
    try:
        import fcntl
    except ImportError:  # Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(f"another run is at work in {folder}; wait for its end, or give another --run") from error
    except OSError:  # a file system without locks
        pass
    return file


def _has_work(folder: Path) -> bool:
    """Tell whether anything was judged in a folder, or in those of its steps."""
    return any(file.stat().st_size for file in folder.rglob(JUDGED))


def _remove(folder: Path) -> None:
    """Remove what runs have written; what they were asked for goes last."""
    for file in sorted((f for f in folder.iterdir() if is_ours(f)), key=lambda f: f.name == ASKED):
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink()
