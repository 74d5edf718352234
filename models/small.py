"""Small networks of the zoo's families, trained on small images: what the policy learns from.

Run ``python -m onnxprune.models.small OUT_DIR --data photographs.npz``, then
``onnxprune policy train OUT_DIR/*.onnx --data OUT_DIR/images.npz -o OUT_DIR/policy.safetensors``. Without photographs
they are trained on the handwritten digits of scikit-learn, which leave so much to spare that little is to be learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxprune.errors import InputError

from . import lay_out
from .digits import Show, Split, accuracy, digits, ending_with_errors, make_folder, shift, train_net, write_split
from .exporter import write_onnx
from .initial import untrained

DATA_FILE = "images.npz"
SIDE = 16  # pixels: digits are shown twice as large, so that networks can halve them as often as they do photographs
EPOCHS, PHOTOGRAPH_EPOCHS = 25, 12
PHOTOGRAPHS, TESTED, KEPT = 25_000, 2_000, 4_000  # images to train on, to test with, and those of the former that stay
SEED = 0


@dataclass(frozen=True)
class Small:
    """A network: the module of this folder that defines it, and what to hand to its ``network``."""

    file: str
    options: Mapping[str, object]


NETWORKS = {
    "resnet14": Small("cifar_resnet", {"depth": 14}),
    "resnet26": Small("cifar_resnet", {"depth": 26}),
    "resnet38": Small("cifar_resnet", {"depth": 38}),
    "mobilenet_v1": Small("mobilenet", {"version": 1}),
    "shufflenet_v1_g3": Small("shufflenet_v1", {"groups": 3}),
    "shufflenet_v2_x0_5": Small("shufflenet_v2", {"width": 0.5}),
    "densenet40": Small("densenet", {"depth": 40}),
}


def build(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build one of the networks with the weights that its training starts from."""
    found = NETWORKS[name]
    return untrained(lay_out(found.file, shape, classes, found.options), SEED)


def enlarged_digits() -> tuple[Split, Split]:
    """Load digits, twice as large: to train on and to test with."""
    train, calibration, test = (
        Split(F.interpolate(part.x, size=(SIDE, SIDE), mode="bilinear"), part.y) for part in digits()
    )
    return Split(torch.cat([train.x, calibration.x]), torch.cat([train.y, calibration.y])), test


def photographs(path: Path, tested: int = TESTED) -> tuple[Split, Split]:
    """Read photographs, and make them small; the last ones are to test with.

    Args:
        path: an .npz with ``x``, bytes (samples, height, width, 3), and ``y``, the numbers of their classes.
        tested: how many to test with; the images to train on are the same for any number, where there are
            enough, but for their scale, which all images have a share in.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y")}
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(f"--data {path}: give an .npz with x and y ({error})") from error
    if arrays["x"].ndim != 4 or arrays["x"].shape[3] != 3:
        raise InputError(f"--data {path}: x has the shape {arrays['x'].shape}, not (samples, height, width, 3)")
    if len(arrays["x"]) < 2 * tested or arrays["x"].dtype != "uint8" or len(arrays["x"]) != len(arrays["y"]):
        raise InputError(f"--data {path}: x must hold bytes, as many images as y has classes, {2 * tested} at least")
    order = torch.randperm(len(arrays["x"]), generator=torch.Generator().manual_seed(SEED))[: PHOTOGRAPHS + tested]
    pixels = torch.from_numpy(arrays["x"])[order].permute(0, 3, 1, 2).float()
    pixels = F.adaptive_avg_pool2d(pixels, SIDE)
    pixels = (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)
    y = torch.from_numpy(arrays["y"])[order].long()
    return Split(pixels[:-tested], y[:-tested]), Split(pixels[-tested:], y[-tested:])


def shift_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by up to one pixel each way, and turn half of its images round."""
    turned = torch.rand(len(images), generator=generator) < 0.5
    return shift(torch.where(turned[:, None, None, None], images.flip(3), images), generator)


def write_small(folder: Path, name: str, train: Split, test: Split, epochs: int, show: Show) -> float:
    """Train a network and write it; returns its test accuracy."""
    _, channels, height, width = train.x.shape
    shape = channels, height, width
    net = train_net(build(name, shape, int(train.y.max()) + 1), train, epochs, show)
    write_onnx(net, shape, folder / f"{name}.onnx")
    return accuracy(net, test)


@click.command()
@click.argument("out_dir", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Photographs: .npz with x, bytes, channels last, and y.")
@click.option("--only", multiple=True, type=click.Choice(list(NETWORKS)), help="Networks to train; by default all.")
def main(out_dir: Path, data: Path | None, only: tuple[str, ...]) -> None:
    """Train small networks on small images; write them and some of their training images to OUT_DIR.

    Example: python -m onnxprune.models.small small --data cifar10_train.npz
    """
    with ending_with_errors():
        make_folder(out_dir)
        train, test = enlarged_digits() if data is None else photographs(data)
        epochs, show = (EPOCHS, shift) if data is None else (PHOTOGRAPH_EPOCHS, shift_and_mirror)
        write_split(Split(train.x[:KEPT], train.y[:KEPT]), out_dir / DATA_FILE)
        wanted = only or tuple(NETWORKS)
        for name in wanted:
            if not (out_dir / f"{name}.onnx").exists():
                click.echo(f"{name}: test accuracy {write_small(out_dir, name, train, test, epochs, show):.2%}")
    click.echo(f"wrote {', '.join(wanted)} and {DATA_FILE} to {out_dir}")


if __name__ == "__main__":
    main()
