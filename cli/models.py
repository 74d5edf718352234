"""``onnxprune models``: the networks of the zoo and their export to ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from onnxprune.models import ZooEntry


@click.group(no_args_is_help=False, epilog="Example: onnxprune models export resnet18 -o resnet18.onnx")
def models() -> None:
    """List the networks of the zoo, or export one to ONNX."""


@models.command("list", epilog="Example: onnxprune models list --json zoo.json")
@click.option("--json", "json_file", metavar="FILE", help="Write the list as JSON to FILE; - is the standard output.")
def list_models(json_file: str | None) -> None:
    """List the networks with their input, classes, size and cost.

    Params counts the learned values, in millions; MACs the multiply-accumulates of the convolutions and dense layers
    for one image, in millions.
    """
    from onnxprune import models as zoo

    entries = [zoo.describe(name) for name in zoo.names()]
    if json_file is not None:
        _write_json(entries, json_file)
    if json_file != "-":
        _print_table(entries)


@models.command("export", epilog="Example: onnxprune models export vgg16_cifar --exporter dynamo --batch 1")
@click.argument("name")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write; NAME.onnx by default.")
@click.option("--exporter", default="torchscript", show_default=True, help="torchscript or dynamo.")
@click.option("--seed", default=0, show_default=True, help="Draws the weights where no file gives them.")
@click.option("--weights", type=click.Path(path_type=Path), help="A state dict: .safetensors, .pt or .pth.")
@click.option("--batch", type=int, help="Fix the batch size; it is dynamic by default.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def export_model(
    name: str, output: Path | None, exporter: str, seed: int, weights: Path | None, batch: int | None, force: bool
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
    click.echo(f"wrote {path}: input {_shape(entry)}, {entry.classes} classes, {megabytes:.1f} MB")


def _shape(entry: ZooEntry) -> str:
    return "x".join(str(side) for side in entry.input_shape)


def _write_json(entries: list[ZooEntry], target: str) -> None:
    import json

    from onnxprune.errors import InputError

    keys = ("name", "input_shape", "classes", "params", "macs", "description")
    text = json.dumps([{key: getattr(entry, key) for key in keys} for entry in entries], indent=2)
    if target == "-":
        click.echo(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {target} ({error.strerror}); choose another path for --json") from error


def _print_table(entries: list[ZooEntry]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("Name")
    for heading in ("Input", "Classes", "Params (M)", "MACs (M)"):
        table.add_column(heading, justify="right")
    for entry in entries:
        table.add_row(
            *(entry.name, _shape(entry), str(entry.classes)),
            *(f"{entry.params / 1e6:.3f}", f"{entry.macs / 1e6:.2f}"),
        )
    Console().print(table)
