"""``onnxprune models``: the networks of the zoo and their export to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import display

if TYPE_CHECKING:
    from onnxprune.models import ZooEntry


@click.group(no_args_is_help=False, epilog="Example: onnxprune models export resnet18 -o resnet18.onnx")
def models() -> None:
    """List the networks of the zoo, or export one to ONNX."""


@models.command("list", epilog="Example: onnxprune models list --json zoo.json")
@display.json_option
@display.quiet_option
def list_models(json_file: Path | None, quiet: bool) -> None:
    """List the networks with their input, classes, size and cost.

    Params counts the learned values, in millions; MACs the multiply-accumulates of the convolutions and dense layers
    for one image, in millions.
    """
    from onnxprune import models as zoo

    entries = [zoo.describe(name) for name in zoo.names()]
    display.write_result(json_file, [_described(entry) for entry in entries])
    if not quiet:
        _print_table(entries)


@models.command("export", epilog="Example: onnxprune models export vgg16_cifar --exporter dynamo --batch 1")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write; NAME.onnx by default.")
@click.option("--exporter", default="torchscript", show_default=True, help="torchscript or dynamo.")
@click.option("--seed", default=0, show_default=True, help="Draws the weights where no file gives them.")
@click.option("--weights", type=click.Path(path_type=Path), help="A state dict: .safetensors, .pt or .pth.")
@click.option("--batch", type=int, help="Fix the batch size; it is dynamic by default.")
@display.force_option
@display.json_option
@display.quiet_option
def export_model(
    name: str,
    output: Path | None,
    exporter: str,
    seed: int,
    weights: Path | None,
    batch: int | None,
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Export the network NAME to an ONNX file with the input 'image' and the output 'logits'."""
    from onnxprune import models as zoo
    from onnxprune.errors import InputError

    entry = zoo.describe(name)
    path = output if output is not None else Path(f"{name}.onnx")
    if path.exists() and not force:
        raise InputError(f"{path} already exists; give --force to replace it, or another path with -o")
    zoo.export(name, path, exporter=exporter, seed=seed, weights=weights, batch=batch)
    megabytes = path.stat().st_size / 1e6
    display.write_result(json_file, {"format": "onnxprune.export/1", **_described(entry), "output": path.name})
    if not quiet:
        click.echo(f"wrote {path}: input {_shape(entry)}, {entry.classes} classes, {megabytes:.1f} MB")


def _shape(entry: ZooEntry) -> str:
    return "x".join(str(side) for side in entry.input_shape)


def _described(entry: ZooEntry) -> dict[str, object]:
    return {key: getattr(entry, key) for key in ("name", "input_shape", "classes", "params", "macs", "description")}


def _print_table(entries: list[ZooEntry]) -> None:
    made = display.table("Zoo", "name", " input", " classes", " params (M)", " MACs (M)")
    for entry in entries:
        made.add_row(
            *(entry.name, _shape(entry), str(entry.classes)),
            *(f"{entry.params / 1e6:.3f}", f"{entry.macs / 1e6:.2f}"),
        )
    display.console().print(made)
