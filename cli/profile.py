"""``onnxprune profile``: latency and memory in onnxruntime, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import display

if TYPE_CHECKING:
    from onnxprune.profiling.intervals import Interval
    from onnxprune.profiling.profile import Profile, ProfileReport

MEGABYTE = 1e6
SLOWEST = 10  # nodes that are shown


@click.command(epilog="Example: onnxprune profile model.onnx small.onnx --batch 16")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@display.provider_option
@display.batch_option
@display.threads_option
@click.option(
    "--optimize",
    type=click.Choice(["none", "basic", "extended", "all"]),
    default="all",
    show_default=True,
    help="How far onnxruntime may rewrite the graph.",
)
@click.option("--bind", is_flag=True, help="Keep inputs and outputs on the device, so that no copies count.")
@click.option(
    "--precision",
    default=0.01,
    show_default=True,
    help="Measure until the 95 % interval is this narrow, each way, as a part of the ratio.",
)
@click.option("--seconds", default=20.0, show_default=True, help="Or until so much time has passed.")
@display.shape_option
@display.json_option
@display.quiet_option
def profile(
    models: tuple[Path, ...],
    provider: str,
    batch: int | None,
    threads: int,
    optimize: str,
    bind: bool,
    precision: float,
    seconds: float,
    shapes: tuple[str, ...],
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Measure MODELS in onnxruntime, each in a fresh process, in turns; all are compared with the first."""
    from onnxprune.profiling import profile as profiling

    display.check_json(json_file)
    settings = profiling.ProfileSettings(provider, batch, threads, optimize, bind, precision, seconds)
    progress = display.Shown(quiet)
    try:
        report = profiling.profile(models, settings, shapes=display.parse_shapes(shapes), progress=progress)
    finally:
        progress.close()
    display.write_result(json_file, report.to_json())
    if not quiet:
        _show(report, settings.provider_name)


def _show(report: ProfileReport, provider: str) -> None:
    about, threads = report.machine, display.threads(report.settings["threads"])
    where = about.get("gpu", about["cpu"]) if provider != "CPUExecutionProvider" else about["cpu"]
    for note in report.notes:
        click.echo(f"note: {note}")
    console = display.console()
    table = display.table(
        f"{provider} on {where}, {threads}",
        *("model", " file", " median", " p10 to p90", " per second", " memory", " at most", " while loading"),
    )
    for one in report.profiles:
        table.add_row(*_row(one))
    console.print(table)
    for one, speedup in zip(report.profiles[1:], report.speedups, strict=True):
        click.echo(compared(one.model, report.profiles[0].model, speedup))
    click.echo(_placed(report, provider))
    console.print(_times(report.profiles))


def _row(one: Profile) -> tuple[str, ...]:
    ms, memory = one.latency_ms, one.memory
    shape = "x".join(map(str, next(iter(one.inputs.values()), [])))
    return (
        f"{one.model} ({shape})",
        _megabytes(one.file_bytes),
        f"{ms['median']:.4g} ms",
        f"{ms['p10']:.4g} to {ms['p90']:.4g}",
        f"{one.per_second:.4g}",
        _megabytes(memory["steady"]),
        _megabytes(memory["peak"]),
        _megabytes(memory["load_peak"]),
    )


def compared(model: str, first: str, speedup: Interval) -> str:
    """Say how much faster a model is than the first, or that nothing shows."""
    from onnxprune.profiling.intervals import is_real

    lies = f"{speedup.low:.3g}x to {speedup.high:.3g}x"
    if not is_real(speedup):
        return f"{model}: no difference from {first} shows ({lies} as fast); --seconds looks longer"
    word = "faster" if speedup.low > 1 else "SLOWER"
    return f"{model}: {speedup.median:.3g}x as fast as {first} ({lies} with 95 % confidence), {word}"


def _placed(report: ProfileReport, provider: str) -> str:
    """Say what ran the kernels."""
    parts = []
    for one in report.profiles:
        total, elsewhere = sum(one.providers.values()), {n: c for n, c in one.providers.items() if n != provider}
        what = ", ".join(f"{count} of them on {name}" for name, count in elsewhere.items())
        parts.append(f"{one.model} runs {total} kernels{f', {what}' if what else ''}")
    return "; ".join(parts) + "."


def _times(profiles: list[Profile]) -> object:
    """Show milliseconds by operator and of the slowest nodes, side by side."""
    table = display.table(
        "where the time goes, ms (a run whose kernels are timed takes longer)",
        *("node or operator", "", *(f" {one.model}" for one in profiles)),
    )
    ops = dict.fromkeys(name for one in profiles for name in one.ops)
    for name in ops:
        table.add_row(f"all {name}", "", *(_ms(one.ops.get(name)) for one in profiles))
    nodes = [{(n["name"], n["op"]): n["ms"] for n in one.nodes if n["name"]} for one in profiles]
    longest = {node: max(known.get(node, 0.0) for known in nodes) for known in nodes for node in known}
    for node in sorted(longest, key=lambda node: -longest[node])[:SLOWEST]:
        table.add_row(*node, *(_ms(known.get(node)) for known in nodes))
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _megabytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / MEGABYTE:.1f} MB"
