"""The only user of onnxruntime: run a model, and time it."""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
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
TURN, LONGEST_TURN, MOST_TURNS = 2.0, 16, 200  # milliseconds and runs of a turn, and turns, where models are timed
BLAS_THREADS = max(1, (os.cpu_count() or 1) // 2)
"""Threads for products of small matrices: these wait for each other, which costs most where cores are shared."""
MAX_IR_VERSION = 13  # what onnxruntime 1.31 loads; newer files differ only in the number for the ops it knows
CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""Short names of what can run nodes; everything else goes by its own."""
LIBRARIES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}
"""Providers that lie in a library of their own, which needs others."""
REMEDY = {
    "cuda": 'It needs CUDA and cuDNN, which pip install "onnxprune[cuda]" brings',
    "tensorrt": "It needs TensorRT beside CUDA and cuDNN, and LD_LIBRARY_PATH to name the folder of its libraries",
}
LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
"""How far onnxruntime may rewrite a graph, and its names for that."""
SPIN = 0.08  # seconds; 0.04 to 0.06 were measured


class Session:
    """A model in onnxruntime.

    Args:
        model: a file, or a model in memory.
        folder: where the external data of a model in memory lies.
        threads: intra-op threads; None leaves the choice to onnxruntime.
        optimize: how far onnxruntime may rewrite the graph, see `LEVELS`; False for none, True for all.
        saturates: whether sums of products of 8 bits may be cut off at 16 bits, as the fastest kernels for x86
            processors without VNNI do.
        provider: what runs the nodes, by onnxruntime's name for it; what it lacks runs on the CPU.
        profile: onnxruntime writes the time of each kernel to a file that begins so, see `end_profile`.

    Raises:
        InputError: onnxruntime cannot load the model, or not with this provider.
    """

    def __init__(
        self,
        model: Path | onnx.ModelProto,
        *,
        folder: Path | None = None,
        threads: int | None = None,
        optimize: bool | str = True,
        saturates: bool = True,
        provider: str = CPU,
        profile: Path | None = None,
    ) -> None:
        import onnxruntime as ort

        check_provider(provider)
        if provider in LIBRARIES and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # those that came from the package index lie where no loader looks
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        self._threads = threads
        if threads is not None:
            options.intra_op_num_threads = threads
        if not saturates:
            options.add_session_config_entry(PRECISE_OPTION, "1")
        level = ("none", "all")[optimize] if isinstance(optimize, bool) else optimize
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[level])
        if isinstance(model, Path) and _ir_version(model) > MAX_IR_VERSION:
            model, folder = onnx.load(str(model), load_external_data=False), model.parent
        with ExitStack() as stack:
            try:
                source = _source(model, folder, stack)
                if folder is not None and isinstance(source, bytes):
                    options.add_session_config_entry(FOLDER_OPTION, str(folder))
                chosen = [provider] if provider == CPU else [provider, CPU]
                self._session = ort.InferenceSession(source, options, providers=chosen, enable_fallback=0)
            except (OSError, InputError):
                raise
            except Exception as error:  # onnxruntime raises types of its own, one a cause
                if provider in LIBRARIES and (missing := _missing(provider)):
                    raise InputError(missing) from error
                raise InputError(f"onnxruntime cannot load the model: {_first_line(error)}") from error
        if provider not in self._session.get_providers():  # it goes on without, and says so in its log alone
            raise InputError(_missing(provider) or f"{provider} finds no device that it can use")

    def wait_for_others(self) -> None:
        """Wait until the threads of other sessions sleep, where this one uses more than the one that calls it.

        After a run they look for more work for a while, and would keep processors from the threads of this session.
        """
        if self._threads != 1:
            time.sleep(SPIN)

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

    def bind(self, inputs: Mapping[str, Array], device: str) -> Callable[[], None]:
        """Bring inputs to a device, and give what runs the model there, outputs staying where they are.

        Raises:
            InputError: an input is none that a device can hold.
        """
        import onnxruntime as ort

        binding = self._session.io_binding()
        try:
            for name, values in inputs.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values, device, 0))
            for output in self._session.get_outputs():
                binding.bind_output(output.name, device)
        except Exception as error:
            raise InputError(f"onnxruntime cannot bind inputs and outputs: {_first_line(error)}") from error

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def end_profile(self) -> Path:
        """End the file of kernel times, and tell where it is."""
        return Path(self._session.end_profiling())


def check_provider(provider: str) -> None:
    """Make sure that the installed onnxruntime was built with a provider; whether it can load is another question.

    Raises:
        InputError: it was not.
    """
    import onnxruntime as ort

    known = ort.get_available_providers()
    if provider not in known:
        raise InputError(f"this onnxruntime has no {provider}; it has {', '.join(known)}")


def open_with(
    model: onnx.ModelProto, names: Iterable[str], folder: Path, *, threads: int | None = None, optimize: bool = True
) -> Session:
    """Load a model so that more of its tensors can be asked for, after its own outputs.

    onnxruntime's optimiser loses the output of a convolution that is asked for, where another convolution of the same
    input is fused away; such a graph runs as written.

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
    except InputError:
        if not optimize:
            raise
        return Session(model, folder=folder, threads=threads, optimize=False)
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
    """Time sessions side by side, in turns, so that a busy machine slows all of them alike.

    A turn is several runs of one session. The first does not count: it finds the caches as the other session left them,
    which costs a small model more than a large one, and where models are used each has them to itself.

    Returns:
        Per session the median milliseconds of each turn, warm-up left out; at least `least` turns, at most
        `MOST_TURNS`, and about `seconds` in all.
    """
    times: list[list[float]] = [[] for _ in sessions]
    counts = []
    for session, feed in zip(sessions, inputs, strict=True):
        session.run(feed)
        first = float(np.median(warm_runs(session, feed, 2)))
        counts.append(int(np.clip(np.ceil(TURN / max(first, 1e-3)), 1, LONGEST_TURN)))
    start = time.perf_counter()
    while len(times[0]) < MOST_TURNS and (len(times[0]) < least or time.perf_counter() - start < seconds):
        for session, feed, count, measured in zip(sessions, inputs, counts, times, strict=True):
            measured.append(float(np.median(warm_runs(session, feed, count))))
    return [np.asarray(measured) for measured in times]


def warm_runs(session: Session, feed: Mapping[str, Array], count: int) -> list[float]:
    """Run once to warm the caches, and then so often; returns the milliseconds of each of the latter."""
    session.wait_for_others()
    session.run(feed)
    return timed(lambda: session.run(feed), count)


def timed(run: Callable[[], object], count: int) -> list[float]:
    """Run something so often; returns the milliseconds of each run."""
    found = []
    for _ in range(count):
        before = time.perf_counter()
        run()
        found.append((time.perf_counter() - before) * 1e3)
    return found


def provider_name(text: str) -> str:
    """Give the name that onnxruntime has for a provider, from a key of `PROVIDERS` or that name itself."""
    return PROVIDERS.get(text.lower(), text)


def _missing(provider: str) -> str:
    """Say what the library of a provider lacks (empty: nothing is known to be missing)."""
    import onnxruntime as ort

    name = LIBRARIES.get(provider, "")
    found = sorted((Path(ort.__file__).parent / "capi").glob(f"*onnxruntime_providers_{name}.*")) if name else []
    try:
        for library in found:
            ctypes.CDLL(str(library))
    except OSError as error:
        text = str(error).partition(":")
        if "cannot open" in text[2] or "not found" in text[2].lower():
            return f"{provider} cannot load: {text[0]} is missing. {REMEDY[name]}"
    return ""


def _source(model: Path | onnx.ModelProto, folder: Path | None, stack: ExitStack) -> str | bytes:
    """Give onnxruntime a file, or a model in memory with an IR version that it takes.

    Large models in memory go through a file with their weights beside it, which onnxruntime maps: serialized, they
    would be held three times over, and past 2 GB not at all. The file is gone when the stack is left.
    """
    if isinstance(model, Path):
        return str(model)
    ir_version = model.ir_version
    inside = sum(byte_size(tensor) for tensor in model.graph.initializer if not is_external(tensor))
    try:
        model.ir_version = min(ir_version, MAX_IR_VERSION)
        if inside <= LARGE:
            return bytes(model.SerializeToString())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
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
