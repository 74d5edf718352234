"""Files beside the model: JSON in and out, never half-written."""

from __future__ import annotations

import json
import os
import tempfile
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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that no reader ever sees half of it."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
        try:
            json.dump(content, f, ensure_ascii=False)
            f.write("\n")
            f.close()
            os.replace(f.name, path)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise
