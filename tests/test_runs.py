"""Runs and their folders: killed at any moment, a run goes on and ends where an uninterrupted one does."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from cli_nets import Outcome, convs, dense, files, run, write

import onnxprune
from onnxprune import CompressSettings, finish, judging, outputs, pipeline, runs
from onnxprune.course import TIME_IS_UP
from onnxprune.errors import InputError, LostWorkerError, OnnxPruneError, TargetError, VerifyError
from onnxprune.files import read_lines, to_lines
from onnxprune.journal import Entry
from onnxprune.plan import Plan
from onnxprune.problem import Problem
from onnxprune.records import can_go_on, is_finished
from onnxprune.search import Progress, SearchSettings
from onnxprune.search.random import search
from onnxprune.settings import resolve

BASE = ("compress", "model.onnx", "--flops", 0.5, "--data", "x.npy", "--align", 1)
RANDOM = ("--search", "random", "--budget", 12)
SEARCH = (*BASE, *RANDOM)
TRAIN = (*("compress", "net.onnx", "--flops", 0.5, "--data", "images.npy", "--align", 2), "--budget", 6)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path)
    return tmp_path


def fill(place: Path) -> None:
    write(dense(), place / "model.onnx")
    write(convs((8, 12), image=(3, 8, 8)), place / "net.onnx")
    rng = np.random.default_rng(1)
    np.save(place / "x.npy", rng.standard_normal((300, 20)).astype(np.float32))
    np.save(place / "images.npy", rng.standard_normal((400, 3, 8, 8)).astype(np.float32))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """What runs write that nobody interrupts, each run once."""
    place = tmp_path_factory.mktemp("whole")
    fill(place)
    known: dict[Any, dict[str, bytes]] = {}

    def results(*words: object) -> dict[str, bytes]:
        if words not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                passed(*words, "-o", "small.onnx", "--force")
                known[words] = written()
        return known[words]

    return results


def written() -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in ("small.onnx", "small.plan.json")}


def passed(*words: object) -> Outcome:
    outcome = run(*words)
    assert outcome.code == 0, outcome.err
    return outcome


def failed(code: int, *words: object) -> str:
    outcome = run(*words)
    assert outcome.code == code, outcome.err
    (line,) = outcome.errors
    return line


def raising(error: BaseException) -> Callable[..., NoReturn]:
    def raise_it(*_: Any, **__: Any) -> NoReturn:
        raise error

    return raise_it


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a run in `kept` that was interrupted after five plans, and with one that has finished."""
    places = {}
    for name, ends_at in (("interrupted", {5: KeyboardInterrupt()}), ("finished", {})):
        places[name] = tmp_path_factory.mktemp(name)
        fill(places[name])
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(places[name])
            Counted(patch).ends_at = dict(ends_at)
            assert run(*SEARCH, "-o", "small.onnx", "--run", "kept").code == (130 if ends_at else 0)
    return places


def copied(begun: Path, folder: Path) -> Path:
    """Bring a folder with its run to another place, as if it had been begun there."""
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    file = folder / "kept" / runs.ASKED
    file.write_text(json.dumps({**json.loads(file.read_text()), "place": str(folder)}))
    return folder


@pytest.fixture
def interrupted(begun: dict[str, Path], folder: Path) -> Path:
    return copied(begun["interrupted"], folder)


@pytest.fixture
def finished(begun: dict[str, Path], folder: Path) -> Path:
    return copied(begun["finished"], folder)


