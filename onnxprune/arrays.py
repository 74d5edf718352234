"""Arrays by name: from an .npz or .npy file, or from the batches that a Python function gives."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import InputError
from onnxprune.weights import Array


def read_file(path: Path, wanted: Iterable[str]) -> tuple[dict[str, Array], list[str]]:
    """Read the `wanted` arrays of an ``.npz`` that it has, or an ``.npy`` as ``x``; nothing is ever unpickled.

    Returns:
        The arrays, and the names of all that the file holds.

    Raises:
        InputError: it is neither, or damaged.
    """
    try:
        with path.open("rb") as file:
            if not file.read(6).startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY")):
                raise ValueError("it does not begin like one")  # NumPy takes it for a pickle, and offers to load that
            file.seek(0)
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"x": content}, ["x"]
            return {n: np.asarray(content[n]) for n in wanted if n in content.files}, content.files
    except Exception as error:  # a damaged archive can raise anything: BadZipFile, zlib.error, MemoryError, ...
        raise InputError(f"{path} is no .npz or .npy file of numbers ({error})") from error


def is_spec(text: str) -> bool:
    """Tell whether a text reads as ``module:function``; the path of a file with a drive or a suffix does not."""
    module, colon, function = text.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def collect(spec: str) -> dict[str, Array]:
    """Join the batches that a Python function gives into one array a name.

    The function takes no arguments. It returns an iterable of batches, in an order that is always the same. A batch is
    an array of samples; or a dict with an array for each input of the model, by name; or a pair of one of these and
    the classes of the samples, as the loaders of PyTorch give. The first axis of every array counts samples.

    Args:
        spec: ``module:function``; the module lies in the working directory or where Python finds modules.

    Returns:
        ``x`` or the names of the dicts, and ``y`` where there are classes.

    Raises:
        InputError: there is no such function, it fails, or what it gives are no batches.
    """
    with _working_directory_first():
        function = _find(spec)
        try:
            batches = _batches(spec, function())
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"--data {spec} failed: {type(error).__name__}: {str(error)[:300]}") from error
    try:
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    except ValueError as error:
        raise InputError(f"--data {spec}: its batches have samples of different shapes ({error})") from error


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Import from the working directory before all else, as ``python -m`` does."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the module may have been written a moment ago
    try:
        yield
    finally:
        sys.path.remove(folder)


def _find(spec: str) -> Callable[[], Any]:
    """Import the function that ``module:function`` names."""
    name, _, attribute = spec.partition(":")
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"--data {spec}: there is no module {error.name} in the working directory or where Python looks; "
                "it must name a file or folder, or module:function"
            ) from error
        raise InputError(f"--data {spec}: importing {name} failed: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        what = "no function" if function is None else "something other than a function named"
        raise InputError(
            f"--data {spec}: {name} ({getattr(module, '__file__', None) or 'built in'}) has {what} {attribute}; "
            "it must be a function without arguments that returns batches"
        )
    found: Callable[[], Any] = function
    return found


def _batches(spec: str, given: Any) -> list[dict[str, Array]]:
    """Bring every batch to arrays by name, and check that they go together."""
    if isinstance(given, np.ndarray | Mapping):
        raise InputError(f"--data {spec} gives one {type(given).__name__}; it must give batches: return a list of them")
    batches = [_named(spec, batch) for batch in given]
    if not batches:
        raise InputError(f"--data {spec} gives no batches; it must give at least one")
    for number, batch in enumerate(batches):
        if set(batch) != set(batches[0]):
            raise InputError(
                f"--data {spec}: batch {number} has {', '.join(batch)}, the first has {', '.join(batches[0])}; "
                "all batches must have the same"
            )
        lengths = {name: len(array) if array.ndim else 0 for name, array in batch.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(
                f"--data {spec}: in batch {number} the first axes differ: "
                f"{', '.join(f'{name} {length}' for name, length in lengths.items())}; they must count the same samples"
            )
    return batches


def _named(spec: str, batch: Any) -> dict[str, Array]:
    """Bring one batch to arrays by name."""
    y: dict[str, Any] = {}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        if len(batch) != 2:
            raise InputError(f"--data {spec}: a batch of {len(batch)} parts; a pair must hold samples and classes")
        batch, y = batch[0], {"y": batch[1]}
    x = batch if isinstance(batch, Mapping) else {"x": batch}
    return {str(name): np.asarray(values) for name, values in {**x, **y}.items()}
