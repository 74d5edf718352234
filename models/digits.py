"""The demo model: a small ResNet trained on the handwritten digits of scikit-learn in under a minute.

Run ``python -m onnxprune.models.digits OUT_DIR``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxprune.errors import InputError, OnnxPruneError

from .exporter import write_onnx
from .initial import initialize, one_thread
from .resnet import Basic, resnet

MODEL_FILE = "digits_resnet.onnx"
TEST_FILE = "digits_test.npz"
CALIBRATION_FILE = "digits_calibration.npz"
_SHAPE = (1, 8, 8)
_CLASSES = 10
_BLOCKS = (2, 2, 2)
_WIDTHS = (32, 64, 128)
_SEED = 0
_TEST_COUNT = 400
_CALIBRATION_COUNT = 200
_EPOCHS = 30
_BATCH = 64
_PEAK_RATE = 0.05
_BRIGHTEST = 16.0

Show = Callable[[Tensor, torch.Generator], Tensor]
"""Changes a batch of images a little, each time otherwise."""


@dataclass(frozen=True)
class Split:
    """Images (float32, NCHW, in 0..1) and their labels (int64)."""

    x: Tensor
    y: Tensor


def digits() -> tuple[Split, Split, Split]:
    """Load the digits and split them into train, calibration and test, each with the same share of every class."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise InputError(
            "the digits demo needs scikit-learn, which is not installed; run: pip install onnxprune[demo]"
        ) from error

    pixels, labels = load_digits(return_X_y=True)
    x = (pixels / _BRIGHTEST).astype(np.float32).reshape(-1, *_SHAPE)
    y = labels.astype(np.int64)
    rest_x, test_x, rest_y, test_y = train_test_split(x, y, test_size=_TEST_COUNT, stratify=y, random_state=_SEED)
    train_x, calibration_x, train_y, calibration_y = train_test_split(
        rest_x, rest_y, test_size=_CALIBRATION_COUNT, stratify=rest_y, random_state=_SEED
    )
    pairs = ((train_x, train_y), (calibration_x, calibration_y), (test_x, test_y))
    train, calibration, test = (Split(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs)
    return train, calibration, test


def train_net(net: nn.Module, data: Split, epochs: int, show: Show) -> nn.Module:
    """Train a network from a fixed seed; return it in eval mode.

    Args:
        net: it is changed.
        data: to train on.
        epochs: times that every image is seen.
        show: changes each batch before the network sees it.
    """
    net.train()
    generator = torch.Generator().manual_seed(_SEED)
    steps = -(-len(data.y) // _BATCH)
    optimizer = torch.optim.SGD(net.parameters(), lr=_PEAK_RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, epochs=epochs, steps_per_epoch=steps)
    for _ in range(epochs):
        for picked in torch.split(torch.randperm(len(data.y), generator=generator), _BATCH):
            loss = F.cross_entropy(net(show(data.x[picked], generator)), data.y[picked])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: nn.Module, data: Split) -> float:
    """Measure the share of images a network labels right."""
    with torch.no_grad():
        return float((net(data.x).argmax(1) == data.y).double().mean())


def write_demo(folder: Path, epochs: int = _EPOCHS) -> float:
    """Train the demo network and write it with its calibration and test data; return its test accuracy."""
    train, calibration, test = digits()
    make_folder(folder)
    net = initialize(resnet(_SHAPE, _CLASSES, Basic, _BLOCKS, _WIDTHS), _SHAPE, _SEED)
    with one_thread():
        train_net(net, train, epochs, shift)
    write_onnx(net, _SHAPE, folder / MODEL_FILE)
    write_split(calibration, folder / CALIBRATION_FILE)
    write_split(test, folder / TEST_FILE)
    return accuracy(net, test)


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder} ({error.strerror}); name another one") from error


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move a batch by up to one pixel each way: few images, so show them in more than one place."""
    down, right = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return F.pad(images, (right, -right, down, -down))


def write_split(data: Split, path: Path) -> None:
    """Write images and labels as .npz."""
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        np.savez_compressed(draft, x=data.x.numpy(), y=data.y.numpy())
        os.replace(draft, path)


@contextmanager
def ending_with_errors() -> Iterator[None]:
    """End the program with what is wrong, where it is the user's to mend."""
    try:
        yield
    except OnnxPruneError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


@click.command()
@click.argument("out_dir", type=click.Path(path_type=Path))
def main(out_dir: Path) -> None:
    """Train a small ResNet on handwritten digits; write model, calibration and test data to OUT_DIR.

    Example: python -m onnxprune.models.digits demo
    """
    if all((out_dir / name).is_file() for name in (MODEL_FILE, TEST_FILE, CALIBRATION_FILE)):
        click.echo(f"{out_dir} already holds the digits demo; delete {out_dir / MODEL_FILE} to train it again")
        return
    click.echo("training a small ResNet on 8x8 digits, about a minute")
    with ending_with_errors():
        share = write_demo(out_dir)
    click.echo(f"wrote {MODEL_FILE}, {TEST_FILE} and {CALIBRATION_FILE} to {out_dir}; test accuracy {share:.2%}")


if __name__ == "__main__":
    main()