class Counted:
    """Counts the plans that are really judged, and raises an error at one of them if it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plans: list[tuple[str, str]] = []
        self.ends_at: dict[int, BaseException] = {}
        real = judging.Candidates.errors

        def errors(candidates: judging.Candidates, plans: Any, *, effort: Any = "quick") -> list[float]:
            if len(self.plans) in self.ends_at:
                raise self.ends_at.pop(len(self.plans))
            self.plans += [(judging.digest(plan), effort) for plan in plans]
            return real(candidates, plans, effort=effort)

        monkeypatch.setattr(judging.Candidates, "errors", errors)

    def taken(self) -> list[tuple[str, str]]:
        found, self.plans = self.plans, []
        return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def lines(place: str) -> list[Entry]:
    return read_lines(Path(place, runs.JUDGED), Entry)


def names(place: str) -> list[tuple[str, str]]:
    return [(entry.plan, entry.effort) for entry in lines(place)]


def record(place: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(place, runs.ASKED).read_text())
    return content


def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("small.report.json").read_text())
    return content


# ---- killed

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killing(number: int, function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """End this process when a function is called for the nth time, before or after its work."""
    calls = itertools.count(1)

    def planted(*given: Any, **named: Any) -> Any:
        is_last = next(calls) == number
        if is_last and not after:
            kill()
        found = function(*given, **named)
        if is_last:
            kill()
        return found

    return planted


def tearing(number: int) -> Callable[..., None]:
    """End this process amid writing the nth line."""
    real, calls = runs.Run._append, itertools.count(1)

    def append(self: runs.Run, entries: Sequence[Entry]) -> None:
        if entries and next(calls) == number:
            self.begin()
            with (self.folder / runs.JUDGED).open("ab") as file:
                file.write(to_lines(entries)[:-9])
            kill()
        real(self, entries)

    return append


def moving(number: int) -> Callable[..., None]:
    """End this process when some of the results are in their place."""
    real = outputs.move

    def move(files: Sequence[Path], out: Path) -> None:
        real(files[:number], out)
        kill()

    return move


def plant(moment: str, number: int) -> None:
    from onnxprune.training.trainer import Trainer

    if moment == "torn line":
        runs.Run._append = tearing(number)  # type: ignore[method-assign]
    elif moment == "moved":
        outputs.move = moving(number)
    else:
        owner, name, after = {
            "judging": (judging.Candidates, "errors", False),
            "judged": (runs.Run, "_append", True),
            "begun": (runs, "replace_json", True),
            "repair": (finish.Finish, "repaired", False),
            "loss": (finish.Finish, "loss", True),
            "epoch": (Trainer, "_save_last", True),
            "step": (Trainer, "_step", False),
        }[moment]
        setattr(owner, name, killing(number, getattr(owner, name), after=after))


def child(place: str, words: tuple[object, ...], moment: str, number: int) -> None:
    os.chdir(place)
    if moment:
        plant(moment, number)
    os._exit(run(*words).code)


def start(words: tuple[object, ...], moment: str = "", number: int = 1) -> Any:
    """Start a run in a process of its own, forked from one in which all is imported and nothing was run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["onnxprune.pipeline", "onnxprune.training.lesson"])
    process = context.Process(target=child, args=(os.getcwd(), words, moment, number))
    process.start()
    return process


def killed(moment: str, number: int, *words: object) -> None:
    process = start(words, moment, number)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    process.close()


MOMENTS = [
    *(("begun", 1), ("judging", 1), ("judging", 5), ("torn line", 1), ("torn line", 4), ("judged", 6)),
    *(("repair", 1), ("moved", 1), ("moved", 2)),
]


@forks
@pytest.mark.parametrize(("moment", "number"), MOMENTS)
def test_a_run_that_is_killed_goes_on_and_ends_where_an_uninterrupted_one_does(
    folder: Path, whole: Callable[..., dict[str, bytes]], counted: Counted, moment: str, number: int
) -> None:
    expected, before = whole(*SEARCH), set(os.listdir())
    counted.taken()
    killed(moment, number, *SEARCH, "-o", "small.onnx")
    known = names("small.run") if moment != "begun" else []
    words = SEARCH if number % 2 else ("compress", "model.onnx", "--resume")
    passed(*words, "-o", "small.onnx")
    assert written() == expected
    judged = counted.taken()
    assert len({*known, *judged}) == len(known) + len(judged)
    assert bool(judged) == (moment not in ("repair", "moved"))
    left = {name for name in os.listdir() if not name.startswith(".small.onnx.")}  # what a kill leaves of its scratch
    assert left == before | {"small.onnx", "small.plan.json", "small.report.json"}


@forks
@pytest.mark.parametrize(
    "search", [("gnn_rl",), ("evolution",), ("amc",), ("gnn_rl", "--policy-preset", "paper")], ids=str
)
def test_what_a_search_learns_is_no_other_once_it_was_killed(
    folder: Path, whole: Callable[..., dict[str, bytes]], search: tuple[str, ...]
) -> None:
    words = (*BASE, "--search", *search, "--budget", 14)
    expected = whole(*words)
    killed("judging", 6, *words, "-o", "small.onnx")
    passed("compress", "model.onnx", "--resume", "-o", "small.onnx")
    assert written() == expected


@forks
def test_a_run_that_is_killed_again_and_again_comes_to_its_end(
    folder: Path, whole: Callable[..., dict[str, bytes]]
) -> None:
    words, rng, seconds = (*SEARCH, "-o", "small.onnx", "--run", "kept"), np.random.default_rng(), 2.0
    for _ in range(5):
        process = start(words)
        deadline = time.monotonic() + rng.uniform(0, seconds)
        while process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
    passed(*words, "--force")
    assert written() == whole(*SEARCH)
    assert len(set(names("kept"))) == len(names("kept"))


