"""Files: JSON in and out, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxprune.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
LARGEST_INTEGER, LARGEST_FLOAT = 2**53, 1e300


def is_same(one: Path, other: Path) -> bool:
    """Tell whether two paths lead to one file that exists."""
    return one.exists() and other.exists() and one.samefile(other)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error


def json_text(content: Any, indent: int | None = None, allow_nan: bool = True) -> str:
    """Write JSON; of a file name that is no UTF-8, what is none is escaped, and read as it was."""
    text = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=allow_nan)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; `outputs` writes it aside first, so that no reader sees half of it."""
    path.write_text(json_text(content) + "\n", encoding="utf-8")


def replace_json(path: Path, content: Any) -> None:
    """Write a JSON file so that it is whole whenever this process ends; `.NAME` is for the draft."""
    draft = path.with_name(f".{path.name}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json_text(content, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Give a file to write that takes its place once it is whole, so that no reader ever sees half of it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        draft = Path(scratch) / path.name
        yield draft
        os.replace(draft, path)


def typed(value: Any, kind: Any) -> Any:
    """Bring what JSON holds to a type: a plain one, or a dataclass, tuple, dict, union or literal of those.

    Raises:
        TypeError: it holds something else, or a number beyond all that is meant.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        if value.keys() == hints.keys():
            return kind(**{name: typed(value[name], hint) for name, hint in hints.items()})  # type: ignore[operator]
    elif origin in (Union, UnionType):
        for one in inner:
            with suppress(TypeError):
                return typed(value, one)
    elif origin is dict and isinstance(value, dict):
        return {typed(name, inner[0]): typed(entry, inner[1]) for name, entry in value.items()}
    elif origin is tuple and isinstance(value, list):
        return tuple(typed(entry, inner[0]) for entry in value)
    elif origin is Literal and type(value) is str and value in inner:
        return value
    elif kind is float and type(value) in (int, float) and abs(value) < LARGEST_FLOAT:
        return float(value)
    elif type(value) is kind and (kind in (bool, str, NoneType) or (kind is int and abs(value) < LARGEST_INTEGER)):
        return value
    raise TypeError(f"{value!r:.100} is no {kind}")


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Read a file of JSON, a dataclass a line; a last line that was not finished is taken off the file.

    Raises:
        InputError: a line makes no sense.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    found = []
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        try:
            found.append(typed(json.loads(line), kind))
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"line {number} of {path} is damaged; remove the folder, or give another --run") from error
    return found


def to_lines(entries: Iterable[DataclassInstance]) -> bytes:
    """Write dataclasses as lines of JSON."""
    return b"".join(json.dumps(asdict(entry), allow_nan=False).encode() + b"\n" for entry in entries)


def append_lines(file: BinaryIO, entries: Iterable[DataclassInstance]) -> None:
    """Add lines to a file, so that they are there whenever this process ends."""
    file.write(to_lines(entries))
    file.flush()
    os.fsync(file.fileno())
