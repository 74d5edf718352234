"""A model that is measured in a process of its own, so that nothing that was before it counts, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from onnxprune.errors import InputError
from onnxprune.weights import Array

WAIT = 5.0  # seconds that a process may take to end by itself


def write_feed(file: Path, inputs: Mapping[str, Array]) -> None:
    """Write the inputs of a model, whatever their names, for a process to read."""
    np.savez(file, *inputs.values(), names=np.asarray(list(inputs), np.str_))


class Subject:
    """A process with one model; to be used in a ``with``, with which it ends.

    Args:
        model: its file.
        options: what `runtime.Session` is given beside it.
        feed: its inputs, see `write_feed`.
        bind: whether inputs and outputs stay on the device.

    Attributes:
        loaded: what was measured while it was loaded, see `Child.load`.

    Raises:
        InputError: onnxruntime cannot load or run it, or the process ended, most likely for want of memory.
    """

    def __init__(self, model: Path, feed: Path, bind: bool = False, **options: Any) -> None:
        self._model = model
        self._ran = self._waited = 0.0  # milliseconds
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile())
            command = [sys.executable, "-P", "-m", "onnxprune.profiling.child"]  # -P: nothing of this folder
            self._process = stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, encoding="utf-8"
                )
            )
            stack.callback(self._end)
            self.loaded = self._ask("load", model=str(model.resolve()), feed=str(feed), bind=bind, **options)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, count: int) -> list[float]:
        """Run so often; returns the milliseconds of each run."""
        answer = self._ask("run", count=count)
        found: list[float] = answer["ms"]
        self._ran += sum(found)
        self._waited += answer["waited"]
        return found

    @property
    def waiting(self) -> float:
        """Share of the time of all runs in which other processes had the processor."""
        return self._waited / max(self._ran, 1e-9)

    def use(self, count: int) -> dict[str, Any]:
        """Run so often; returns what was held at most and in the end, see `Child.use`."""
        return self._ask("use", count=count)

    def end_profile(self) -> Path:
        """End the file of kernel times, and tell where it is."""
        return Path(self._ask("end_profile")["file"])

    def _ask(self, command: str, **given: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise InputError(f"the process that ran {self._model.name} ended{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InputError(f"{self._model.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        """Say what the process wrote last before it ended."""
        self._process.wait(WAIT)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:300]}" if lines else ", most likely for want of memory"

    def _end(self) -> None:
        self._process.kill()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it did not read any more
            self._process.stdin.close()
