"""What is believed of groups before any plan is judged: how much more their errors matter than it seems.

Groups that are alike in the graph matter alike. That tells which few groups are worth cutting alone, to see what their
errors mean for the answers, and what that says of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.weights import Floats

LEAST_SPREAD = 1e-9  # features that vary no more than that tell nothing
ALIKE, NEAR = 0.5, 0.5  # of two groups with the same features; how fast that falls, in their usual distance
KINDS, KINDS_DOUBT = 0.5, 0.5  # how far it is true that all kinds of groups count alike, give or take
PROBES, PROBES_DOUBT = 0.5, 0.25  # how far it is true what probes say, give or take
NOISE = 0.1  # of a probe, beside `ALIKE`
MOST_PROBED = 4.0  # log of how much more a probe may say that errors matter than in the median group


@dataclass(frozen=True)
class Prior:
    """What is believed, as corrections of the ranking.

    Attributes:
        mean: (groups,) the most likely ones.
        doubt: (groups, groups) how far off that is, and how much alike in any two groups: a covariance.
    """

    mean: Floats
    doubt: Floats


def prior(alike: Floats, kinds: Floats, probed: Floats) -> Prior:
    """Put together what is believed; how far each part of it is true is in doubt as a whole.

    Args:
        alike: see `likeness`.
        kinds: (groups,) corrections with which the errors of every kind of group count alike.
        probed: (groups,) those that probes speak for.
    """
    doubt = (1 - ALIKE) * np.eye(len(kinds)) + alike
    doubt += KINDS_DOUBT**2 * np.outer(kinds, kinds) + PROBES_DOUBT**2 * np.outer(probed, probed)
    return Prior(KINDS * kinds + PROBES * probed, doubt)


def likeness(features: Floats) -> Floats:
    """Tell how much two groups have in common, (groups, groups), from the features of each in the graph."""
    features = features - features.mean(axis=0)
    spread = features.std(axis=0)
    features = features[:, spread > LEAST_SPREAD] / spread[spread > LEAST_SPREAD]
    away = np.stack([np.square(features - one).sum(axis=1) for one in features])  # a row at a time needs less memory
    usual = max(float(np.median(away)), LEAST_SPREAD)
    return np.asarray(ALIKE * np.exp(-away / (2 * NEAR**2 * usual)))


def told(alike: Floats, groups: Sequence[int], measured: Floats) -> Floats:
    """Find the corrections that speak from cutting a few groups alone.

    Args:
        alike: see `likeness`.
        groups: those that were cut.
        measured: (those,) what an error of 1 in each means for the answers, relative to the median group.

    Returns:
        (groups,) those not cut take after what they have in common with those that were.
    """
    known = alike[np.ix_(groups, groups)] + NOISE * np.eye(len(groups))
    logs = np.clip(np.log(measured), -MOST_PROBED, MOST_PROBED)
    return np.asarray(alike[:, groups] @ np.linalg.solve(known, logs))


def spread_out(alike: Floats, candidates: Sequence[int], number: int) -> list[int]:
    """Choose groups one by one, always that of which those before tell least; among equals the first."""
    chosen = list[int]()
    left = list(candidates)
    while left and len(chosen) < number:
        known = alike[np.ix_(chosen, chosen)] + NOISE * np.eye(len(chosen))
        explained = (alike[np.ix_(left, chosen)] * np.linalg.solve(known, alike[np.ix_(chosen, left)]).T).sum(axis=1)
        chosen.append(left.pop(int(np.argmin(explained))))
    return chosen
