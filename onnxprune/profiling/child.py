"""One model in a process of its own, told what to do line by line: the other side of `process.Subject`.

Each line is a JSON object with the name of a command and what it is given; each answer is one, too, with `error` where
something is wrong. The process ends when nobody speaks to it any more.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from onnxprune import runtime
from onnxprune.errors import InputError
from onnxprune.profiling import gpu, load, memory
from onnxprune.weights import Array

DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
"""Where tensors lie that are bound for a provider; everywhere else it is the CPU."""


class Child:
    """The model of this process, once it is loaded."""

    def __init__(self) -> None:
        self._session: runtime.Session
        self._run: Callable[[], object]
        self._place = "cpu"

    def load(self, model: str, feed: str, bind: bool, **options: Any) -> dict[str, Any]:
        """Load a model and its inputs; tells the memory that is held before and after, and the seconds it took."""
        inputs = _inputs(Path(feed))
        before, device = memory.held(), gpu.held()
        start = time.perf_counter()
        if options.get("profile"):
            options["profile"] = Path(options["profile"])
        self._session = session = runtime.Session(Path(model), **options)
        seconds = time.perf_counter() - start
        self._run, self._place = lambda: session.run(inputs), DEVICES.get(options.get("provider", ""), "cpu")
        if bind:
            self._run = session.bind(inputs, self._place)
        found = {"seconds": seconds, "before": before, "loaded": memory.held(), "load_peak": memory.peak()}
        return found | {"device_before": device, "device_loaded": self._held_there()}

    def run(self, count: int) -> dict[str, Any]:
        """Run so often; tells the milliseconds of each run, and those in which others had the processor."""
        self._session.wait_for_others()
        before = load.waited()
        times = runtime.timed(self._run, count)
        return {"ms": times, "waited": load.waited() - before}

    def use(self, count: int) -> dict[str, Any]:
        """Run so often, and tell the most memory that was held meanwhile, and what is held in the end."""
        known = memory.forget_peak()
        self.run(count)
        return {"held": memory.held(), "peak": memory.peak() if known else None, "device_held": self._held_there()}

    def _held_there(self) -> int | None:
        """Give what is held on the GPU; None also where its driver knows this process by another number."""
        found = gpu.held()
        return None if found == 0 and self._place != "cpu" else found

    def end_profile(self) -> dict[str, Any]:
        """End the file of kernel times; tells where it is."""
        return {"file": str(self._session.end_profile())}


def serve(lines: TextIO, answers: TextIO) -> None:
    """Do what lines ask for, until there are none."""
    child = Child()
    for line in lines:
        command: dict[str, Any] = json.loads(line)
        try:
            answer: Mapping[str, Any] = getattr(child, command.pop("do"))(**command)
        except InputError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _inputs(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as arrays:
        return {str(name): arrays[f"arr_{at}"] for at, name in enumerate(arrays["names"])}


def main() -> None:
    """Speak over what were the standard streams; what libraries print goes to the error stream."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the process that started this one
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
