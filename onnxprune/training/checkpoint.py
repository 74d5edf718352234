"""What a training run saves, so that it goes on where it was, or gives back its best epoch."""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from onnxprune.errors import InputError
from onnxprune.files import aside

FORMAT = "onnxprune.training/1"
LAST, BEST, LOG = "last.pt", "best.pt", "log.jsonl"


def save(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write a state so that no reader ever sees half of it."""
    content = BytesIO()
    torch.save({"format": FORMAT, **state}, content)  # to a full disk it would fail without saying why
    with aside(folder / name) as draft, draft.open("wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def load(folder: Path, name: str) -> dict[str, Any]:
    """Read a state.

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path} does not exist; remove {folder} to train anew, or give another --run")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path} is damaged; remove it to train anew, or give another --run") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} was not written by this version of onnxprune; start again with another --run")
    return state


def of_others(folder: Path) -> list[Path]:
    """List files that a run would overwrite and that no run has written."""
    if (folder / LAST).exists():  # what is wrong with it is told where it is loaded
        return []
    found = [folder / LOG] if (folder / LOG).exists() else []  # runs write it with their first checkpoint
    try:
        if (folder / BEST).exists():
            load(folder, BEST)
    except InputError:
        found.append(folder / BEST)
    return found


def open_board(folder: Path, epoch: int) -> Any:
    """Open a log for TensorBoard that goes on behind an epoch.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs a package: pip install onnxprune[tensorboard]") from error
    return SummaryWriter(str(folder), purge_step=epoch + 1)


def log(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write what happened in each epoch, a line of JSON each."""
    with aside(folder / LOG) as draft:
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
