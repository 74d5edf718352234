"""Small networks of the zoo's families, trained on the handwritten digits of scikit-learn: what the policy learns from.

Run ``python -m onnxprune.models.small OUT_DIR``, then
``onnxprune policy train OUT_DIR/*.onnx --data OUT_DIR/digits.npz -o OUT_DIR/policy.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import nn
from torch.nn import functional as F

from . import lay_out
from .digits import Split, accuracy, digits, ending_with_errors, make_folder, train_digits, write_split
from .exporter import write_onnx
from .initial import untrained

DATA_FILE = "digits.npz"
SIDE = 16  # pixels: digits are shown twice as large, so that networks can halve them as often as they do photographs
SHAPE, CLASSES = (1, SIDE, SIDE), 10
EPOCHS = 25
SEED = 0


@dataclass(frozen=True)
class Small:
    """A network: the module of this folder that defines it, and what to hand to its ``network``."""

    file: str
    options: Mapping[str, object]


NETWORKS = {
    "resnet14": Small("cifar_resnet", {"depth": 14}),
    "resnet26": Small("cifar_resnet", {"depth": 26}),
    "mobilenet_v1": Small("mobilenet", {"version": 1}),
    "shufflenet_v1_g3": Small("shufflenet_v1", {"groups": 3}),
    "shufflenet_v2_x0_5": Small("shufflenet_v2", {"width": 0.5}),
    "densenet40": Small("densenet", {"depth": 40}),
}


def build(name: str) -> nn.Module:
    """Build one of the networks with the weights that its training starts from."""
    found = NETWORKS[name]
    return untrained(lay_out(found.file, SHAPE, CLASSES, found.options), SEED)


def enlarged(data: Split) -> Split:
    """Show digits twice as large."""
    return Split(F.interpolate(data.x, size=(SIDE, SIDE), mode="bilinear"), data.y)


def write_small(folder: Path, name: str, train: Split, test: Split) -> float:
    """Train a network and write it; returns its test accuracy."""
    net = train_digits(build(name), train, EPOCHS)
    write_onnx(net, SHAPE, folder / f"{name}.onnx")
    return accuracy(net, test)


@click.command()
@click.argument("out_dir", type=click.Path(path_type=Path))
def main(out_dir: Path) -> None:
    """Train small networks on handwritten digits; write them and their training images to OUT_DIR.

    Example: python -m onnxprune.models.small small
    """
    with ending_with_errors():
        make_folder(out_dir)
        train, calibration, test = (enlarged(part) for part in digits())
        parts = (torch.cat([train.x, calibration.x]), torch.cat([train.y, calibration.y]))
        write_split(Split(*parts), out_dir / DATA_FILE)
        for name in NETWORKS:
            if not (out_dir / f"{name}.onnx").exists():
                click.echo(f"{name}: test accuracy {write_small(out_dir, name, train, test):.2%}")
    click.echo(f"wrote {', '.join(NETWORKS)} and {DATA_FILE} to {out_dir}")


if __name__ == "__main__":
    main()
