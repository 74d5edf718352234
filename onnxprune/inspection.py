"""What can be cut from a model, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune import model as models
from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.drawing import check_drawing, draw
from onnxprune.metrics import Costs
from onnxprune.problem import FINE, Problem, describe_reason, step_of
from onnxprune.stages import Stages


@dataclass
class Inspection:
    """What can be cut from a model.

    Attributes:
        model: the file's name.
        costs: every metric of the model as it is.
        lowest: the lowest reachable value of every metric.
        prunable: share of the MACs of nodes whose channels can shrink.
        groups: name, width and step of each group, and whether cutting it is only approximate.
        frozen: what stays and why, with its share of the MACs.
        uncounted: operators that may compute but that no rule counts.
        inputs: the input shapes all this was measured at.
        notes: what else the user should know.
    """

    model: str
    costs: dict[str, int]
    lowest: dict[str, int]
    prunable: float
    groups: list[dict[str, Any]]
    frozen: list[dict[str, Any]]
    uncounted: list[str]
    inputs: dict[str, list[int]]
    notes: list[str]


def inspect(
    path: str | Path,
    *,
    keep: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    approximate: bool = False,
    slots: bool = False,
    graph: str | Path | None = None,
    force: bool = False,
) -> Inspection:
    """Tell what can be cut from a model and why the rest cannot; does not change it.

    Args:
        path: the model file.
        keep: patterns of node names to leave alone.
        shapes: sizes for inputs that leave them free.
        approximate: let axes shrink that normalisations average over.
        slots: cut the inside of groups and attention heads instead of whole ones.
        graph: draw blocks and groups in this file, ``.html`` or ``.dot``.
        force: overwrite that file.

    Raises:
        InputError: the file or an option is wrong.
    """
    path, drawing = Path(path), None if graph is None else Path(graph)
    if drawing is not None:
        check_drawing(drawing, path, force)
    model = models.load(path, runtime.evaluate, shapes)
    channels = find_channels(model, keep, approximate=approximate, slots=slots)
    costs = Costs(channels)
    problem = Problem(channels, costs, [], [])
    per_node = costs.per_node()
    total = sum(node.macs for node in per_node)
    if drawing is not None:
        draw(Stages(channels, costs), drawing, path.name)
    return Inspection(
        path.name,
        {name: round(value) for name, value in problem.original.items()},
        {name: round(value) for name, value in problem.lowest().items()},
        sum(node.macs for node in per_node if node.is_free) / total if total else 0.0,
        [
            {"name": g.name, "width": g.width, "step": step_of(g, FINE), "approximate": g.is_approximate}
            for g in channels.groups
        ],
        frozen_parts(channels, costs),
        costs.uncounted(),
        {name: list(shape) for name, shape in model.bound.items()},
        model.notes,
    )


def frozen_parts(channels: Channels, costs: Costs) -> list[dict[str, Any]]:
    """List the nodes whose output channels stay, largest first, with the reason and their share of the MACs."""
    nodes = channels.model.graph.nodes
    per_node = costs.per_node()
    total = max(sum(node.macs for node in per_node), 1)
    return [
        {
            "node": nodes[part.node].name or nodes[part.node].outputs[0].name,
            "op": nodes[part.node].op,
            "reason": describe_reason(channels, part.reason),
            "macs": part.macs,
            "share": part.macs / total,
            "inputs_shrink": part.is_free,
        }
        for part in sorted(per_node, key=lambda part: -part.macs)
        if part.reason >= 0
    ]
