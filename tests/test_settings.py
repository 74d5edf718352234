"""What was left open is chosen by whether there is data, and what makes no sense is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.criteria import CRITERIA, NEED_DATA
from onnxprune.errors import InputError
from onnxprune.settings import REPAIRS, CompressSettings, resolve

HALF = {"macs": "0.5"}


def test_with_data_channels_are_ranked_searched_and_repaired_with_it() -> None:
    found = resolve(CompressSettings(HALF), has_data=True)
    assert (found.search, found.criterion, found.repair) == ("greedy", "obs", "least_squares")


def test_without_data_nothing_looks_for_it() -> None:
    found = resolve(CompressSettings(HALF), has_data=False)
    assert (found.search, found.criterion, found.repair) == ("uniform", "l2", "none")


@pytest.mark.parametrize("has_data", [True, False])
def test_what_was_asked_for_stays(has_data: bool) -> None:
    asked = CompressSettings(HALF, search="random", criterion="l1", repair="none", workers=3, calibration=7, seed=5)
    assert resolve(asked, has_data) == asked


@pytest.mark.parametrize("criterion", sorted(NEED_DATA))
def test_a_criterion_that_needs_data_is_refused_without(criterion: str) -> None:
    asked = CompressSettings(HALF, criterion=criterion)
    with pytest.raises(InputError, match=f"--criterion {criterion} .* give --data"):
        resolve(asked, has_data=False)
    assert resolve(asked, has_data=True).criterion == criterion


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - NEED_DATA))
def test_every_other_criterion_does_without_data(criterion: str) -> None:
    assert resolve(CompressSettings(HALF, criterion=criterion), has_data=False).criterion == criterion


def test_a_largest_drop_needs_data_and_takes_the_place_of_targets() -> None:
    assert resolve(CompressSettings(max_drop=1.5), has_data=True).max_drop == 1.5
    with pytest.raises(InputError, match="--max-drop needs --data"):
        resolve(CompressSettings(max_drop=1.5), has_data=False)
    with pytest.raises(InputError, match="leave the other targets out"):
        resolve(CompressSettings(HALF, max_drop=1.5), has_data=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"targets": {}}, "no target"),
        ({"targets": {}, "max_drop": -0.1}, "--max-drop -0.1"),
        ({"targets": {}, "max_drop": 100.0}, "--max-drop 100.0"),
        ({"targets": {}, "max_drop": float("nan")}, "--max-drop nan"),
        ({"search": ""}, "--search ''"),
        ({"search": "magic"}, "--search 'magic'"),
        ({"criterion": ""}, "--criterion ''"),
        ({"criterion": "l3"}, "--criterion 'l3'"),
        ({"repair": "glue"}, "--repair 'glue' does not exist; choose one of least_squares, bn, none"),
        ({"verify": "twice"}, "--verify 'twice'"),
        ({"budget": 0}, "--budget 0"),
        ({"calibration": 0}, "--calibration 0"),
        ({"workers": 0}, "--workers 0"),
        ({"seed": -1}, "--seed -1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("has_data", [True, False])
def test_settings_that_make_no_sense_are_refused_by_name(given: dict[str, Any], words: str, has_data: bool) -> None:
    with pytest.raises(InputError) as caught:
        resolve(CompressSettings(**{"targets": HALF, **given}), has_data)
    assert words in str(caught.value)


@pytest.mark.parametrize("repair", REPAIRS)
def test_every_repair_can_be_asked_for(repair: str) -> None:
    assert resolve(CompressSettings(HALF, repair=repair), has_data=True).repair == repair
