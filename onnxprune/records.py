"""What the folder of a run is for: its record, and where it is."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onnxprune.errors import InputError
from onnxprune.files import read_json, typed
from onnxprune.preprocess import PREPROCESS
from onnxprune.settings import CompressSettings, resolve

ASKED, JUDGED, MEASURED, PARETO = "run.json", "judged.jsonl", "measured.jsonl", "pareto.json"
FILES = frozenset({ASKED, JUDGED, MEASURED, PARETO, f".{ASKED}", f".{PARETO}"})
FOLDERS = ("training-", "step-")  # what the names of folders in it begin with

State = Literal["searching", "writing", "finished"]


@dataclass(frozen=True)
class Record:
    """What ``run.json`` holds.

    Attributes:
        format: of the file.
        identity: what the numbers in the folder depend on, by the name that is told where it differs.
        settings: of the run.
        policy: hash of the file of the policy, where there is one: `policy train` writes its file again and again.
        data: where its samples are from.
        preprocess: how pixels become inputs.
        label_offset: the output index of a class is its label plus this.
        output: the file to write.
        place: the working folder, which these paths start from.
        dry_run: whether nothing is to be written.
        is_kept: whether the folder stays when the run has ended well.
        began: how many plans had been judged here before this run.
        earlier: how many of them when a run for something else last finished here; it may learn from these.
        state: how far it is; from `writing` on, its results may be there.
    """

    format: Literal["onnxprune.run/1"]
    identity: dict[str, str]
    settings: CompressSettings
    policy: str | None
    data: str
    preprocess: str
    label_offset: int
    output: str
    place: str
    dry_run: bool
    is_kept: bool
    began: int
    earlier: int
    state: State

    def found(self, text: str) -> str:
        """Find what was given in the working folder of that time, where it is another now."""
        then = Path(self.place, text)
        return str(then) if Path.cwd() != Path(self.place) and text not in PREPROCESS and then.exists() else text

    @property
    def out(self) -> Path:
        """The file to write."""
        return Path(self.found(str(Path(self.output).parent)), Path(self.output).name)


@dataclass(frozen=True)
class Place:
    """Where the folder of a run is.

    Attributes:
        folder: it.
        is_given: whether the user named it, so that it stays.
    """

    folder: Path
    is_given: bool = True


def policy_hash(settings: CompressSettings) -> str | None:
    """Hash the file of the policy that a search starts from; None where there is none."""
    if settings.policy is None or not Path(settings.policy).is_file():
        return None
    return hashlib.sha256(Path(settings.policy).read_bytes()).hexdigest()


def default_folder(out: Path) -> Path:
    """Name the folder of a run by the file that it writes: small.onnx has small.run beside it."""
    return out.with_name(f"{out.name.removesuffix('.onnx')}.run")


def read_record(folder: Path) -> Record | None:
    """Read what a folder is for; None where no run has begun in it.

    Raises:
        InputError: the folder holds something else, or is damaged.
    """
    if not os.path.exists(folder):  # which is False for a name that no file can have, too
        return None
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give another --run")
    path, found = folder / ASKED, sorted(folder.iterdir())
    other = [file.name for file in found if (file.is_symlink() if is_ours(file) else not path.exists())]
    if other:
        raise InputError(f"{folder} holds {other[0]!r}, which is no part of a run; give another --run")
    if not path.exists():
        return None
    try:
        record: Record = typed(read_json(path), Record)
    except (InputError, TypeError) as error:
        raise InputError(
            f"{path} is damaged or was written by another version of onnxprune; remove the folder, or give another "
            "--run"
        ) from error
    return record


def unfinished(folder: Path) -> Record:
    """Read what a run was asked for that is to go on.

    Raises:
        InputError: there is none in this folder.
    """
    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder} holds no run to go on with; leave --resume out, or give its folder with --run")
    if record.state == "finished":
        raise InputError(f"the run in {folder} has finished; leave --resume out to start another there")
    policy = record.settings.policy
    if policy is not None and Path(policy).is_file() and policy_hash(record.settings) != record.policy:
        raise InputError(
            f"{policy} is another policy than the run in {folder} began with; bring that back, or leave --resume out"
        )
    return record


def can_go_on(folder: Path, settings: CompressSettings | None) -> bool:
    """Tell whether a folder holds an unfinished run, with these settings where any are given."""
    try:
        found = unfinished(folder).settings
        return settings is None or _are_same(found, resolve(settings, has_data=True))
    except InputError:
        return False


def is_half_written(folder: Path, out: Path) -> bool:
    """Tell whether a run was ended amid writing its results to a file, so that what is there may be its own."""
    record = read_record(folder)
    return record is not None and record.state == "writing" and record.out.absolute() == out.absolute()


def is_finished(folder: Path, settings: CompressSettings) -> bool:
    """Tell whether a run with these settings is what finished last in a folder."""
    record = read_record(folder)
    if record is None or record.state != "finished":
        return False
    return _are_same(record.settings, settings) and record.policy == policy_hash(settings)


def _are_same(found: CompressSettings, asked: CompressSettings) -> bool:
    """Compare the settings of a run with those asked for; `auto` widths have been measured in the run."""
    return (replace(found, align="auto") if asked.align == "auto" else found) == asked


def is_ours(file: Path) -> bool:
    """Tell whether a file in the folder of a run is one that runs write."""
    return file.name in FILES or file.name.startswith(FOLDERS)
