"""The files a run writes: checked before any work is done, written together at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from onnxprune import model as models
from onnxprune import plan as plans
from onnxprune.attempt import Attempt
from onnxprune.errors import InputError
from onnxprune.files import is_same, write_json
from onnxprune.model import Model
from onnxprune.reporting import Report


def default_output(path: Path) -> Path:
    """Name the result of compressing a model where nothing was asked for."""
    return Path(f"{path.name.removesuffix('.onnx')}.pruned.onnx")


KINDS = ("plan", "report")
"""What goes beside a result."""


def check_outputs(
    path: Path,
    out: Path,
    force: bool,
    kinds: Sequence[str] = KINDS,
    read: Sequence[str | Path | None] = (),
) -> None:
    """Make sure that the results can be written before any work is done, and over nothing that is read.

    Args:
        path: the input model.
        out: the file to write.
        force: overwrite what exists.
        kinds: of what is written beside it.
        read: whatever else is read, such as samples; what is no file is left out.

    Raises:
        InputError: the folder is missing, or something is in the way.
    """
    if not out.parent.is_dir():
        raise InputError(f"the folder {out.parent} does not exist; create it or choose another -o")
    if out.is_dir():
        raise InputError(f"{out} is a folder; give a file name with -o")
    if is_same(path, out):
        raise InputError(f"-o {out} is the input model; choose another name")
    files = written_files(out, kinds)
    for other in (Path(other) for other in read if other is not None):
        if other.is_file() and any(is_same(file, other) for file in files):
            raise InputError(f"-o {out} would overwrite {other}, which is read; choose another name")
    for file in files:
        if file.exists() and not force:
            raise InputError(f"{file} exists; choose another -o or overwrite it with --force")


def check_apart(model: Model, out: Path, whose: str = "the input model") -> None:
    """Make sure that writing the result would not destroy the weights of the input model, or of another that is read.

    Raises:
        InputError: it would.
    """
    for file in model.data_files:
        if any(is_same(written, file) for written in (out, models.data_file(out))):
            raise InputError(f"{file} holds the weights of {whose}; choose another -o")


def write_results(path: Path, out: Path, attempt: Attempt, result: ModelProto, report: Report) -> None:
    """Write model, plan and report aside, then move them to their place, the model before what points to it."""
    channels = attempt.channels
    folded = attempt.problem.lossless.folded
    described = plans.to_json(channels, attempt.plan, plans.file_sha256(path), report.settings, folded)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        draft = Path(scratch) / out.name
        models.save(result, draft, channels.model.folder)
        files = [file for file in (models.data_file(draft), draft) if file.exists()]
        report.before.file_bytes = path.stat().st_size + sum(file.stat().st_size for file in channels.model.data_files)
        report.after.file_bytes = sum(file.stat().st_size for file in files)
        for kind, content in (("plan", described), ("report", report.to_json())):
            files.append(beside(draft, kind))
            write_json(files[-1], content)
        move(files, out)


def move(files: Sequence[Path], out: Path) -> None:
    """Move files that were written aside to their place beside a result, each under its name.

    Args:
        files: the weights of the result where they lie in a file of their own, the result, and what points to it.
        out: where the result goes.
    """
    if all(file.name != models.data_file(out).name for file in files):
        models.data_file(out).unlink(missing_ok=True)  # of a result that is being overwritten
    for file in files:
        os.replace(file, out.parent / file.name)


def beside(out: Path, kind: str) -> Path:
    """Name a file that goes beside the result: small.onnx has small.plan.json."""
    return out.with_name(f"{out.name.removesuffix('.onnx')}.{kind}.json")


def written_files(out: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """List a result, the data that may lie beside it, and what tells of it."""
    return [out, models.data_file(out), *(beside(out, kind) for kind in kinds)]
