"""Progress: a live line with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from onnxprune.cli.display import Shown


class Terminal(io.StringIO):
    """An error stream that a person looks at."""

    def isatty(self) -> bool:
        return True


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


def shown_on(stream: io.StringIO, clock: Time, monkeypatch: pytest.MonkeyPatch, quiet: bool = False) -> Shown:
    """Show progress on a stream; pytest replaces a stream that a fixture sets."""
    monkeypatch.setattr(sys, "stderr", stream)
    return Shown(quiet, clock)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def plain() -> io.StringIO:
    return io.StringIO()


def live_line(terminal: Terminal) -> str:
    """What a person sees: what came after the line was cleared last."""
    assert "\n" not in terminal.getvalue()
    return terminal.getvalue().rpartition("\r\033[K")[2]


def test_a_terminal_shows_how_far_a_stage_is_and_after_two_seconds_what_is_left(
    terminal: Terminal, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_on(terminal, clock, monkeypatch)
    shown.stage("search")
    assert live_line(terminal) == "search ..."
    clock.now += 1.9
    shown.step(10, 100)
    assert live_line(terminal) == "search ... 10/100"
    clock.now += 2.1
    shown.step(20, 100)
    assert live_line(terminal) == "search ... 20/100, about 16 s left"
    clock.now += 200
    shown.step(40, 100)
    assert live_line(terminal) == "search ... 40/100, about 5 min left"
    shown.step(40, 100, limit=12.0)
    assert live_line(terminal) == "search ... 40/100, about 12 s left"
    shown.step(100, 100)
    assert live_line(terminal) == "search ... 100/100"
    shown.close()
    assert live_line(terminal) == ""


def test_a_stage_that_counts_anew_estimates_anew(
    terminal: Terminal, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_on(terminal, clock, monkeypatch)
    shown.stage("search")
    for done in range(1, 11):
        clock.now += 100
        shown.step(done, 10)
    clock.now += 3
    shown.step(1, 21)
    assert live_line(terminal) == "search ... 1/21, about 60 s left"
    clock.now += 3
    shown.step(0, 21)
    assert live_line(terminal) == "search ... 0/21"


def test_a_new_stage_owes_nothing_to_the_time_of_the_last(
    terminal: Terminal, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_on(terminal, clock, monkeypatch)
    shown.stage("search")
    clock.now += 1000
    shown.stage("repair")
    clock.now += 4
    shown.step(2, 4)
    assert live_line(terminal) == "repair ... 2/4, about 4 s left"


def test_a_line_of_the_result_takes_the_place_of_the_live_line(
    terminal: Terminal, clock: Time, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = shown_on(terminal, clock, monkeypatch)
    shown.stage("search")
    shown.say("trial 1")
    assert capsys.readouterr().out == "trial 1\n"
    assert terminal.getvalue() == "\r\033[Ksearch ...\r\033[K\r\033[Ksearch ..."


def test_elsewhere_a_long_stage_writes_a_line_every_ten_seconds_at_most(
    plain: io.StringIO, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_on(plain, clock, monkeypatch)
    shown.stage("search")
    for done in range(1, 26):
        clock.now += 1
        shown.step(done, 100)
    shown.stage("write")
    assert plain.getvalue().splitlines() == [
        "search ...",
        "search ... 10/100, about 90 s left",
        "search ... 20/100, about 80 s left",
        "write ...",
    ]


def test_what_a_stage_has_come_to_stands_between_how_far_it_is_and_what_is_left(
    terminal: Terminal, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_on(terminal, clock, monkeypatch)
    shown.stage("search")
    clock.now += 62
    shown.step(34, 100, "best error 0.0531 at 49.8% of the FLOPs")
    expected = "search ... 34/100, best error 0.0531 at 49.8% of the FLOPs, about 2 min left"
    assert live_line(terminal) == expected
    assert len(expected) < 80


def test_quiet_writes_nothing_anywhere(
    terminal: Terminal, clock: Time, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = shown_on(terminal, clock, monkeypatch, quiet=True)
    shown.stage("search")
    clock.now += 100
    shown.step(1, 10)
    shown.say("trial 1")
    shown.close()
    assert terminal.getvalue() == capsys.readouterr().out == ""
