"""``onnxprune inspect``: what can be cut, and why the rest cannot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import display

if TYPE_CHECKING:
    from onnxprune.inspection import Inspection


@click.command(epilog="Example: onnxprune inspect model.onnx --shape image=1,3,224,224")
@display.model_argument
@display.shape_option
@display.keep_option
@display.approximate_option
@display.slots_option
@click.option(
    "--graph",
    type=click.Path(path_type=Path),
    help="Draw the network in this file, its blocks and the groups that run through them: .html or .dot.",
)
@display.force_option
@display.json_option
@display.quiet_option
def inspect(
    model: Path,
    shapes: tuple[str, ...],
    keep: tuple[str, ...],
    approximate: bool,
    slots: bool,
    graph: Path | None,
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Show what can be pruned in MODEL, what is frozen and why, and how small it can get; does not change it."""
    from onnxprune import inspection

    display.check_json(json_file)
    sizes = display.parse_shapes(shapes)
    found = inspection.inspect(
        model, keep=keep, shapes=sizes, approximate=approximate, slots=slots, graph=graph, force=force
    )
    display.write_result(json_file, {"format": "onnxprune.inspect/1", **asdict(found)})
    if not quiet:
        _show(found)


def _show(found: Inspection) -> None:
    console = display.console()
    inputs = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in found.inputs.items())
    console.print(f"{found.model}: {inputs}")
    console.print(f"{found.prunable:.1%} of the multiply-accumulates are in nodes whose channels can shrink")
    costs = display.table("Cost", "metric", " now", " lowest reachable", " share")
    for name, value in found.costs.items():
        lowest = found.lowest[name]
        costs.add_row(name, display.count(value), display.count(lowest), f"{lowest / max(value, 1):.1%}")
    console.print(costs)
    groups = display.table("Groups: channels that can go, together wherever they are tied", "group", " width", " step")
    for group in found.groups:
        groups.add_row(display.group_name(group), str(group["width"]), str(group["step"]))
    console.print(groups if found.groups else "No channel can be pruned.")
    frozen = display.table(
        "Frozen: output channels that stay", "node", "op", " share of MACs", "inputs shrink", "reason"
    )
    for part in found.frozen:
        shrink = "yes" if part["inputs_shrink"] else "no"
        frozen.add_row(part["node"], part["op"], f"{part['share']:.1%}", shrink, part["reason"])
    if found.frozen:
        console.print(frozen)
    if found.uncounted:
        console.print(f"Not counted, and left alone: {', '.join(found.uncounted)}")
    for note in found.notes:
        console.print(f"Note: {note}")
