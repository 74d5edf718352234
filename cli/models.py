"""``onnxprune models``: the networks of the zoo, their export to ONNX, and their training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import display
from .finetune import train

if TYPE_CHECKING:
    from onnxprune.models import ZooEntry


@click.group(no_args_is_help=False, epilog="Example: onnxprune models export resnet18 -o resnet18.onnx")
def models() -> None:
    """List the networks of the zoo, export one to ONNX, or train one."""


@models.command("list", epilog="Example: onnxprune models list --json zoo.json")
@display.json_option
@display.quiet_option
def list_models(json_file: Path | None, quiet: bool) -> None:
    """List the networks with their input, classes, size and cost.

    Params counts the learned values, in millions; MACs the multiply-accumulates of the convolutions and dense layers
    for one image, in millions.
    """
    from onnxprune import models as zoo

    display.check_json(json_file)
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
    display.check_json(json_file, path)
    if path.exists() and not force:
        raise InputError(f"{path} already exists; give --force to replace it, or another path with -o")
    zoo.export(name, path, exporter=exporter, seed=seed, weights=weights, batch=batch)
    megabytes = path.stat().st_size / 1e6
    display.write_result(json_file, {"format": "onnxprune.export/1", **_described(entry), "output": path.name})
    if not quiet:
        click.echo(f"wrote {path}: input {_shape(entry)}, {entry.classes} classes, {megabytes:.1f} MB")


@models.command(
    "train", epilog="Example: onnxprune models train cifar_resnet20 --data cifar10_train.npz -o resnet20.onnx"
)
@click.argument("name")
@click.option("--data", required=True, help=f"Images with labels: {display.DATA_FORMS}.")
@display.preprocess_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The file to write; NAME.onnx by default.")
@click.option("--epochs", type=int, help="Times that every image is seen; the network's recipe has a default.")
@click.option("--seed", default=0, show_default=True, help="Draws the first weights, and everything else.")
@click.option("--holdout", default=2000, show_default=True, help="Most images held out, to choose the best epoch by.")
@click.option("--choose", default="best", show_default=True, help="The epoch written: best on those held out, or last.")
@click.option("--run", type=click.Path(path_type=Path), help="Folder for checkpoints; OUTPUT.run by default.")
@click.option("--resume", is_flag=True, help="Go on with the run that the folder holds.")
@display.force_option
@display.json_option
@display.quiet_option
def train_model(
    name: str,
    data: str,
    preprocess: str,
    output: Path | None,
    epochs: int | None,
    seed: int,
    holdout: int,
    choose: str,
    run: Path | None,
    resume: bool,
    force: bool,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Train the network NAME from scratch by its recipe and write it to an ONNX file; torchrun gives more processes."""
    import tempfile
    from dataclasses import asdict

    from onnxprune import models as zoo
    from onnxprune.models.recipes import recipe
    from onnxprune.training.settings import FinetuneSettings

    asked = {**asdict(recipe(name)), "seed": seed, "holdout": holdout, "choose": choose}
    if epochs is not None:
        asked["epochs"] = epochs
    out = output if output is not None else Path(f"{name}.onnx")
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / f"{name}.onnx"
        zoo.export(name, start, seed=seed, to_train=True)
        train(
            start,
            out,
            FinetuneSettings(**asked),
            quiet=quiet,
            json_file=json_file,
            data=data,
            preprocess=preprocess,
            run=run,
            resume=resume,
            force=force,
        )


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
