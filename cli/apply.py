"""``onnxprune apply``: repeat a cut."""

from __future__ import annotations

from pathlib import Path

import click

from . import display


@click.command(epilog="Example: onnxprune apply model.onnx small.plan.json -o again.onnx")
@display.model_argument
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@display.verify_option
@display.force_option
@display.json_option
@display.quiet_option
def apply(model: Path, plan: Path, output: Path, verify: str, force: bool, json_file: Path | None, quiet: bool) -> None:
    """Cut MODEL as PLAN says, bit for bit as it was cut before."""
    from onnxprune import pipeline

    display.check_json(json_file, output)
    checks = pipeline.apply(model, plan, output, verify_level=verify, force=force)
    display.write_result(json_file, {"format": "onnxprune.apply/1", "output": output.name, "checks": checks})
    if not quiet:
        for name, check in checks.items():
            click.echo(f"{name}: {check}")
        click.echo(f"wrote {output}")