@forks
@pytest.mark.parametrize(("moment", "number", "left"), [("epoch", 2, 1), ("step", 4, 2)])
def test_training_that_is_killed_goes_on_with_the_epoch_it_was_in(
    folder: Path,
    whole: Callable[..., dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    number: int,
    left: int,
) -> None:
    from onnxprune.training.trainer import Trainer

    words = (*TRAIN, "--finetune-epochs", 3)
    expected = whole(*words)
    killed(moment, number, *words, "-o", "small.onnx")
    epochs, real = list[int](), Trainer._epoch
    monkeypatch.setattr(Trainer, "_epoch", lambda self, epoch: epochs.append(epoch) or real(self, epoch))
    passed("compress", "net.onnx", "-o", "small.onnx", "--resume")
    assert written() == expected
    assert epochs == [1, 2, 3][-left:]
    assert not Path("small.run").exists()


def test_no_training_goes_on_with_another_plan_or_other_epochs(folder: Path, whole: Callable[..., Any]) -> None:
    for epochs, flops in ((1, 0.5), (2, 0.5), (2, 0.7), (1, 0.5)):
        words = (*TRAIN[:3], flops, *TRAIN[4:], "--finetune-epochs", epochs)
        passed(*words, "-o", "small.onnx", "--run", "kept", "--force")
        if flops == 0.5:
            assert written() == whole(*words)
    assert len(list(Path("kept").glob("training-*"))) == 3


@forks
@pytest.mark.parametrize(("moment", "number"), [("judging", 4), ("judging", 9), ("epoch", 2)])
def test_of_a_run_in_steps_those_that_have_finished_are_taken_as_they_are(
    folder: Path,
    whole: Callable[..., dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    counted: Counted,
    moment: str,
    number: int,
) -> None:
    from onnxprune.training.trainer import Trainer

    words = (*TRAIN, "--finetune-epochs", 1, "--steps", 2)
    expected = whole(*words)
    counted.taken()
    killed(moment, number, *words, "-o", "small.onnx")
    steps = sorted(Path("small.run").glob("step-*"))
    known = [name for step in steps for name in names(str(step))]
    trained, real = list[int](), Trainer._epoch
    monkeypatch.setattr(Trainer, "_epoch", lambda self, epoch: trained.append(epoch) or real(self, epoch))
    searched, search = list[object](), pipeline._search
    monkeypatch.setattr(pipeline, "_search", lambda *given: searched.append(given) or search(*given))
    passed("compress", "net.onnx", "-o", "small.onnx", "--resume")
    assert len(searched) == 3 - len(steps)
    assert written() == expected
    judged = counted.taken()
    assert len({*known, *judged}) == len(known) + len(judged)
    assert len(trained) == 3 - len(steps) - (moment == "epoch")
    assert not Path("small.run").exists()


@forks
def test_a_search_for_a_largest_drop_goes_on_and_measures_nothing_twice(
    folder: Path, whole: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    words = ("compress", "model.onnx", "--max-drop", 10, *BASE[4:], "--budget", 4)
    losses, real = list[object](), finish.Finish.loss
    monkeypatch.setattr(finish.Finish, "loss", lambda *given: losses.append(given) or real(*given))
    expected = whole(*words)
    total = len(losses)
    counted.taken()
    killed("loss", 4, *words, "-o", "small.onnx")  # measured, and not yet written down
    known = names("small.run")
    losses.clear()
    passed(*words, "-o", "small.onnx")
    assert written() == expected
    assert len(losses) == total - 3
    judged = counted.taken()
    assert len({*known, *judged}) == len(known) + len(judged)


# ---- interrupted


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["-o", "small.onnx", "--run", "a b"], "onnxprune compress model.onnx --run 'a b' --resume"),
        (
            ["-o", "small.onnx", "--force", "--quiet"],
            "compress model.onnx --output small.onnx --force --quiet --resume",
        ),
        ([], "onnxprune compress model.onnx --resume"),
    ],
    ids=["run", "output", "nothing"],
)
def test_an_interrupt_keeps_what_was_judged_and_tells_the_command_that_goes_on(
    folder: Path, whole: Callable[..., dict[str, bytes]], counted: Counted, given: list[str], command: str
) -> None:
    expected = whole(*SEARCH)
    counted.taken()
    counted.ends_at = {5: KeyboardInterrupt(), 9: KeyboardInterrupt()}
    line = failed(130, *SEARCH, *given)
    assert line.startswith("error: interrupted; what was done is kept, and this goes on from there: ")
    assert line.endswith(command)
    words = shlex.split(line.partition(": onnxprune ")[2])
    assert failed(130, *words) == line  # and again
    assert len(counted.plans) == 9
    passed(*words)
    assert len(set(counted.plans)) == len(counted.plans)
    assert Path("small.onnx" if "-o" in given else "model.pruned.onnx").read_bytes() == expected["small.onnx"]
    assert Path("a b").exists() == ("--run" in given)
    assert not list(folder.glob("*.run"))


