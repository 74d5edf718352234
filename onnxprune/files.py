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
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file so that no reader ever sees half of it."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as f:
        try:
            json.dump(content, f, ensure_ascii=False)
            f.write("\n")
            f.close()
            os.chmod(f.name, 0o666 & ~_umask())
            os.replace(f.name, path)
        except BaseException:
            Path(f.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    """Read the permissions that new files lose; temporary files start without any for others."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
