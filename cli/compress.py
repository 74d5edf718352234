"""``onnxprune compress``: the main job."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from onnxprune.errors import InputError, InterruptedRunError, LostWorkerError

from . import display

if TYPE_CHECKING:
    from rich.console import Console

    from onnxprune.reporting import Report
    from onnxprune.settings import CompressSettings

STAGES = {"original": "original", "cut": "cut", "repair": "repaired", "finetune": "fine-tuned"}
ANSWERS = {
    "accuracy": ("top-1", "{:.2%}"),
    "top5": ("top-5", "{:.2%}"),
    "agreement": ("agreement", "{:.2%}"),
    "kl": ("KL, nats", "{:.4g}"),
    "distance": ("distance", "{:.4g}"),
}
"""Columns of the table of answers, by their name in the report."""

BESIDE_RESUME = ("model", "run", "resume", "force", "json_file", "quiet")
"""What may be given with --resume; all else stands in the folder of the run."""


class Multiple(click.ParamType[Any]):
    """A number of channels, or auto."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it."""
        if value == "auto":
            return value
        return click.IntRange(1, 1024).convert(value, param, ctx)


@click.command(epilog="Example: onnxprune compress model.onnx --flops 0.5 -o small.onnx --data images.npz")
@display.model_argument
@click.option("--flops", metavar="SHARE", help="Keep at most this part of the FLOPs: 0.3, 30% or 300M.")
@click.option("--params", metavar="SHARE", help="Keep at most this part of the parameters: 0.3, 30% or 5M.")
@click.option(
    "--latency",
    metavar="SHARE",
    help="Take at most this part of the time of a run, as measured here: 0.5, 50% or 5ms.",
)
@click.option(
    "--memory",
    metavar="SHARE",
    help="Need at most this part of the memory of a process that runs it, as measured here: 0.5, 50% or 40MB.",
)
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
    "--search",
    help="How widths are chosen: greedy (default with data), gnn_rl, evolution, amc, random, uniform (default else).",
)
@click.option(
    "--policy", metavar="FILE", help="For gnn_rl: a trained policy to start from; --budget 1 takes its own plan."
)
@click.option(
    "--policy-preset", default="default", show_default=True, help="For gnn_rl: default, or paper for it as published."
)
@click.option(
    "--budget",
    default=100,
    show_default=True,
    help="Different candidates a search may judge. Where it is done again, for coarser widths (--align), --latency or "
    "--memory: as many each time; with data a quarter for gnn_rl, which learns from those before. amc counts also "
    "those that it comes to again.",
)
@click.option(
    "--time-limit",
    metavar="TIME",
    help="When the search ends: after 90 (seconds), 90s, 10m or 2h. Its three best plans are compared then.",
)
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
    "--choose",
    default="best",
    show_default=True,
    help="The epoch that is taken: best on samples held out, or last: where the model was trained on these before.",
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
    type=Multiple(),
    help="Make widths a multiple of this, or auto: of what is fast here, by times of some cuts. Default: 8, at most an "
    "eighth of a group's width, or 16 where faster.",
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
@display.provider_option
@display.batch_option
@display.threads_option
@display.verify_option
@click.option("--dry-run", is_flag=True, help="Find the plan and print it; cut and write nothing.")
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="Folder for what is judged; another target with the same folder starts from there. Default: OUTPUT.run, which "
    "goes when all is done.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the interrupted run of --run, or of OUTPUT.run, as it was asked for."
)
@display.force_option
@display.json_option
@display.quiet_option
@click.pass_context
def compress(
    ctx: click.Context,
    model: Path,
    flops: str | None,
    params: str | None,
    latency: str | None,
    memory: str | None,
    output: Path | None,
    max_drop: float | None,
    search: str | None,
    policy: str | None,
    policy_preset: str,
    budget: int,
    time_limit: str | None,
    seed: int,
    criterion: str | None,
    repair: str,
    finetune_epochs: int,
    choose: str,
    steps: int,
    calibration: int | None,
    workers: int,
    align: Any,
    keep: tuple[str, ...],
    approximate: bool,
    slots: bool,
    min_keep: int,
    data: str | None,
    preprocess: str,
    label_offset: int,
    shapes: tuple[str, ...],
    provider: str,
    batch: int | None,
    threads: int,
    verify: str,
    dry_run: bool,
    run: Path | None,
    resume: bool,
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Make MODEL smaller until it meets its targets, prove the result, and write it with its plan and report."""
    from onnxprune import pipeline
    from onnxprune.metrics import LATENCY, MEMORY
    from onnxprune.outputs import default_output
    from onnxprune.records import default_folder
    from onnxprune.settings import CompressSettings, parse_seconds

    asked = {"macs": flops, "params": params, LATENCY: latency, MEMORY: memory}
    settings = CompressSettings(
        targets={metric: text for metric, text in asked.items() if text is not None},
        max_drop=max_drop,
        search=search,
        policy=policy,
        policy_preset=policy_preset,
        budget=budget,
        time_limit=None if time_limit is None else parse_seconds(time_limit),
        seed=seed,
        criterion=criterion,
        repair=repair,
        finetune_epochs=finetune_epochs,
        choose=choose,
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
        provider=provider,
        threads=threads,
        batch=batch,
    )
    if resume:
        _check_alone(ctx, run)
    out = output if output is not None else default_output(model)
    display.check_json(json_file, out)
    progress = display.Shown(quiet)
    try:
        if resume:
            report = pipeline.resume(model, out=out, run=run, force=force, progress=progress)
        else:
            report = pipeline.compress(
                model,
                out,
                settings,
                data=data,
                preprocess=preprocess,
                label_offset=label_offset,
                run=run,
                force=force,
                dry_run=dry_run,
                progress=progress,
            )
    except (KeyboardInterrupt, LostWorkerError, MemoryError, OSError) as error:
        _say_what_is_kept(error, run or default_folder(out), None if resume else settings, _again(ctx))
        raise
    finally:
        progress.close()
    display.write_result(json_file, report.to_json())
    if not quiet:
        _show(report, report.output if resume else out)


def _check_alone(ctx: click.Context, run: Path | None) -> None:
    """Make sure that nothing is given beside --resume that stands in the folder of the run.

    Raises:
        InputError: something is.
    """
    allowed = {*BESIDE_RESUME, *(["output"] if run is None else [])}  # without --run, it names the folder
    other = [
        max(option.opts, key=len)
        for option in ctx.command.params
        if option.name not in allowed and _is_given(ctx, option)
    ]
    if other:
        raise InputError(
            f"--resume takes everything from the folder of the run; leave {', '.join(other)} out, or leave --resume "
            "out to start another run"
        )


def _is_given(ctx: click.Context, option: click.Parameter) -> bool:
    return option.name is not None and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE


def _again(ctx: click.Context) -> str:
    """Write the command that goes on with a run."""
    words = ["onnxprune", "compress", str(ctx.params["model"])]
    names = ["run" if ctx.params["run"] is not None else "output", "force", "json_file", "quiet"]
    for option in ctx.command.params:
        if option.name in names and _is_given(ctx, option):
            value = ctx.params[option.name]
            words += [max(option.opts, key=len), *([] if value is True else [str(value)])]
    return shlex.join([*words, "--resume"])


def _say_what_is_kept(error: BaseException, folder: Path, settings: CompressSettings | None, again: str) -> None:
    """Add to an error that ended a run how to go on with it, if anything of it was kept.

    Raises:
        InterruptedRunError: the user ended it.
    """
    from onnxprune.records import can_go_on

    if not can_go_on(folder, settings):
        return
    if isinstance(error, KeyboardInterrupt):
        raise InterruptedRunError(
            f"interrupted; what was done is kept, and this goes on from there: {again}"
        ) from error
    error.add_note(f"what was done is kept, and this goes on from there: {again}")


def _show(report: Report, out: Path | str | None) -> None:
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
        name = f"latency, ms ({display.threads(report.settings['threads'])})"
        result.add_row(name, f"{old:.3g}", f"{new:.3g}", f"{new / old:.1%}")
    if before.per_second and after.per_second:
        old, new = before.per_second, after.per_second
        result.add_row("throughput, samples a second", f"{old:.4g}", f"{new:.4g}", f"{new / old:.1%}")
    if before.memory_bytes and after.memory_bytes:
        old, new = before.memory_bytes, after.memory_bytes
        result.add_row("memory of a process", display.count(old), display.count(new), f"{new / old:.1%}")
    if report.speedup is not None:
        result.add_row("speed", "1x", *_speed(report.speedup))
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


def _speed(found: Mapping[str, float]) -> tuple[str, str]:
    """Show a speed-up with its interval, and what the FLOPs suggest."""
    return f"{found['median']:.2f}x ({found['low']:.2f}x to {found['high']:.2f}x)", f"FLOPs: {found['ideal']:.2f}x"


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