def test_a_run_whose_widths_were_measured_is_the_one_that_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    monkeypatch.setattr("onnxprune.prepare.kept.predictor", lambda *_: None)
    monkeypatch.setattr("onnxprune.prepare.fastest_multiple", lambda *_: 2)
    counted.ends_at = {3: KeyboardInterrupt()}
    words = [*SEARCH[:-5], "auto", *RANDOM, "-o", "small.onnx"]
    line = failed(130, *words)
    assert "what was done is kept, and this goes on from there" in line
    asked = CompressSettings({"macs": "0.5"}, search="random", budget=12, align="auto")
    assert can_go_on(Path("small.run"), asked)
    assert not can_go_on(Path("small.run"), replace(asked, align=4))
    passed(*words, "--run", "small.run")
    assert is_finished(Path("small.run"), resolve(asked, has_data=True))
    assert not is_finished(Path("small.run"), resolve(replace(asked, align=1), has_data=True))


@pytest.mark.parametrize("given", [[], ["--run", "kept"]])
@pytest.mark.parametrize("place", ["pipeline.prepare", "pipeline.importance", "judging.Candidates.errors"])
def test_an_interrupt_before_anything_is_judged_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, given: list[str]
) -> None:
    before = files(folder)
    monkeypatch.setattr(f"onnxprune.{place}", raising(KeyboardInterrupt()))
    line = failed(130, *SEARCH, *given)
    assert line == "error: interrupted; nothing was written, run the same command to start again"
    assert files(folder) == before
    assert not list(folder.glob("*.run")) + list(folder.glob("kept"))


