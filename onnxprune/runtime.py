"""The only user of onnxruntime: run a model, and time it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.errors import InputError
from onnxprune.model import write_beside
from onnxprune.weights import Array, byte_size, is_external

FOLDER_OPTION = "session.model_external_initializers_file_folder_path"
PRECISE_OPTION = "session.x64quantprecision"
LARGE = 64_000_000  # bytes of weights
BLAS_THREADS = max(1, (os.cpu_count() or 1) // 2)
"""Threads for products of small matrices: these wait for each other, which costs most where cores are shared."""
MAX_IR_VERSION = 13  # what onnxruntime 1.31 loads; newer files differ only in the number for the ops it knows


class Session:
    """A model in onnxruntime.

    Args:
        model: a file, or a model in memory.
        folder: where the external data of a model in memory lies.
        threads: intra-op threads; None leaves the choice to onnxruntime.
        optimize: whether onnxruntime may rewrite the graph.
        saturates: whether sums of products of 8 bits may be cut off at 16 bits, as the fastest kernels for x86
            processors without VNNI do.

    Raises:
        InputError: onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        folder: Path | None = None,
        threads: int | None = None,
        optimize: bool = True,
        saturates: bool = True,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        if not saturates:
            options.add_session_config_entry(PRECISE_OPTION, "1")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if isinstance(model, Path) and _ir_version(model) > MAX_IR_VERSION:
            model, folder = onnx.load(str(model), load_external_data=False), model.parent
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            try:
                source = _source(model, Path(scratch), folder)
                if folder is not None and isinstance(source, bytes):
                    options.add_session_config_entry(FOLDER_OPTION, str(folder))
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            except (OSError, InputError):
                raise
            except Exception as error:  # onnxruntime raises types of its own, one a cause
                raise InputError(f"onnxruntime cannot load the model: {_first_line(error)}") from error

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Any]:
        """Run once; returns the outputs in the model's order, or those asked for.

        Raises:
            InputError: onnxruntime fails on these inputs.
        """
        try:
            result: list[Any] = self._session.run(None if outputs is None else list(outputs), dict(inputs))
        except Exception as error:
            raise InputError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
        return result


def open_with(
    model: onnx.ModelProto, names: Iterable[str], folder: Path, *, threads: int | None = None, optimize: bool = True
) -> Session:
    """Load a model so that more of its tensors can be asked for, after its own outputs.

    Args:
        model: gets further outputs for as long as this takes, so that no weights are copied.
        names: of the tensors; outputs among them stay where they are.
        folder: where its external data lies.
        threads: see `Session`.
        optimize: see `Session`.

    Raises:
        InputError: onnxruntime cannot load the model.
    """
    outputs = model.graph.output
    own, known = len(outputs), {value.name for value in outputs}
    outputs.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    try:
        return Session(model, folder=folder, threads=threads, optimize=optimize)
    finally:
        del outputs[own:]


def evaluate(model: onnx.ModelProto, inputs: Mapping[str, Array], folder: Path | None = None) -> list[Any]:
    """Run a model once, as written, and return its outputs.

    Raises:
        InputError: onnxruntime cannot load or run it.
    """
    return Session(model, folder=folder, threads=1, optimize=False).run(inputs)


def latencies(
    sessions: Sequence[Session], inputs: Sequence[Mapping[str, Array]], *, seconds: float = 2.0, least: int = 7
) -> list[Array]:
    """Time sessions side by side, one run of each in turn, so that a busy machine slows all of them alike.

    Returns:
        Per session the milliseconds of each run, warm-up left out; at least `least` runs, at most 200, and about
        `seconds` in all.
    """
    times: list[list[float]] = [[] for _ in sessions]
    for session, feed in zip(sessions, inputs, strict=True):
        session.run(feed)
    start = time.perf_counter()
    while len(times[0]) < 200 and (len(times[0]) < least or time.perf_counter() - start < seconds):
        for session, feed, measured in zip(sessions, inputs, times, strict=True):
            before = time.perf_counter()
            session.run(feed)
            measured.append((time.perf_counter() - before) * 1e3)
    return [np.asarray(measured) for measured in times]


def _source(model: Path | onnx.ModelProto, scratch: Path, folder: Path | None) -> str | bytes:
    """Give onnxruntime a file, or a model in memory with an IR version that it takes.

    Large models in memory go through a file with their weights beside it, which onnxruntime maps: serialized, they
    would be held three times over, and past 2 GB not at all.
    """
    if isinstance(model, Path):
        return str(model)
    ir_version = model.ir_version
    inside = sum(byte_size(tensor) for tensor in model.graph.initializer if not is_external(tensor))
    try:
        model.ir_version = min(ir_version, MAX_IR_VERSION)
        if inside <= LARGE:
            return bytes(model.SerializeToString())
        write_beside(model, scratch / "model.onnx", folder or Path())
        return str(scratch / "model.onnx")
    finally:
        model.ir_version = ir_version


def _ir_version(path: Path) -> int:
    """Read the IR version of a file, which is its first field, without parsing the rest."""
    with path.open("rb") as file:
        head = file.read(2)
    return head[1] if len(head) == 2 and head[0] == 0x08 else 0


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
