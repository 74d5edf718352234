"""JSON files, in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxprune.errors import InputError


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file; `outputs` writes it aside first, so that no reader sees half of it."""
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