@pytest.mark.parametrize(
    ("error", "code", "is_told"),
    [
        (TargetError("too far"), 3, False),
        (InputError("no such thing"), 2, False),
        (VerifyError("wrong"), 1, False),
        (LostWorkerError("a worker ended"), 2, True),
        (OSError(errno.ENOSPC, "No space left on device"), 2, True),
        (MemoryError(), 2, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_failed_run_has_judged_stays_and_is_not_judged_again(
    folder: Path,
    whole: Callable[..., dict[str, bytes]],
    counted: Counted,
    error: BaseException,
    code: int,
    is_told: bool,
) -> None:
    expected = whole(*SEARCH)
    counted.taken()
    counted.ends_at = {2: error}
    line = failed(code, *SEARCH, "-o", "small.onnx")
    again = "; what was done is kept, and this goes on from there: onnxprune compress model.onnx --output small.onnx"
    assert (again in line) == is_told
    passed(*SEARCH, "-o", "small.onnx")
    assert written() == expected
    assert len(counted.plans) == len(set(counted.plans))
    assert not Path("small.run").exists()


def test_what_was_judged_stays_where_the_result_cannot_be_verified(
    folder: Path, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    monkeypatch.setattr("onnxprune.pipeline.verify", raising(VerifyError("wrong")))
    failed(1, *SEARCH, "-o", "small.onnx")
    assert len(names("small.run")) >= 12


def test_a_failed_run_leaves_a_folder_as_it_found_it(finished: Path, counted: Counted) -> None:
    before = files(Path("kept"))
    failed(3, *BASE[:3], 0.0001, *BASE[4:], "-o", "other.onnx", "--run", "kept")
    assert files(Path("kept")) == before
    Path("mine").mkdir()
    counted.ends_at = {len(counted.plans): InputError("no such thing")}
    failed(2, *SEARCH, "-o", "other.onnx", "--run", "mine")
    assert os.listdir("mine") == []


def test_what_else_lies_in_a_folder_stays(interrupted: Path) -> None:
    Path("kept").rename("small.run")
    Path("small.run", runs.ASKED).write_text(json.dumps({**record("small.run"), "is_kept": False}))
    Path("small.run", "notes.txt").write_text("mine")
    passed(*SEARCH, "-o", "small.onnx")
    assert os.listdir("small.run") == ["notes.txt"]
    assert "holds 'notes.txt', which is no part of a run" in failed(2, *SEARCH, "-o", "small.onnx", "--force")
    assert os.listdir("small.run") == ["notes.txt"]


# ---- a folder given again


def test_a_finished_run_again_judges_nothing_and_gives_the_same(
    finished: Path, whole: Callable[..., dict[str, bytes]], counted: Counted
) -> None:
    expected = whole(*SEARCH)
    counted.taken()
    passed(*SEARCH, "-o", "small.onnx", "--run", "kept", "--force")
    assert counted.taken() == []
    assert written() == expected


def test_another_target_judges_only_plans_that_are_new_and_may_take_an_earlier_one(
    finished: Path, counted: Counted
) -> None:
    earlier = names("kept")
    passed(*BASE[:3], 0.6, *BASE[4:], "--search", "uniform", "-o", "small.onnx", "--run", "kept", "--force")
    assert [effort for _, effort in counted.taken()] == ["quick"]  # the finalists are fully repaired already
    assert record("kept")["earlier"] == len(earlier)
    chosen = [[group["kept"] for group in report()["groups"]]]
    assert chosen[0] in [list(entry.counts) for entry in lines("kept")[: len(earlier)]]
    assert any("an earlier run in this folder found the plan" in note for note in report()["notes"])
    passed(*BASE[:3], 0.6, *BASE[4:], "--search", "uniform", "-o", "small.onnx", "--force")
    assert not any("an earlier run" in note for note in report()["notes"])


@pytest.mark.parametrize(
    "given", [["--flops", 0.3], ["--align", 8], ["--criterion", "l1"], ["--min-keep", 30]], ids=str
)
def test_earlier_plans_are_no_candidates_where_a_search_could_not_come_to_them(
    finished: Path, given: list[object]
) -> None:
    words = list(BASE)
    if given[0] in words:
        words[words.index(given[0]) + 1] = given[1]
    else:
        words += given
    passed(*words, "--search", "uniform", "-o", "small.onnx", "--run", "kept", "--force")
    if "--align" in given:  # some that are aligned anyhow may be there
        assert all(group["kept"] % 8 == 0 or group["kept"] == group["width"] for group in report()["groups"])
    else:
        assert not any("an earlier run" in note for note in report()["notes"])


def test_what_a_search_learnt_for_another_target_is_learnt_from_the_same_when_it_goes_on_or_runs_again(
    folder: Path, counted: Counted
) -> None:
    learning = (*BASE[:3], 0.3, *BASE[4:], "--search", "gnn_rl", "--budget", 10, "-o", "small.onnx", "--force")
    passed(*learning)
    alone = counted.taken()
    passed(*SEARCH, "-o", "small.onnx", "--run", "kept", "--force")
    shutil.copytree("kept", "other")
    counted.taken()
    passed(*learning, "--run", "kept")
    expected, known = written(), names("kept")
    assert set(counted.taken()) - set(alone)  # it takes another way
    for _ in range(2):
        passed(*learning, "--run", "kept")
        assert (written(), counted.taken(), names("kept")) == (expected, [], known)
    for place in (3, 3):
        counted.ends_at = {place: KeyboardInterrupt()}
        failed(130, *learning, "--run", "other")
        counted.plans.clear()
    passed("compress", "model.onnx", "--resume", "--run", "other", "--force")
    assert (written(), names("other")) == (expected, known)


def test_later_searches_of_a_run_know_what_earlier_ones_have_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, visited = list[int](), list[int]()

    def looked(problem: Problem, settings: SearchSettings, progress: Progress) -> Plan:
        known.append(len(problem.known))
        visited.append(len(problem.visited))
        return search(problem, settings, progress)

    monkeypatch.setattr("onnxprune.search.random.search", looked)
    passed("compress", "model.onnx", "--max-drop", 10, *BASE[4:], *RANDOM, "-o", "small.onnx")
    assert known[0] == 0
    assert known[1] > 1
    assert known == sorted(known)
    assert set(visited) == {0}  # they were found for other targets, and are no candidates


def test_plans_of_a_run_that_was_interrupted_are_known_but_are_no_candidates(interrupted: Path) -> None:
    uniform = (*BASE[:3], 0.6, *BASE[4:], "--search", "uniform", "-o", "small.onnx")
    passed(*uniform, "--run", "kept")
    assert (record("kept")["began"], record("kept")["earlier"]) == (5, 0)
    assert not any("an earlier run" in note for note in report()["notes"])
    passed(*uniform, "--run", "kept", "--force")
    assert record("kept")["earlier"] == 0  # the same again
    passed(*SEARCH, "-o", "small.onnx", "--run", "kept", "--force")
    assert record("kept")["earlier"] == 6  # one has finished behind them


def test_two_runs_that_interrupt_each_other_end_as_if_each_were_alone(
    interrupted: Path, whole: Callable[..., dict[str, bytes]], counted: Counted
) -> None:
    expected, known = whole(*SEARCH), names("kept")
    counted.taken()
    counted.ends_at = {3: KeyboardInterrupt()}
    failed(130, *SEARCH, "--min-keep", 4, "-o", "small.onnx", "--run", "kept")
    passed(*SEARCH, "-o", "small.onnx", "--run", "kept")
    assert written() == expected
    assert len({*known, *counted.plans}) == len(known) + len(counted.plans)


def test_time_that_was_spent_before_an_interrupt_counts(interrupted: Path) -> None:
    content, spent = record("kept"), [replace(entry, seconds=3600.0) for entry in lines("kept")]
    content["settings"]["time_limit"] = 1800.0
    Path("kept", runs.ASKED).write_text(json.dumps(content))
    Path("kept", runs.JUDGED).write_bytes(to_lines(spent))
    passed("compress", "model.onnx", "--resume", "--run", "kept")
    assert report()["search"]["stopped"] == TIME_IS_UP
    assert report()["search"]["seconds"] >= 3600
    passed(*SEARCH, "--time-limit", "30m", "-o", "small.onnx", "--run", "kept", "--force")
    assert report()["search"]["seconds"] < 1800  # another run has time of its own


def test_the_best_plans_of_all_runs_are_listed_with_what_they_cost(finished: Path) -> None:
    passed(*BASE[:3], 0.8, *BASE[4:], *RANDOM, "-o", "small.onnx", "--run", "kept", "--force")
    found = json.loads(Path("kept", runs.PARETO).read_text())
    assert found["format"] == runs.PARETO_FORMAT
    assert found["groups"] == [group["name"] for group in report()["groups"]]
    assert found["original"]["macs"] == report()["before"]["macs"]
    judged = {entry.plan: entry for entry in lines("kept") if entry.effort == "quick"}

    def macs(counts: Sequence[int]) -> int:
        return 20 * counts[0] + counts[0] * counts[1] + counts[1] * 10

    expected = {
        one.plan
        for one in judged.values()
        if not any(
            macs(other.counts) <= macs(one.counts)
            and (other.error or 0) <= (one.error or 0)
            and (macs(other.counts), other.error) != (macs(one.counts), one.error)
            for other in judged.values()
        )
    }
    assert {plan["plan"] for plan in found["plans"]} == expected
    assert len(expected) > 3
    for plan in found["plans"]:
        entry = judged[plan["plan"]]
        assert (plan["counts"], plan["error"]) == (list(entry.counts), entry.error)
        assert plan["costs"]["macs"] == macs(entry.counts)


def test_the_best_plans_are_those_that_none_beats_in_what_has_a_target() -> None:
    rows = {"a": (8, 3, 0.1), "b": (4, 6, 0.1), "c": (4, 9, 0.2)}  # macs, params, error
    costs = {name: np.asarray([row[at] for row in rows.values()]) for at, name in enumerate(("macs", "params"))}
    others = {name: np.zeros(len(rows)) for name in ("file_bytes", "activation_bytes")}

    def best(*metrics: str) -> set[str]:
        problem: Any = SimpleNamespace(
            widths=np.asarray([9]),
            targets=[SimpleNamespace(metric=metric) for metric in metrics],
            costs=SimpleNamespace(of=lambda _: {**costs, **others}),
            channels=SimpleNamespace(groups=[]),
            original={**costs, **others},
        )
        entries = [Entry(name, "quick", row[-1], (9,), 1.0) for name, row in rows.items()]
        return {plan["plan"] for plan in runs.best_of(entries, problem)["plans"]}

    assert best() == best("macs") == {"b"}
    assert best("params") == {"a"}
    assert best("params", "macs") == {"a", "b"}


def test_workers_are_asked_for_as_many_plans_as_there_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    class Here:
        """Judges in this process what workers would."""

        def __init__(self, source: Any, count: int, sha256: str) -> None:
            prepared = pipeline.prepare(source)
            self.candidates = prepared.candidates(prepared.statistics())

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def errors(self, plans: Any, *, effort: Any = "quick") -> list[float]:
            asked.append(len(plans))
            return self.candidates.errors(plans, effort=effort)

    monkeypatch.setattr(pipeline, "Workers", Here)
    passed(*SEARCH, "-o", "small.onnx", "--workers", 3)
    assert max(asked) == 3


# ---- a folder of something else


def test_labels_that_mean_other_classes_make_another_run(folder: Path) -> None:
    x = np.load("x.npy")
    np.savez("labelled.npz", x=x, y=np.zeros(len(x), int))
    labelled = ("compress", "model.onnx", *SEARCH[2:], "--data", "labelled.npz", "-o", "small.onnx", "--run", "kept")
    passed(*labelled, "--budget", 2)
    line = failed(2, *labelled, "--budget", 2, "--label-offset", 1, "--force")
    assert "the runs in kept had another --label-offset, and what was judged there does not hold here" in line


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["--data", "images.npy"], "model, another samples, another --shape"),
        (["--data", "other.npy"], "samples"),
        (["--seed", 1], "--seed"),
        (["--repair", "bn"], "--repair"),
        (["--keep", "fc1"], "--keep"),
        (["--approximate"], "--approximate"),
        (["--slots"], "--slots"),
    ],
    ids=str,
)
def test_a_folder_of_another_model_or_other_data_is_refused_and_left_alone(
    finished: Path, given: list[object], what: str
) -> None:
    before = files(Path("kept"))
    np.save("other.npy", -np.load("x.npy"))
    model = "net.onnx" if "images.npy" in given else "model.onnx"
    line = failed(2, "compress", model, *SEARCH[2:], *given, "-o", "other.onnx", "--run", "kept")
    assert f"the runs in kept had another {what}, and what was judged there does not hold here" in line
    assert "give another --run, or remove the folder" in line
    assert files(Path("kept")) == before


def test_weights_beside_the_file_are_part_of_the_model(folder: Path) -> None:
    from cli_nets import write_outside

    write_outside(dense(), Path("model.onnx"))
    passed(*SEARCH, "-o", "small.onnx", "--run", "kept")
    data = Path("model.onnx.data")
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    assert "had another model" in failed(2, *SEARCH, "-o", "other.onnx", "--run", "kept")


DAMAGES: list[tuple[str, Any]] = [
    ("", None),
    ("{", None),
    ("[" * 100_000, None),
    ("[]", None),
    *(("", (name, value)) for name, value in [("format", "onnxprune.run/9"), ("identity", []), ("settings", {})]),
    *(("", ("data", value)) for value in (7, None, ["x.npy"])),
    *(("", (name, "1")) for name in ("began", "earlier", "label_offset", "dry_run", "is_kept")),
    *(("", (name, value)) for name, value in [("began", -1.5), ("state", "asleep"), ("output", None), ("more", 1)]),
]


@pytest.mark.parametrize(("text", "change"), DAMAGES, ids=range(len(DAMAGES)))
@pytest.mark.parametrize("how", ["resume", "again"])
def test_a_damaged_record_is_an_error_that_says_what_to_do(interrupted: Path, text: str, change: Any, how: str) -> None:
    path = Path("kept", runs.ASKED)
    path.write_text(text if change is None else json.dumps({**record("kept"), change[0]: change[1]}))
    before = files(Path("kept"))
    words = ("compress", "model.onnx", "--resume") if how == "resume" else (*SEARCH, "-o", "small.onnx")
    line = failed(2, *words, "--run", "kept")
    assert f"{path} is damaged or was written by another version" in line
    assert "remove the folder, or give another --run" in line
    assert files(Path("kept")) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", "many"), ("targets", {"macs": 0.5}), ("targets", {}), ("search", "magic"), ("shapes", {"x": "1"})],
)
def test_settings_of_a_record_are_checked_as_those_of_a_user_are(interrupted: Path, name: str, value: object) -> None:
    content = record("kept")
    content["settings"][name] = value
    Path("kept", runs.ASKED).write_text(json.dumps(content))
    failed(2, "compress", "model.onnx", "--resume", "--run", "kept")


