"""Does an ONNX graph run in PyTorch as it does in onnxruntime? One row of Markdown a file.

    python benchmarks/executor.py MODEL [MODEL ...] [--shape FILE:INPUT=SIZES] [--image FILE] [--beside onnx2torch]

Differences are relative to the largest number of an output, onnxruntime's rewriting of graphs is off for them and on
for its time. `onnx2torch` imports torchvision: `PYTHONPATH=FOLDER` of both, where they are not installed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import torch
from onnx import ModelProto
from PIL import Image

from onnxprune import runtime
from onnxprune.errors import InputError
from onnxprune.model import read_file, stored_tensors
from onnxprune.shapes import Shape, bind_inputs, example_inputs
from onnxprune.training.executor import Executor
from onnxprune.training.functions import as_tensor
from onnxprune.training.sharing import FLOATS
from onnxprune.weights import Array

COLUMNS = ("file", "difference", "comes back", "trained", "ms", "onnxruntime ms", "error")
ENOUGH = 1e-4
TINY = 1e-6  # outputs that are as good as zero, such as sigmoids far off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--shape", action="append", default=[], metavar="FILE:INPUT=SIZES")
    parser.add_argument("--image", type=Path, help="for inputs of one or three channels; else they are random")
    parser.add_argument("--beside", choices=["onnx2torch"])
    parser.add_argument("--seconds", type=float, default=2.0, help="for which each is timed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    columns = [*COLUMNS, *([arguments.beside] if arguments.beside else [])]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for path in arguments.models:
        row = examined(path, parse_shapes(arguments.shape)[path.name], arguments)
        print(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |", flush=True)


def parse_shapes(texts: Sequence[str]) -> dict[str, dict[str, Shape]]:
    """Read ``FILE:INPUT=SIZES``, by file."""
    found: dict[str, dict[str, Shape]] = defaultdict(dict)
    for text in texts:
        file, _, rest = text.partition(":")
        name, _, sizes = rest.rpartition("=")
        found[file][name] = tuple(map(int, sizes.split(",")))
    return found


def examined(path: Path, asked: dict[str, Shape], arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare one model; what fails is told in the row."""
    row: dict[str, Any] = {"file": path.name}
    try:
        proto = read_file(path)
        feed = inputs_of(proto, asked, arguments.image)
        expected = runtime.Session(proto, folder=path.parent, threads=1, optimize=False).run(feed)
        if arguments.beside:
            row["onnx2torch"] = verdict(lambda: by_onnx2torch(path, feed), expected)
        executor = Executor(proto, path.parent).eval()
        given = [as_tensor(feed[name]) for name in executor.inputs]
        row["comes back"] = "yes" if comes_back(executor, proto) else "no"
        row["trained"] = f"{trained_share(executor, proto, path.parent):.0%}"
        with torch.no_grad():
            row["difference"] = f"{difference(executor(*given), expected):.0e}"
            row["ms"] = milliseconds(lambda: executor(*given), arguments.seconds)
        session = runtime.Session(proto, folder=path.parent, threads=1)
        row["onnxruntime ms"] = milliseconds(lambda: session.run(feed), arguments.seconds)
    except (InputError, RuntimeError, TypeError, ValueError, IndexError) as error:
        row["error"] = " ".join(str(error).split())[:150].replace("|", "/") or type(error).__name__
    return row


def inputs_of(proto: ModelProto, asked: dict[str, Shape], image: Path | None) -> dict[str, Array]:
    """Draw inputs, or fit an image into those that take one."""
    bound, _ = bind_inputs(proto.graph, asked)
    feed = example_inputs(proto.graph, bound)
    for name, values in feed.items():
        if image is not None and values.ndim == 4 and values.dtype == np.float32 and {1, 3} & {*values.shape[1::2]}:
            feed[name] = fitted(image, values.shape)
    return feed


def fitted(image: Path, shape: Shape) -> Array:
    """Fit an image into an input, channels first or last."""
    first = shape[1] in (1, 3)
    channels, height, width = shape[1:] if first else (shape[3], shape[1], shape[2])
    with Image.open(image) as opened:
        pixels = np.asarray(opened.convert("RGB" if channels == 3 else "L").resize((width, height)), np.float32)
    scaled = (pixels.reshape(height, width, channels) / 255 - 0.45) / 0.225
    return np.broadcast_to(scaled.transpose(2, 0, 1) if first else scaled, shape).copy()


def difference(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Give the largest difference of any output, relative to its largest number."""
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        wanted = np.asarray(other, np.float64)
        if tuple(one.shape) != wanted.shape:
            raise ValueError(f"shape {tuple(one.shape)} instead of {wanted.shape}")
        if wanted.size:
            away = np.abs(np.asarray(one.detach(), np.float64) - wanted).max()
            worst = max(worst, float(away / max(np.abs(wanted).max(), TINY)))
    return worst


def comes_back(executor: Executor, proto: ModelProto) -> bool:
    """Tell whether the model that was not trained is the same to the letter."""
    written, given = (p.SerializeToString(deterministic=True) for p in (executor.model(), proto))
    return bool(written == given)


def trained_share(executor: Executor, proto: ModelProto, folder: Path) -> float:
    """Give the share of stored floats that are trained."""
    floats = sum(int(np.prod(t.dims)) for t in stored_tensors(proto).values() if t.data_type in FLOATS)
    return sum(parameter.numel() for parameter in executor.parameters()) / max(floats, 1)


def milliseconds(run: Callable[[], object], seconds: float) -> str:
    """Time a run: the least of several, which a busy machine disturbs least."""
    run()
    found = list[float]()
    start = time.perf_counter()
    while len(found) < 3 or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        run()
        found.append(1e3 * (time.perf_counter() - before))
    return f"{min(found):.1f}"


def by_onnx2torch(path: Path, feed: dict[str, Array]) -> Sequence[torch.Tensor]:
    """Run a model by onnx2torch."""
    stand_in()
    import onnx2torch

    with torch.no_grad():
        found = onnx2torch.convert(onnx.load(str(path))).eval()(*(torch.from_numpy(values) for values in feed.values()))
    return found if isinstance(found, (list, tuple)) else [found]


@cache
def stand_in() -> torch.library.Library:
    """Declare what torchvision expects of its compiled part, which does not load beside a torch without CUDA."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    register = torch.library.register_fake

    def register_if_known(op: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return register(op, *args, **kwargs)
        except RuntimeError:
            return lambda function: function

    with patch.object(torch.library, "register_fake", register_if_known):
        import torchvision  # noqa: F401
    return library


def verdict(run: Callable[[], Sequence[torch.Tensor]], expected: Sequence[Any]) -> str:
    """Say equal, differs by how much, or how it fails."""
    try:
        away = difference(run(), expected)
    except Exception as error:  # whatever another library raises
        return f"fails: {' '.join(f'{type(error).__name__} {error}'.split())[:130]}".replace("|", "/")
    return "equal" if away < ENOUGH else f"differs: {away:.0e}"


if __name__ == "__main__":
    main()
