"""Judge plans in several processes, each with a model and threads of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from typing import Self

from onnxprune.errors import InputError, LostWorkerError
from onnxprune.judging import Candidates, digest
from onnxprune.plan import Plan
from onnxprune.prepare import Source, prepare
from onnxprune.problem import Effort

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_given: tuple[Source, int, str | None] | None = None  # to this process, where it is a worker; see `_start`


class Workers:
    """Processes that judge plans; what one has computed, none computes again.

    To be used in a ``with``: the processes end with it, at once where it ends in an error or an interrupt.

    Args:
        source: what the user gave; each process loads it for itself.
        count: of processes.
        sha256: of the calibration samples that each process must find (None: any).
    """

    def __init__(self, source: Source, count: int, sha256: str | None = None) -> None:
        threads = max(1, (os.cpu_count() or 1) // count)
        self._before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))  # processes take this when they start
        self._others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(source, threads, sha256))
        self._known: dict[tuple[str, Effort], float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # a plan may take minutes, and nobody waits for it any more
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()
        self._pool.shutdown(cancel_futures=True)  # it waits for its processes: two who wait take each other's answer
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def errors(self, plans: Sequence[Plan], *, effort: Effort = "quick") -> list[float]:
        """Judge plans; see `Candidates.errors`.

        Raises:
            LostWorkerError: a process was ended from outside, or could not start.
        """
        names = [(digest(plan), effort) for plan in plans]
        unknown = {name: plan for name, plan in zip(names, plans, strict=True) if name not in self._known}
        try:
            with _uninterrupted():
                found = self._pool.map(_error, unknown.values(), [effort] * len(unknown))
            self._known.update(zip(unknown, found, strict=True))
        except BrokenProcessPool as error:
            raise LostWorkerError(
                "a worker process ended before its work was done, most likely for want of memory; give fewer --workers "
                '(a script of your own must call compress under `if __name__ == "__main__":`)'
            ) from error
        return [self._known[name] for name in names]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes start that an interrupt does not reach: the one that starts them ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # a system without it
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(source: Source, threads: int, sha256: str | None) -> None:
    """Get a process ready: interrupts are not for it, and it ends with the process that started it."""
    global _given  # a pool hands its tasks nothing else that lasts
    _given = source, threads, sha256
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@cache
def _candidates() -> Candidates:
    """Load the model with the first plan, not before: errors of a start do not reach the one who asked."""
    assert _given is not None
    source, threads, sha256 = _given
    prepared = prepare(source)
    found = None if prepared.parts is None else prepared.parts.calibration.sha256
    if sha256 is not None and found != sha256:
        raise InputError(
            f"--data {source.data} gives other samples each time it is read; give the same ones in the same order, "
            "or leave --workers out"
        )
    return prepared.candidates(prepared.statistics(), threads)


def _error(plan: Plan, effort: Effort) -> float:
    return _candidates().errors([plan], effort=effort)[0]