@pytest.mark.parametrize(("began", "earlier"), [(-5, -7), (3, 5), (10**6, 10**6)])
def test_counts_of_a_record_that_do_not_fit_do_no_harm(
    interrupted: Path, whole: Callable[..., dict[str, bytes]], began: int, earlier: int
) -> None:
    Path("kept", runs.ASKED).write_text(json.dumps({**record("kept"), "began": began, "earlier": earlier}))
    passed("compress", "model.onnx", "--resume", "--run", "kept")
    assert set(written()) == set(whole(*SEARCH))


def test_a_damaged_line_is_an_error_and_lines_of_other_groups_are_passed_over(interrupted: Path) -> None:
    file = Path("kept", runs.JUDGED)
    sound = file.read_bytes()
    file.write_bytes(sound + b"{}\n")
    assert "line 6 of kept/judged.jsonl is damaged" in failed(2, "compress", "model.onnx", "--resume", "--run", "kept")
    strange = [Entry("a", "quick", 0.0, counts, 1.0) for counts in ((), (1,), (10**9, 10**9), (-1, 3))]
    file.write_bytes(sound + to_lines(strange))
    Path("kept", runs.ASKED).write_text(json.dumps({**record("kept"), "state": "finished"}))
    passed(*SEARCH, "-o", "small.onnx", "--run", "kept")
    plans = json.loads(Path("kept", runs.PARETO).read_text())["plans"]
    assert all(len(plan["plan"]) == 64 for plan in plans)


