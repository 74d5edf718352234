"""``onnxprune policy``: policies that carry over from network to network."""

from __future__ import annotations

import math
from pathlib import Path

import click

from onnxprune.errors import InterruptedRunError

from . import display


@click.group(epilog="Example: onnxprune policy train a.onnx b.onnx --data images.npz -o my.safetensors")
def policy() -> None:
    """Train policies that carry over from network to network, and look at them."""


class _Named(click.Command):
    """A command whose MODELS may stand behind `--models`, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave the word out: an option that takes several values is none that click knows."""
        return super().parse_args(ctx, [word for word in args if word != "--models"])


@policy.command(cls=_Named, epilog="Example: onnxprune policy train a.onnx b.onnx --data images.npz -o my.safetensors")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--data", multiple=True, required=True, help=f"Samples: {display.DATA_FORMS}. Once, or once for each of MODELS."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@display.preprocess_option
@display.label_offset_option
@click.option(
    "--flops",
    default="0.5,0.25,0.12",
    show_default=True,
    help="Shares of the FLOPs that each network is cut to, separated by commas.",
)
@click.option("--rounds", default=6, show_default=True, help="Times that each network is met at each share.")
@click.option("--rate", default=2e-3, show_default=True, help="How fast the policy learns.")
@click.option("--policy", "start", type=click.Path(path_type=Path), help="A policy to go on with.")
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="Folder for what is judged: the same command with --force goes through it again without judging it again.",
)
@click.option("--seed", default=0, show_default=True, help="Of the policy and what it plays.")
@display.force_option
@display.json_option
@display.quiet_option
def train(
    models: tuple[Path, ...],
    data: tuple[str, ...],
    output: Path,
    preprocess: str,
    label_offset: int,
    flops: str,
    rounds: int,
    rate: float,
    start: Path | None,
    run: Path | None,
    seed: int,
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Train one policy over all MODELS (or `--models A B`), to start `compress --search gnn_rl --policy FILE` from.

    The file is written after every round. What was interrupted goes on from there with --policy, under another name; or
    from the beginning, to the same result, with the --run that it had and --force.
    """
    from dataclasses import asdict

    from onnxprune import policies

    display.check_json(json_file, output)
    settings = policies.PolicySettings(display.parse_shares(flops), rounds, rate, seed)
    progress, before = display.Shown(quiet), _stamp(output)
    try:
        report = policies.train_policy(
            models,
            output,
            settings,
            data=data,
            preprocess=preprocess,
            label_offset=label_offset,
            start=start,
            run=run,
            force=force,
            progress=progress,
        )
    except KeyboardInterrupt as error:
        raise InterruptedRunError(_how_to_go_on(output, run, _stamp(output) != before)) from error
    finally:
        progress.close()
    display.write_result(json_file, asdict(report))
    if quiet:
        return
    made = display.table("What the policy's own plan gains over the ranking as it is", "network", " error")
    for name, gain in report.own.items():
        made.add_row(name, f"{100 * math.expm1(-gain):+.1f} %")
    display.console().print(made)
    display.console().print(f"wrote {output}")


def _stamp(file: Path) -> tuple[int, int] | None:
    """Tell a file from one that takes its place; None where there is none."""
    return (file.stat().st_ino, file.stat().st_mtime_ns) if file.exists() else None


def _how_to_go_on(output: Path, run: Path | None, is_written: bool) -> str:
    """Say what is left of a training that was interrupted."""
    if run is not None and any(file.stat().st_size for file in run.glob("*.jsonl")):
        again = display.again("--force")
        return f"interrupted; what was judged is kept in {run}, and this comes to the same policy: {again}"
    if is_written:
        return f"interrupted; {output} is the policy after the last round, to go on with by --policy under another -o"
    return "interrupted in the first round; --run FOLDER keeps what is judged" + (
        " the next time" if run is None else ""
    )


@policy.command(epilog="Example: onnxprune policy show my.safetensors")
@click.argument("file", type=click.Path(path_type=Path))
@display.json_option
@display.quiet_option
def show(file: Path, json_file: Path | None, quiet: bool) -> None:
    """Tell how a policy was trained."""
    from onnxprune import policies
    from onnxprune.picture import clean

    display.check_json(json_file)
    found = policies.show_policy(file)
    display.write_result(json_file, found)
    if quiet:
        return
    console = display.console()
    console.print(f"{file.name}: {found['parameters']:,} parameters, embeddings of {found['width']}")
    for name, value in found["notes"].items():
        console.print(clean(f"{name}: {value}"), markup=False)
