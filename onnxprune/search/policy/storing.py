"""Policies in files: safetensors, with what is needed to build the agent again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from onnxprune.errors import InputError
from onnxprune.files import aside
from onnxprune.search.policy.agent import MOST_SPREAD, Agent, Shape
from onnxprune.search.policy.environment import CONTEXT
from onnxprune.stages import FEATURES

FORMAT = "onnxprune.policy/1"


def save(agent: Agent, path: Path, notes: Mapping[str, Any]) -> None:
    """Write a policy; the file appears whole or not at all.

    Args:
        agent: the policy.
        path: the file to write; an existing one is replaced.
        notes: how it was trained, for people.
    """
    told = {"format": FORMAT, "shape": asdict(agent.shape), "features": _features(), "notes": dict(notes)}
    tensors = {name: values.contiguous() for name, values in agent.state_dict().items()}
    with aside(path) as draft:
        draft.write_bytes(serialized(tensors, {name: json.dumps(value) for name, value in told.items()}))


def load(path: Path) -> tuple[Agent, dict[str, Any]]:
    """Read a policy, and how it was trained.

    Raises:
        InputError: it is missing, damaged, or was trained on other features than this version computes.
    """
    if not path.is_file():
        raise InputError(f"--policy {path}: no such file; make one with `onnxprune policy train`")
    try:
        with safe_open(path, "pt") as file:
            told = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"--policy {path} cannot be read ({error}); make one with `onnxprune policy train`") from error
    if told.get("format") != FORMAT:
        raise InputError(f"--policy {path} was not written by this version of onnxprune; train it again")
    if told.get("features") != _features():
        raise InputError(f"--policy {path} was trained on other features than this version computes; train it again")
    try:
        agent = Agent(_shape(told["shape"]))
        agent.load_state_dict(tensors)
        if not all(bool(values.isfinite().all()) for values in agent.state_dict().values()):
            raise ValueError("it holds values that are no finite numbers")
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--policy {path} is damaged ({reason}); train it again") from error
    notes = told.get("notes")
    return agent, notes if isinstance(notes, dict) else {}


def _features() -> list[list[str]]:
    return [list(names) for pair in (*FEATURES.values(), (CONTEXT,)) for names in pair]


def _shape(told: Mapping[str, Any]) -> Shape:
    """Build the shape of an agent from numbers that somebody may have changed."""
    sizes = tuple((int(nodes), int(edges)) for nodes, edges in told["sizes"])
    rounds = tuple(int(number) for number in told["rounds"])
    shape = Shape(sizes, int(told["context"]), int(told["width"]), rounds, float(told["spread"]))
    known = tuple((len(nodes), len(edges)) for nodes, edges in FEATURES.values())
    sees_these = sizes == known and shape.context == len(CONTEXT)
    is_layered = len(sizes) == len(rounds) and max(rounds) <= 64
    if not (sees_these and is_layered and 0 < shape.width <= 4096 and 0 < shape.spread <= MOST_SPREAD):
        raise ValueError("an agent of such a shape makes no sense")
    return shape
