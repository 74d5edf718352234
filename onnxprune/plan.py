"""Which channels stay: a plan, and its file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.channels import Channels
from onnxprune.depth import Depth
from onnxprune.errors import InputError
from onnxprune.files import read_json
from onnxprune.ops.rule import Key, Mask
from onnxprune.weights import Ints

FORMAT = "onnxprune.plan/1"


@dataclass(frozen=True)
class Plan:
    """Which channels stay.

    Attributes:
        kept: per group the positions of the channels that stay, in ascending order.
    """

    kept: tuple[Ints, ...]

    @property
    def counts(self) -> Ints:
        """Channels kept per group."""
        return np.asarray([len(positions) for positions in self.kept], np.int64)


def whole(channels: Channels) -> Plan:
    """Keep everything."""
    return Plan(tuple(np.arange(group.width) for group in channels.groups))


def kept_atoms(channels: Channels, plan: Plan) -> Mask:
    """Tell for each atom whether it stays."""
    keep = np.zeros(channels.count + 1, bool)
    keep[-1] = True  # where `channel_of` says FROZEN
    for group, positions in zip(channels.groups, plan.kept, strict=True):
        keep[group.channels[positions]] = True
    return keep[channels.channel_of]


def kept_slots(channels: Channels, keep: Mask, key: Key) -> Mask | None:
    """Tell what stays of a weight whose second axis means other channels in every group of rows.

    Args:
        channels: of the model.
        keep: per atom, whether it stays.
        key: the weight.

    Returns:
        (groups, second axis), or None where the weight is not of that kind or stays whole.
    """
    balance = channels.slots.get(key)
    if balance is None or keep[balance.blocks].all():
        return None
    return keep[balance.blocks]


def to_json(
    channels: Channels, plan: Plan, model_sha256: str, settings: dict[str, Any], folded: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Describe a plan: the channels of each group that stay, and every slice of every stored tensor that goes.

    Where groups of a convolution are cut inside, ``removed_in_groups`` lists for each group what its rows lose.
    `folded` names the weights and biases that took over what dead channels added (None: there were no dead channels);
    what is removed is removed from the model with these numbers.
    """
    keep = kept_atoms(channels, plan)
    removed: dict[str, dict[str, list[int]]] = {}
    removed_at = []
    removed_in_groups = []
    for key, axes in channels.axes.items():
        slots = kept_slots(channels, keep, key)
        if slots is not None:
            lists = [np.flatnonzero(~kept).tolist() for kept in slots]
            removed_in_groups.append({"tensor": key, "axis": 1, "indices": lists})
        gone = {axis: np.flatnonzero(~keep[axes[axis]]).tolist() for axis in range(len(axes))}
        if slots is not None:
            del gone[1]
        gone = {axis: indices for axis, indices in gone.items() if indices}
        if isinstance(key, tuple):
            node, position = key
            tensor = channels.model.graph.nodes[node].inputs[position].name
            for axis, indices in gone.items():
                removed_at.append({"node": node, "input": position, "tensor": tensor, "axis": axis, "indices": indices})
        elif key in channels.model.stored and gone:
            removed[key] = {str(axis): indices for axis, indices in gone.items()}
    return {
        "format": FORMAT,
        "model_sha256": model_sha256,
        "settings": settings,
        "lossless": folded is not None,
        "folded": folded or {},
        "groups": [
            {"name": group.name, "width": group.width, "kept": positions.tolist()}
            for group, positions in zip(channels.groups, plan.kept, strict=True)
        ],
        "removed": removed,
        "removed_at": removed_at,
        "removed_in_groups": removed_in_groups,
    }


def read_plan(path: Path) -> dict[str, Any]:
    """Read a plan file.

    Raises:
        InputError: it is missing, broken or of another format.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("groups"), list):
        raise InputError(f"{path} is no plan of the format {FORMAT}; give the .plan.json that compress wrote")
    if not _are_settings(content.setdefault("settings", {})):
        raise InputError(f"{path} has settings that make no sense; give the .plan.json as compress wrote it")
    return content


def _are_settings(settings: Any) -> bool:
    if not isinstance(settings, dict):
        return False
    shapes = settings.setdefault("shapes", {})
    if not all(isinstance(settings.setdefault(name, False), bool) for name in ("approximate", "slots")):
        return False
    sound = isinstance(shapes, dict) and all(_is_list(shape, int) for shape in shapes.values())
    return sound and _is_list(settings.setdefault("keep", []), str)


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(entry) is kind for entry in value)


def from_json(channels: Channels, content: dict[str, Any]) -> Plan:
    """Match a plan file to the groups of a model.

    Raises:
        InputError: the groups are not those of the model, or the positions make no sense.
    """
    groups = content["groups"]
    if len(groups) != len(channels.groups):
        raise InputError(
            f"the plan has {len(groups)} groups, the model {len(channels.groups)}; it was made for another model"
        )
    entries = zip(groups, channels.groups, strict=True)
    plan = Plan(tuple(_positions(entry, group.name, group.width) for entry, group in entries))
    if (plan.counts == 0).any():
        _check_empty(channels, plan)
    return plan


def check_same_cut(channels: Channels, plan: Plan, content: dict[str, Any]) -> None:
    """Make sure that a plan cuts the slices that its file names.

    Raises:
        InputError: it would cut others; channels may be put together in another way by another version.
    """
    now = to_json(channels, plan, "", {})
    if any(content.get(name, now[name]) != now[name] for name in ("removed", "removed_at", "removed_in_groups")):
        raise InputError(
            "the plan would cut other slices than those it lists; apply it with the versions it was made with "
            "(they stand in the .report.json beside it)"
        )


def _check_empty(channels: Channels, plan: Plan) -> None:
    """Make sure that the groups a plan empties can be empty."""
    takes_along = Depth(channels).takes_along
    empty = set(np.flatnonzero(plan.counts == 0).tolist())
    ends = empty & set(takes_along)
    impossible = empty - ends.union(*(takes_along[position] for position in ends))
    if impossible:
        name = channels.groups[min(impossible)].name
        raise InputError(f"the plan keeps nothing of group {name!r}, which something else needs")


def _positions(entry: Any, name: str, width: int) -> Ints:
    if not isinstance(entry, dict) or entry.get("name") != name or entry.get("width") != width:
        raise InputError(f"the plan does not match the model at group {name!r} of {width} channels")
    kept = entry.get("kept")
    positions: list[int] = list(kept) if isinstance(kept, list) and _is_list(kept, int) else [-1]
    if positions != sorted(set(positions)) or any(not 0 <= position < width for position in positions):
        raise InputError(f"the plan keeps channels that do not exist in group {name!r}")
    return np.asarray(positions, np.int64)


def file_sha256(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
