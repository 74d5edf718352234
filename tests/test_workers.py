"""Workers judge as one process does, end with the run, and say what went wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_nets import Array, dense, run, write

from onnxprune import judging, prepare
from onnxprune.errors import InputError
from onnxprune.plan import Plan, whole
from onnxprune.prepare import Source
from onnxprune.settings import CompressSettings, resolve
from onnxprune.workers import THREAD_VARIABLES, Workers

SETTINGS = resolve(CompressSettings({"macs": "0.5"}), has_data=True)
PROGRAM = Path(sys.executable).with_name("onnxprune")

on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(dense(), tmp_path / "model.onnx")
    np.save("x.npy", vectors())
    return tmp_path


def vectors() -> Array:
    return np.random.default_rng(1).standard_normal((300, 20)).astype(np.float32)


def source(data: str = "x.npy") -> Source:
    return Source(Path("model.onnx"), SETTINGS, data)


def members(group: int) -> set[int]:
    """Processes of a group that still run."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(") ")
        except OSError:  # it has just ended
            continue
        state, _, own = rest.split()[:3]
        if int(own) == group and state not in "ZX":
            found.add(int(name.split(" ")[0]))
    return found


def wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def test_two_workers_give_the_plan_of_one_and_do_all_the_judging(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judged_here(*_: Any) -> None:
        raise AssertionError("the process that started the workers judged by itself")

    options = ("--flops", 0.5, "--data", "x.npy", "--align", 1, "--search", "random", "--budget", 12)
    alone = run("compress", "model.onnx", *options, "-o", "alone.onnx")
    monkeypatch.setattr(judging.Candidates, "errors", judged_here)
    together = run("compress", "model.onnx", *options, "-o", "together.onnx", "--workers", 2)
    assert (alone.code, together.code) == (0, 0), alone.err + together.err
    plans = [json.loads(Path(f"{name}.plan.json").read_text()) for name in ("alone", "together")]
    assert plans[0]["groups"] == plans[1]["groups"]
    assert Path("alone.onnx").read_bytes() == Path("together.onnx").read_bytes()
    scores = [json.loads(Path(f"{name}.report.json").read_text())["score"] for name in ("alone", "together")]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("search", ["greedy", "uniform"])
def test_every_search_runs_with_workers(folder: Path, search: str) -> None:
    options = ("--flops", 0.5, "--data", "x.npy", "--align", 8, "--search", search, "--budget", 4, "--workers", 2)
    outcome = run("compress", "model.onnx", *options, "-o", "small.onnx")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("small.report.json").read_text())["score"] < 0


def test_workers_judge_each_plan_once_and_in_order(folder: Path) -> None:
    prepared = prepare.prepare(source())
    channels = prepared.lossless.channels
    plans = [whole(channels), *(Plan(tuple(np.arange(n) for _ in channels.groups)) for n in (30, 10, 20))]
    expected = prepared.candidates(prepared.statistics()).errors(plans)
    with Workers(source(), 2) as workers:
        assert workers.errors(plans) == pytest.approx(expected, rel=1e-3, abs=1e-6)
        workers._pool.shutdown()  # what is known needs no process
        assert workers.errors(plans[::-1]) == pytest.approx(expected[::-1], rel=1e-3, abs=1e-6)
    assert judging.digest(plans[0]) != judging.digest(plans[1])


def test_workers_leave_the_environment_as_they_found_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = THREAD_VARIABLES
    monkeypatch.setenv(first, "3")
    for name in others:
        monkeypatch.delenv(name, raising=False)
    with Workers(source(), 2):
        assert {os.environ[name] for name in THREAD_VARIABLES} == {str(max(1, (os.cpu_count() or 1) // 2))}
    assert [os.environ.get(name) for name in THREAD_VARIABLES] == ["3", None, None]


def test_what_the_user_can_mend_is_told_as_it_would_be_without_workers(folder: Path) -> None:
    plan = whole(prepare.prepare(source()).lossless.channels)
    with (
        pytest.raises(InputError, match=r"--data absent\.npy: no such file"),
        Workers(source("absent.npy"), 1) as workers,
    ):
        workers.errors([plan])


def test_a_worker_that_is_ended_from_outside_is_an_error_that_says_what_to_do(folder: Path) -> None:
    Path("ending.py").write_text("import os\n\n\ndef batches():\n    os._exit(9)\n")
    plan = whole(prepare.prepare(source()).lossless.channels)
    with pytest.raises(InputError, match="give fewer --workers"), Workers(source("ending:batches"), 2) as workers:
        workers.errors([plan])
    assert multiprocessing.active_children() == []


def start(*options: str) -> subprocess.Popen[str]:
    """Run a search that would take for ever, as the leader of a group of processes, until its workers are at work."""
    process = subprocess.Popen(
        [PROGRAM, "compress", "model.onnx", "--flops", "0.5", "--data", "x.npy", "--workers", "2", *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background is started with the signal ignored, and would pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    while process.stderr.readline() not in ("search ...\n", ""):
        pass
    return process


ENDLESS = ("--search", "random", "--budget", "1000000000")


def interrupted(process: subprocess.Popen[str]) -> list[str]:
    """End a run as a terminal does, and give what it says then."""
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    wait_until(lambda: not members(process.pid), 5)
    return [line for line in err.splitlines() if line and not line.startswith("search ...")]


@on_linux
@pytest.mark.parametrize("wait", [0.0, 0.3], ids=["at once", "while they start"])
def test_ctrl_c_ends_all_workers_within_seconds(folder: Path, wait: float) -> None:
    before = set(os.listdir(folder))
    process = start(*ENDLESS)
    time.sleep(wait)
    assert interrupted(process) == ["error: interrupted; nothing was written, run the same command to start again"]
    assert set(os.listdir(folder)) == before


@on_linux
def test_ctrl_c_ends_workers_amid_their_work_and_keeps_what_they_have_judged(folder: Path) -> None:
    judged = Path("model.pruned.run", "judged.jsonl")
    process = start(*ENDLESS)
    wait_until(lambda: judged.exists() and judged.stat().st_size)
    assert len(members(process.pid)) >= 3
    assert interrupted(process) == [
        "error: interrupted; what was done is kept, and this goes on from there: onnxprune compress model.onnx --resume"
    ]
    assert sorted(os.listdir("model.pruned.run")) == ["judged.jsonl", "run.json"]


@on_linux
def test_workers_end_with_a_run_that_is_killed(folder: Path) -> None:
    process = start(*ENDLESS)
    wait_until(lambda: len(members(process.pid)) >= 4)  # two workers, and the process that counts their resources
    process.kill()
    process.communicate(timeout=10)
    wait_until(lambda: not members(process.pid), 15)
