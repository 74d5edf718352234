"""The journal: what was judged is never judged again, and a run that goes on finds all as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import InputError
from onnxprune.files import read_lines, replace_json, to_lines, typed
from onnxprune.journal import Entry, Journal, pareto
from onnxprune.judging import digest
from onnxprune.plan import Plan
from onnxprune.problem import Effort
from onnxprune.settings import CompressSettings


class Time:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 500.0

    def __call__(self) -> float:
        return self.now


class Judge:
    """Answers by a formula, takes a second for each plan, and remembers what it was asked for together."""

    def __init__(self, clock: Time | None = None) -> None:
        self.clock = clock or Time()
        self.asked: list[list[tuple[str, Effort]]] = []

    def errors(self, plans: Sequence[Plan], *, effort: Effort = "quick") -> list[float]:
        self.asked.append([(digest(plan), effort) for plan in plans])
        self.clock.now += len(plans)
        return [error_of(plan, effort) for plan in plans]

    @property
    def all(self) -> list[tuple[str, Effort]]:
        return [name for part in self.asked for name in part]


def error_of(plan: Plan, effort: str) -> float:
    total = int(plan.counts.sum())
    return [math.inf, math.nan, 1 / 3][total % 7] if total % 7 < 3 else len(effort) / (1 + total)


def plan_of(*counts: int) -> Plan:
    return Plan(tuple(np.arange(count) for count in counts))


PLANS = [plan_of(a, b) for a in range(1, 5) for b in range(1, 5)]


def kept_in(file: Path) -> Callable[[Sequence[Entry]], None]:
    """Append to a file as runs do."""

    def append(entries: Sequence[Entry]) -> None:
        with file.open("ab") as stream:
            stream.write(to_lines(entries))

    return append


def test_each_plan_is_judged_once_for_each_effort_and_answers_stand_in_order() -> None:
    judge = Judge()
    journal = Journal(judge)
    asked = [PLANS[3], PLANS[5], PLANS[3]]
    assert journal.errors(asked) == [error_of(plan, "quick") for plan in asked]
    assert journal.errors(asked[::-1]) == [error_of(plan, "quick") for plan in asked[::-1]]
    assert journal.errors(asked, effort="full") == [error_of(plan, "full") for plan in asked]
    assert sorted(judge.all) == sorted({(digest(plan), effort) for plan in asked for effort in ("quick", "full")})
    assert journal.judged == {"quick": 2, "full": 2}


@pytest.mark.parametrize("together", [1, 3, 100])
def test_no_more_plans_are_judged_at_once_than_an_interrupt_may_lose(together: int) -> None:
    judge, kept = Judge(), list[int]()
    journal = Journal(judge, together=together, append=lambda entries: kept.append(len(entries)))
    journal.errors(PLANS[:7])
    assert [len(part) for part in judge.asked] == kept == {1: [1] * 7, 3: [3, 3, 1], 100: [7]}[together]
    journal.errors(PLANS[:7])
    assert kept[-1] == 0  # a question is told of even where nothing is new


def test_what_a_file_has_kept_is_answered_as_it_was_and_never_judged_again(tmp_path: Path) -> None:
    file = tmp_path / "judged.jsonl"
    first = Journal(Judge(), append=kept_in(file))
    answers = {effort: first.errors(PLANS, effort=effort) for effort in ("probe", "quick", "full")}
    judge = Judge()
    again = Journal(judge, read_lines(file, Entry))
    assert {effort: again.errors(PLANS, effort=effort) for effort in ("probe", "quick", "full")} == answers
    assert judge.asked == []
    assert all("NaN" not in line and "Infinity" not in line for line in file.read_text().splitlines())


def test_what_is_no_number_is_infinite_at_once_and_when_it_is_repeated(tmp_path: Path) -> None:
    strange = [plan for plan in PLANS if not math.isfinite(error_of(plan, "quick"))]
    assert len(strange) > 2
    file = tmp_path / "judged.jsonl"
    assert Journal(Judge(), append=kept_in(file)).errors(strange) == [math.inf] * len(strange)
    assert Journal(Judge(), read_lines(file, Entry)).errors(strange) == [math.inf] * len(strange)


def test_points_lost_are_measured_once(tmp_path: Path) -> None:
    file, measured = tmp_path / "judged.jsonl", list[float]()

    def measure() -> float:
        measured.append(2.5)
        return 2.5

    journal = Journal(Judge(), append=kept_in(file))
    assert (journal.drop(PLANS[0], measure), journal.drop(PLANS[0], measure)) == (2.5, 2.5)
    assert Journal(Judge(), read_lines(file, Entry)).drop(PLANS[0], measure) == 2.5
    assert measured == [2.5]
    assert journal.judged == {"drop": 1}


def test_a_file_cut_off_anywhere_loses_one_line_at_most_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "judged.jsonl"
    Journal(Judge(), append=kept_in(file)).errors(PLANS[:3])
    content, entries = file.read_bytes(), read_lines(file, Entry)
    for size in range(len(content) + 1):
        file.write_bytes(content[:size])
        found = read_lines(file, Entry)
        assert found == entries[: content[:size].count(b"\n")]
        kept_in(file)(entries[len(found) :])
        assert file.read_bytes() == content


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"plan": "a"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"plan": "a", "effort": "quick", "error": 0.5, "counts": [1], "seconds": 1, "more": 2}',
        b'{"plan": 7, "effort": "quick", "error": 0.5, "counts": [1], "seconds": 1}',
        b'{"plan": "a", "effort": "some", "error": 0.5, "counts": [1], "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": "0.5", "counts": [1], "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": NaN, "counts": [1], "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": 1e999, "counts": [1], "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": 0.5, "counts": [1.5], "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": 0.5, "counts": [true], "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": 0.5, "counts": [1' + b"0" * 30 + b'], "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": 0.5, "counts": {}, "seconds": 1}',
        b'{"plan": "a", "effort": "quick", "error": 0.5, "counts": [1], "seconds": null}',
    ],
)
def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "judged.jsonl"
    Journal(Judge(), append=kept_in(file)).errors(PLANS[:1])
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match=r"line 2 of .*judged\.jsonl is damaged; remove the folder"):
        read_lines(file, Entry)


def test_what_earlier_runs_left_and_what_was_asked_for_so_far_is_told_in_order_and_the_rest_is_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "judged.jsonl"
    Journal(Judge(), append=kept_in(file)).errors(PLANS[:7])
    again = Journal(Judge(), read_lines(file, Entry), began=2, earlier=2)
    again.errors([PLANS[5], PLANS[9], PLANS[0], PLANS[5]])
    again.errors(PLANS[3:4], effort="full")
    told = [(entry.plan, entry.effort) for entry in again.answered]
    expected = [(PLANS[at], "quick") for at in (0, 1, 5, 9)] + [(PLANS[3], "full")]
    assert told == [(digest(plan), effort) for plan, effort in expected]


# ---- time


def test_time_is_that_of_the_last_plan_judged_and_what_is_repeated_counts_as_it_did(tmp_path: Path) -> None:
    file, clock = tmp_path / "judged.jsonl", Time()
    first = Journal(Judge(clock), append=kept_in(file), clock=clock)
    assert first.seconds == 0
    first.errors(PLANS[:4])
    clock.now += 0.5
    assert first.seconds == 4
    clock.now += 10_000  # the computer was off
    again = Journal(Judge(clock), read_lines(file, Entry), clock=clock)
    again.errors(PLANS[:3])
    assert again.seconds == 3
    again.errors(PLANS[:6])
    assert again.seconds == 6
    assert [entry.seconds for entry in again.entries] == [1, 2, 3, 4, 5, 6]


def test_what_other_runs_have_judged_takes_no_time(tmp_path: Path) -> None:
    file, clock = tmp_path / "judged.jsonl", Time()
    Journal(Judge(clock), append=kept_in(file), clock=clock).errors(PLANS[:4])
    other = Journal(Judge(clock), read_lines(file, Entry), began=4, earlier=4, clock=clock)
    other.errors(PLANS[:4])
    assert other.seconds == 0
    other.errors(PLANS[:5])
    assert other.seconds == 1
    assert [entry.plan for entry in other.earlier] == [digest(plan) for plan in PLANS[:4]]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_run_that_is_interrupted_anywhere_asks_sees_and_leaves_the_same(data: st.DataObject) -> None:
    effort = st.sampled_from(["probe", "quick", "full"])
    questions = data.draw(st.lists(st.tuples(effort, st.lists(st.sampled_from(PLANS), max_size=4)), max_size=8))
    limit = data.draw(st.integers(0, 20))

    def run(entries: Sequence[Entry]) -> tuple[Journal, list[object], int]:
        """A search that asks, looks at the time before each question, and ends when it is over."""
        clock = Time()
        judge = Judge(clock)
        journal, seen = Journal(judge, entries, clock=clock), list[object]()
        for how, plans in questions:
            if journal.seconds >= limit:
                seen.append("stopped")
                break
            seen.append(journal.errors(plans, effort=how))
            clock.now += 0.25  # of thinking
        return journal, seen, len(judge.all)

    whole, seen, judged = run([])
    lines = to_lines(whole.entries).splitlines(keepends=True)
    cut = data.draw(st.integers(0, len(lines)))
    known = [typed(json.loads(line), Entry) for line in lines[:cut]]
    again, seen_again, judged_again = run(known)
    assert seen_again == seen
    assert judged_again == judged - cut
    assert [entry.plan for entry in again.entries] == [entry.plan for entry in whole.entries]
    assert again.judged == whole.judged


# ---- the best of all


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3), st.data())
def test_the_plans_that_none_beats_are_those_of_a_look_at_all_pairs(kinds: int, data: st.DataObject) -> None:
    plans = data.draw(st.lists(st.tuples(*[st.integers(0, 5)] * (1 + kinds)), max_size=12))

    def beats(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    costs = np.asarray([plan[1:] for plan in plans], float).reshape(len(plans), kinds)
    found = pareto([plan[0] for plan in plans], costs)
    expected = {at for at, plan in enumerate(plans) if not any(beats(other, plan) for other in plans)}
    assert set(found) == expected
    assert len(found) == len(expected)
    cheapest = [plans[at][1] for at in found]
    assert cheapest == sorted(cheapest)


# ---- what JSON holds


def test_settings_come_back_from_json_as_they_were() -> None:
    asked = CompressSettings(
        {"macs": "0.5"}, max_drop=1.0, keep=("a*", "b"), shapes={"x": (1, 3, 8, 8)}, time_limit=90.0
    )
    assert typed(json.loads(json.dumps(vars(asked))), CompressSettings) == asked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("targets", {"macs": 0.5}),
        ("targets", ["macs"]),
        ("max_drop", "1"),
        ("max_drop", math.nan),
        ("budget", 1.0),
        ("budget", True),
        ("seed", None),
        ("seed", 10**400),
        ("keep", "abc"),
        ("keep", [1]),
        ("approximate", 0),
        ("shapes", {"x": ["1"]}),
        ("shapes", {"x": 1}),
        ("unknown", 1),
    ],
)
def test_settings_of_another_type_are_refused(name: str, value: object) -> None:
    content = json.loads(json.dumps(vars(CompressSettings({"macs": "0.5"}))))
    with pytest.raises(TypeError):
        typed({**content, name: value}, CompressSettings)


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    replace_json(file, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        replace_json(file, {"a": math.nan})
    assert json.loads(file.read_text()) == {"a": 1}