def test_a_folder_that_is_no_run_is_refused_and_left_alone(folder: Path) -> None:
    Path("photos").mkdir()
    Path("photos", "a.jpg").write_text("a")
    assert "photos holds 'a.jpg', which is no part of a run" in failed(2, *SEARCH, "--run", "photos")
    assert os.listdir("photos") == ["a.jpg"]
    assert "x.npy is no folder" in failed(2, *SEARCH, "--run", "x.npy")
    assert "cannot be written" in failed(2, *SEARCH, "--run", "x.npy/kept")
    Path("linked").mkdir()
    Path("linked", runs.JUDGED).symlink_to(folder / "x.npy")
    before = Path("x.npy").read_bytes()
    assert f"linked holds '{runs.JUDGED}'" in failed(2, *SEARCH, "--run", "linked")
    assert Path("x.npy").read_bytes() == before


def test_two_runs_in_one_folder_at_a_time_are_refused(folder: Path) -> None:
    pytest.importorskip("fcntl")
    import fcntl

    Path("kept").mkdir()
    with Path("kept", runs.JUDGED).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another run is at work in kept" in failed(2, *SEARCH, "--run", "kept")
        assert os.listdir("kept") == [runs.JUDGED]
    passed(*SEARCH, "--run", "kept")


def test_without_data_there_is_nothing_to_keep(folder: Path) -> None:
    line = failed(2, "compress", "model.onnx", "--flops", 0.5, "--run", "kept")
    assert "--run keeps what was judged on data; give --data, or leave --run out" in line
    passed("compress", "model.onnx", "--flops", 0.5, "--align", 1)
    assert not list(folder.glob("*.run")) + list(folder.glob("kept"))


