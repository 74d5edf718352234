"""Cut to the same MACs, whose model is faster in onnxruntime: onnxprune's or Torch-Pruning's?

    PYTHONPATH=FOLDER python benchmarks/speed_beside_torch_pruning.py [--nets resnet50,vgg16] [--flops 0.5]
        [--batches 1,16] [--threads 1] [--round-to 1,8] [--provider cpu] [--seconds 20]

Networks are those of the zoo with its seeded weights. Torch-Pruning takes the same share of every group (its default),
step by step until the target is met, widths as they come or rounded (`round_to`); the classifier stays. onnxprune gets
the exported network and is asked for the MACs that this gave, with its own settings. Both files are measured as
`onnxprune profile` does: each in a process of its own, in turns, with an interval of 95 %.

Not a dependency: `pip install --no-deps --target FOLDER 'torch-pruning==1.6.*'`.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from prepared import macs
from torch import nn

import onnxprune
from onnxprune import CompressSettings, ProfileSettings, models
from onnxprune.models.exporter import write_onnx
from onnxprune.profiling import machine
from onnxprune.reporting import versions

NETS = "vgg16,resnet50,mobilenet_v1,mobilenet_v2,shufflenet_v1_g3,shufflenet_v2_x1_0"
STEPS = 100
COLUMNS = "network | FLOPs | rounded to | MACs kept: theirs | ours | batch | threads | ours faster | interval"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=NETS)
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--round-to", default="1,8")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    about = {**versions(), **machine.described(), "torch-pruning": version("torch-pruning")}
    print(", ".join(f"{name} {value}" for name, value in about.items()) + "\n")
    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}", flush=True)
    for name in arguments.nets.split(","):
        for target in map(float, arguments.flops.split(",")):
            for multiple in map(int, arguments.round_to.split(",")):
                with tempfile.TemporaryDirectory() as folder:
                    show(arguments, name, target, multiple, Path(folder))


def show(arguments: argparse.Namespace, name: str, target: float, multiple: int, folder: Path) -> None:
    """Let both sides cut a network and print a row for each way to run it."""
    words = f"{name} | {target} | {multiple}"
    original, theirs, ours = (folder / f"{side}.onnx" for side in ("original", "theirs", "ours"))
    models.export(name, original)
    try:
        their_cut(name, target, multiple, theirs)
    except Exception as error:  # whatever Torch-Pruning raises is a result
        print(f"| {words} | fails: {type(error).__name__}: {str(error).splitlines()[0][:120]} |", flush=True)
        return
    kept = macs(theirs)
    onnxprune.compress(original, ours, CompressSettings({"macs": str(kept)}))
    words += f" | {kept / macs(original):.1%} | {macs(ours) / macs(original):.1%}"
    for threads in map(int, arguments.threads.split(",")):
        for batch in map(int, arguments.batches.split(",")):
            asked = ProfileSettings(arguments.provider, batch, threads, seconds=arguments.seconds)
            (faster,) = onnxprune.profile([theirs, ours], asked).speedups
            print(
                f"| {words} | {batch} | {threads} | {faster.median:.2f}x | {faster.low:.2f} to {faster.high:.2f} |",
                flush=True,
            )


def their_cut(name: str, target: float, multiple: int, out: Path) -> None:
    """Step until Torch-Pruning counts no more than the share of the MACs, and export what is left."""
    package = import_module("torch_pruning")
    entry = models.describe(name)
    net: nn.Module = models.build(name)
    image = torch.randn(1, *entry.input_shape)
    classifier = [
        m for m in net.modules() if entry.classes in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))
    ]
    pruner = package.pruner.MagnitudePruner(
        net,
        image,
        importance=package.importance.MagnitudeImportance(p=2),
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=classifier,
        round_to=multiple,
    )
    whole, _ = package.utils.count_ops_and_params(net, image)
    for _ in range(STEPS):
        pruner.step()
        left, _ = package.utils.count_ops_and_params(net, image)
        if left <= target * whole:
            write_onnx(net.eval(), entry.input_shape, out)
            return
    raise RuntimeError(f"{target} is not reached in {STEPS} steps")


if __name__ == "__main__":
    main()
