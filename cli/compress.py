"""``onnxprune compress``: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import display

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.reporting import Report

STAGES = {"original": "original", "cut": "cut", "repair": "repaired", "finetune": "fine-tuned"}
ANSWERS = {
    "accuracy": ("top-1", "{:.2%}"),
    "top5": ("top-5", "{:.2%}"),
    "agreement": ("agreement", "{:.2%}"),
    "kl": ("KL, nats", "{:.4g}"),
    "distance": ("distance", "{:.4g}"),
}
"""Columns of the table of answers, by their name in the report."""


@click.command(epilog="Example: onnxprune compress model.onnx --flops 0.5 -o small.onnx --data images.npz")
@display.model_argument
@click.option("--flops", metavar="SHARE", help="Keep at most this part of the FLOPs: 0.3, 30% or 300M.")
@click.option("--params", metavar="SHARE", help="Keep at most this part of the parameters: 0.3, 30% or 5M.")
@click.option(
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="In place of a target: the smallest model found that loses at most so many points of accuracy on samples held "
    "out (of agreement, without labels). Needs --data.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The file to write; MODEL.pruned.onnx by default."
)
@click.option("--data", help=f"Samples to rank, repair and report with: {display.DATA_FORMS}. Labels are optional.")
@display.preprocess_option
@display.label_offset_option
@click.option(
    "--search", help="How widths are chosen: greedy (default with --data), random, uniform (default without)."
)
@click.option("--budget", default=100, show_default=True, help="Candidates the search may judge.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same plan, if --align is given.")
@click.option(
    "--criterion",
    help="Rank of channels: obs (default with --data), taylor, activation, fpgm, l1, l2 (default without), random.",
)
@click.option(
    "--repair",
    default="least_squares",
    show_default=True,
    help="How --data makes up for what was cut: least_squares fits every layer again, bn only means and spreads, none.",
)
@click.option(
    "--finetune-epochs",
    default=0,
    show_default=True,
    metavar="N",
    help="Then train on --data, all but what is held out, with the original as teacher (finetune has more choices).",
)
@click.option(
    "--steps",
    default=1,
    show_default=True,
    metavar="N",
    help="Cut a part, repair, train, and so on, N times: better for deep cuts. Needs --finetune-epochs.",
)
@click.option(
    "--calibration",
    type=int,
    metavar="N",
    help="Samples for statistics and repair. Default: 2048, fewer of large models.",
)
@click.option("--workers", default=1, show_default=True, metavar="N", help="Processes that judge candidates.")
@click.option(
    "--align",
    type=click.IntRange(1, 1024),
    help="Make widths a multiple of this. Default: 8, at most an eighth of a group's width, or 16 where faster.",
)
@display.keep_option
@display.approximate_option
@display.slots_option
@click.option(
    "--min-keep",
    default=1,
    show_default=True,
    type=click.IntRange(0),
    help="Channels every group keeps; 0 lets whole residual branches go.",
)
@display.shape_option
@display.verify_option
@click.option("--dry-run", is_flag=True, help="Find the plan and print it; cut and write nothing.")
@display.force_option
@display.json_option
@display.quiet_option
def compress(
    model: Path,
    flops: str | None,
    params: str | None,
    output: Path | None,
    max_drop: float | None,
    search: str | None,
    budget: int,
    seed: int,
    criterion: str | None,
    repair: str,
    finetune_epochs: int,
    steps: int,
    calibration: int | None,
    workers: int,
    align: int | None,
    keep: tuple[str, ...],
    approximate: bool,
    slots: bool,
    min_keep: int,
    data: str | None,
    preprocess: str,
    label_offset: int,
    shapes: tuple[str, ...],
    verify: str,
    dry_run: bool,
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Make MODEL smaller until it meets its targets, prove the result, and write it with its plan and report."""
    from onnxprune import pipeline
    from onnxprune.settings import CompressSettings

    asked = {"macs": flops, "params": params}
    settings = CompressSettings(
        targets={metric: text for metric, text in asked.items() if text is not None},
        max_drop=max_drop,
        search=search,
        budget=budget,
        seed=seed,
        criterion=criterion,
        repair=repair,
        finetune_epochs=finetune_epochs,
        steps=steps,
        calibration=calibration,
        workers=workers,
        align=align,
        keep=keep,
        min_keep=min_keep,
        approximate=approximate,
        slots=slots,
        verify=verify,
        shapes=display.parse_shapes(shapes),
    )
    out = output if output is not None else Path(f"{model.name.removesuffix('.onnx')}.pruned.onnx")
    progress = display.Shown(quiet)
    try:
        report = pipeline.compress(
            model,
            out,
            settings,
            data=data,
            preprocess=preprocess,
            label_offset=label_offset,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
    finally:
        progress.close()
    display.write_result(json_file, report.to_json())
    if not quiet:
        _show(report, out)


def _show(report: Report, out: Path) -> None:
    console = display.console()
    console.print(report.headline)
    groups = display.table("Groups", "group", " width", " kept", " step")
    for group in report.groups:
        groups.add_row(display.group_name(group), str(group["width"]), str(group["kept"]), str(group["step"]))
    console.print(groups)
    result = display.table("Result", "metric", " before", " after", " share")
    before, after = report.before, report.after
    for name in ("macs", "params", "file_bytes", "activation_bytes"):
        old, new = getattr(before, name), getattr(after, name)
        result.add_row(name, display.count(old), display.count(new), f"{new / max(old, 1):.1%}")
    if before.latency_ms and after.latency_ms:
        old, new = before.latency_ms["median"], after.latency_ms["median"]
        result.add_row("latency, ms (1 thread)", f"{old:.3g}", f"{new:.3g}", f"{new / old:.1%}")
    if before.accuracy is not None and after.accuracy is not None:
        points = (after.accuracy - before.accuracy) * 100
        result.add_row("accuracy", f"{before.accuracy:.2%}", f"{after.accuracy:.2%}", f"{points:+.2f} points")
    console.print(result)
    _show_answers(report, console)
    for name, check in report.checks.items():
        console.print(f"{name}: {check}")
    for note in report.notes:
        console.print(f"Note: {note}")
    console.print("dry run: nothing written" if report.output is None else f"wrote {out}, its plan and its report")


def _show_answers(report: Report, console: Console) -> None:
    """Show what the original, the cut model and the repaired one answer, and which samples were used for what."""
    if not report.stages:
        return
    columns = {name: shown for name, shown in ANSWERS.items() if any(name in stage for stage in report.stages)}
    made = display.table(
        f"Answers to {report.stages[0]['samples']} samples held out",
        "model",
        *(f" {title}" for title, _ in columns.values()),
    )
    for stage in report.stages:
        cells = [_cell(stage, name, form) for name, (_, form) in columns.items()]
        made.add_row(STAGES.get(stage["name"], stage["name"]), *cells)
    console.print(made)
    parts = report.data["parts"].values()
    used = ", ".join(f"{part['samples']} {part['purpose']}" for part in parts)
    console.print(f"samples of {report.data['source']}: {used}")


def _cell(stage: Mapping[str, Any], name: str, form: str) -> str:
    if name not in stage:
        return ""
    return "not finite" if stage[name] is None else form.format(stage[name])