def test_a_dry_run_keeps_only_what_it_is_told_to(folder: Path, counted: Counted) -> None:
    before = files(folder)
    passed(*SEARCH, "--dry-run")
    assert files(folder) == before
    passed(*SEARCH, "--dry-run", "--run", "kept")
    counted.taken()
    passed(*SEARCH, "-o", "small.onnx", "--run", "kept")
    assert counted.taken() == []


# ---- resume


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--flops", 0.5], "--flops"),
        (["--data", "x.npy"], "--data"),
        (["--budget", 100, "--align", 1], "--budget, --align"),
        (["-o", "small.onnx"], "--output"),
        (["--dry-run"], "--dry-run"),
        (["--shape", "x=1,20"], "--shape"),
        (["--time-limit", "5m"], "--time-limit"),
    ],
    ids=str,
)
def test_whatever_else_is_given_beside_resume_is_refused_by_name(
    interrupted: Path, options: list[object], named: str
) -> None:
    before = files(interrupted)
    line = failed(2, "compress", "model.onnx", "--resume", "--run", "kept", *options)
    assert f"--resume takes everything from the folder of the run; leave {named} out" in line
    assert files(interrupted) == before


def test_resume_takes_all_it_needs_from_the_folder_wherever_it_is_called(
    interrupted: Path, whole: Callable[..., dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    words = ("compress", "../model.onnx", "--resume", "--run", "../kept")
    out = passed(*words, "--json", "result.json").out
    assert f"../model.onnx with the samples of {interrupted / 'x.npy'}, to {interrupted / 'small.onnx'}" in out
    assert os.listdir() == ["result.json"]
    monkeypatch.chdir(interrupted)
    assert written() == whole(*SEARCH)
    assert report()["data"]["source"] == "x.npy"


def test_where_nothing_is_to_go_on_that_is_said(finished: Path) -> None:
    resume = ("compress", "model.onnx", "--resume")
    assert "the run in kept has finished" in failed(2, *resume, "--run", "kept")
    assert "model.pruned.run holds no run to go on with; leave --resume out" in failed(2, *resume)
    assert "small.run holds no run to go on with" in failed(2, *resume, "-o", "small.onnx")


def test_an_output_that_is_in_the_way_is_refused_before_anything_goes_on(interrupted: Path) -> None:
    Path("small.onnx").write_text("mine")
    before = files(interrupted)
    resume = ("compress", "model.onnx", "--resume", "--run", "kept")
    assert "small.onnx exists" in failed(2, *resume)
    assert files(interrupted) == before
    passed(*resume, "--force")


def test_a_folder_that_was_given_stays_and_one_that_was_not_goes(folder: Path, counted: Counted) -> None:
    for given, stays in (([], False), (["--run", "small.run"], True)):
        counted.plans.clear()
        counted.ends_at = {5: KeyboardInterrupt()}
        failed(130, *SEARCH, "-o", "small.onnx", "--force", *given)
        passed("compress", "model.onnx", "-o", "small.onnx", "--force", "--resume")
        assert Path("small.run").exists() == stays


def test_the_functions_do_what_the_commands_do(
    folder: Path, whole: Callable[..., dict[str, bytes]], counted: Counted
) -> None:
    expected = whole(*SEARCH)
    counted.taken()
    asked = CompressSettings({"macs": "0.5"}, search="random", budget=12, align=1)
    out = Path("small.onnx")
    for ends in (KeyboardInterrupt, LostWorkerError):
        counted.ends_at = {len(counted.plans) + 3: ends()}
        with pytest.raises(ends):
            onnxprune.compress(Path("model.onnx"), out, asked, data="x.npy")
    onnxprune.resume(Path("model.onnx"), out=out)
    assert written() == expected
    assert not Path("small.run").exists()
    with pytest.raises(OnnxPruneError, match="holds no run"):
        onnxprune.resume(Path("model.onnx"), run=Path("small.run"))
    shutil.rmtree("small.run", ignore_errors=True)
