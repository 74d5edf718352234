"""What a report says was asked for: what the user asked, not what a search tried on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import dense, run, write

import onnxprune
from onnxprune import CompressSettings, dropping, finish, runtime
from onnxprune.reporting import Report


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = dense()
    write(model, Path("model.onnx"))
    x = np.random.default_rng(1).standard_normal((300, 20)).astype(np.float32)
    y = runtime.evaluate(model, {model.graph.input[0].name: x})[0].argmax(axis=1)
    np.savez("data.npz", x=x, y=y)
    return tmp_path


def compress(dry_run: bool, **asked: Any) -> Report:
    settings = CompressSettings(**{"align": 4, "search": "uniform", **asked})
    return onnxprune.compress("model.onnx", "small.onnx", settings, data="data.npz", force=True, dry_run=dry_run)


def test_a_dry_run_says_what_its_plan_loses_of_what_may_be_lost_as_the_real_run_does(folder: Path) -> None:
    planned = compress(dry_run=True, max_drop=10.0)
    assert not Path("small.onnx").exists()
    assert planned.target == {"max_drop": {"asked": "10.0", "limit": 10.0, "reached": pytest.approx(5, abs=5)}}
    assert planned.after.macs < planned.before.macs
    assert compress(dry_run=False, max_drop=10.0, align=4).target == planned.target


def test_a_dry_run_says_where_every_cut_loses_too_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish.Finish, "drop", lambda *_: 0.5)
    planned = compress(dry_run=True, max_drop=0.0)
    assert planned.after.macs == planned.before.macs
    assert any("every cut that was tried loses more than 0 points" in note for note in planned.notes)


def test_shares_that_max_drop_tries_are_no_target_that_a_note_could_speak_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropping, "TRIALS", 1)
    tried = compress(dry_run=True, max_drop=99.0, align=32)
    assert tried.after.macs < tried.before.macs
    assert not any("of the original's cost unused" in note for note in tried.notes)


def test_a_dry_run_says_that_it_leaves_steps_out(folder: Path) -> None:
    asked = ("--data", "data.npz", "--steps", 2, "--finetune-epochs", 1, "--budget", 2, "--dry-run")
    outcome = run("compress", "model.onnx", "--flops", 0.5, *asked)
    assert outcome.code == 0, outcome.err
    assert "--steps trains in between" in outcome.out
