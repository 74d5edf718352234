"""Cut to the same MACs and trained alike, who keeps more accuracy: onnxprune or Torch-Pruning?

    PYTHONPATH=FOLDER python benchmarks/trained_beside_torch_pruning.py MODEL [MODEL ...] --data train.npz \
        --test test.npz --run FOLDER [-- FINETUNE OPTIONS]

MODEL is a CIFAR ResNet with BatchNormalization, such as cifar10_resnet20_bn.onnx; its weights go into the zoo's network
for Torch-Pruning. That side follows its authors' reproduce/main.py, `--method group_norm`: GroupNormPruner and
GroupMagnitudeImportance(p=2), 400 steps towards nothing left, until the target is met, the classifier left alone, no
sparse learning. Then onnxprune (`--search`, any width, as in Torch-Pruning) is asked for the MACs that this gave; one
model of onnxprune stands beside all that have its MACs within 1 %. Ways of Torch-Pruning: `local` takes the same share
of every group, `global` ranks all channels together; `-inner` cuts only between the two convolutions of each block.

Torch-Pruning 1.6.1 takes the padded shortcut (`F.pad` of every second pixel) for an element-wise operation: channel i
of a stage is tied to channel i of the next one instead of to the one that it is padded to, and the cut network fails at
the classifier. So it sees the shortcut as `torch.cat` of the image and two parameters of zeros, named in
`unwrapped_parameters`: then its groups are right, and the 16 channels that run through all stages are one group. It
offers none for the other channels of the later stages, which stay.

A line for each model and side: share of the MACs, then top-1 of the original, the bare cut, the repaired and the
trained model (`--epochs 0`: none). Repaired means least squares for onnxprune, whose training starts there, and
statistics of BatchNorm from the same images for Torch-Pruning, whose training starts at the bare cut. What follows a
lone `--` goes to `onnxprune finetune`. All of it lies in the folder, and a second start goes on where the first ended.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from prepared import macs
from torch import nn
from training import given_and_extra, make

import onnxprune
from onnxprune import CompressSettings, model, models, runtime
from onnxprune.data import read_data, read_preprocess, split
from onnxprune.models.cifar_resnet import PadShortcut
from onnxprune.models.exporter import write_onnx

PROGRAM = str(Path(sys.executable).with_name("onnxprune"))
WAYS = ("local", "global", "local-inner", "global-inner")
STEPS = 400
SHAPE = (3, 32, 32)
SAME = 0.01  # MACs no further apart count as the same


class Side(NamedTuple):
    """What one side made of a model: its name, the bare cut, the repaired one, and which of both is trained."""

    name: str
    bare: Path
    repaired: Path
    start: Path


class CatShortcut(nn.Module):
    """What `PadShortcut` computes for a batch of one, in a form that Torch-Pruning reads."""

    def __init__(self, pad: PadShortcut, side: int) -> None:
        super().__init__()
        self.pad = pad
        self.before = nn.Parameter(torch.zeros(1, pad.before, side, side))
        self.after = nn.Parameter(torch.zeros(1, pad.after, side, side))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shrink the image and widen the channels."""
        return torch.cat([self.before, x[:, :, ::2, ::2], self.after], 1)


def main() -> None:
    given, extra = given_and_extra()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:2])
    parser.add_argument("--search", default="greedy", help="of onnxprune")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(given)
    arguments.run.mkdir(parents=True, exist_ok=True)
    print(f"# {', '.join(f'{name} {version(name)}' for name in ('torch', 'torch-pruning'))}", flush=True)
    for file in arguments.models:
        for target in arguments.flops.split(","):
            ours: list[int] = []  # the MACs of onnxprune's models
            for way in arguments.ways:
                side = their_side(arguments, file, target, way)
                print(line(arguments, file, target, side, extra), flush=True)
                aim = macs(side.bare)
                if all(abs(count - aim) > SAME * aim for count in ours):
                    side = our_side(arguments, file, aim)
                    ours.append(macs(side.bare))
                    print(line(arguments, file, target, side, extra), flush=True)


def line(arguments: argparse.Namespace, file: Path, target: str, side: Side, extra: list[str]) -> str:
    """Train and judge what a side made; what is there already is taken as it is."""
    options = ["--epochs", str(arguments.epochs), "--seed", str(arguments.seed), *extra]
    options += ["--teacher", str(file)] if arguments.teacher else []
    judged = {"original": file, "cut": side.bare, "repaired": side.repaired}
    if arguments.epochs:
        judged["trained"] = trained(arguments, side.start, options)
    parts = [f"{file.stem}.{target}", side.name, f"MACs {macs(side.bare) / macs(file):.4f}"]
    for title, path in judged.items():
        scores = onnxprune.evaluate(path, arguments.test, preprocess=arguments.preprocess)
        parts.append(f"{title} {100 * (scores.top1 or 0):.2f}")
    return " | ".join([*parts, shlex.join(options)])


def trained(arguments: argparse.Namespace, start: Path, options: list[str]) -> Path:
    """Run `onnxprune finetune`, or go on with it."""
    out = start.with_name(f"{start.stem}{''.join(options).replace('--', '.').replace('/', '_')}.onnx")
    if not out.exists():
        command = [PROGRAM, "finetune", str(start), "--data", arguments.data, "--preprocess", arguments.preprocess]
        command += ["-o", str(out), "--resume", *options]
        print(f"# {shlex.join(command)}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
    return out


def our_side(arguments: argparse.Namespace, file: Path, aim: int) -> Side:
    """Compress a model to so many MACs."""
    name = f"{file.stem}.onnxprune.{arguments.search}.{aim}"
    small, bare = arguments.run / f"{name}.onnx", arguments.run / f"{name}.cut.onnx"
    asked = CompressSettings({"macs": str(aim)}, search=arguments.search, seed=arguments.seed, align=1)
    make(file, small, bare, asked, data=arguments.data, preprocess=arguments.preprocess)
    return Side(f"onnxprune, {arguments.search}", bare, small, small)


def their_side(arguments: argparse.Namespace, file: Path, target: str, way: str) -> Side:
    """Let Torch-Pruning cut the network of a model until the target is met."""
    name = f"{file.stem}.torch-pruning.{target}.{way}"
    bare, repaired = arguments.run / f"{name}.onnx", arguments.run / f"{name}.bn.onnx"
    if not bare.exists():  # it comes last
        draft = bare.with_suffix(".step")
        net = padded(their_cut(network_of(file), float(target) * macs(file), way, draft))
        estimate_norms(net, arguments, file)
        write_onnx(net, SHAPE, repaired, keep_norms=True)
        draft.replace(bare)
    return Side(f"Torch-Pruning {way}", bare, repaired, bare)


def network_of(file: Path) -> nn.Module:
    """Fill the zoo's network with a file's weights, by order and shape, and make sure that it answers the same."""
    name = f"cifar_{file.stem.split('_')[1]}"  # cifar10_resnet20_bn: cifar_resnet20
    net: nn.Module = models.build(name)
    proto = onnx.load(file)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type in ("Conv", "BatchNormalization", "Gemm")]
    given = [stored[tensor] for node in layers for tensor in node.input[1:]]
    wanted = [held for key, held in net.state_dict().items() if not key.endswith("num_batches_tracked")]
    if [array.shape for array in given] != [tuple(held.shape) for held in wanted]:
        raise SystemExit(f"{file} has other layers than {name}")
    for held, array in zip(wanted, given, strict=True):
        held.copy_(torch.from_numpy(array.copy()))
    images = torch.randn(8, *SHAPE)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        apart = np.abs(net(images).numpy() - session.run(None, {"image": images.numpy()})[0]).max()
    if apart > 1e-4:
        raise SystemExit(f"{file}: PyTorch answers {apart:.1e} apart")
    return net


def their_cut(net: nn.Module, most: float, way: str, out: Path) -> nn.Module:
    """Step until the file has the MACs, counted by onnxprune; the network is changed by it."""
    package = import_module("torch_pruning")
    zeros = readable(net)
    stream = [module for name, module in net.named_modules() if name == "conv1" or name.endswith(".conv2")]
    pruner = package.pruner.GroupNormPruner(
        net,
        torch.randn(1, *SHAPE),
        importance=package.importance.GroupMagnitudeImportance(p=2),
        global_pruning=way.startswith("global"),
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=[net.get_submodule("fc"), *(stream if way.endswith("inner") else [])],
        unwrapped_parameters=[(parameter, 1) for parameter in zeros],
    )
    for _ in range(STEPS):
        pruner.step()
        write_onnx(padded(copy.deepcopy(net)), SHAPE, out, keep_norms=True)
        if macs(out) <= most:
            return net
    raise SystemExit(f"Torch-Pruning does not reach {most:.0f} MACs in {STEPS} steps ({way})")


def readable(net: nn.Module) -> list[nn.Parameter]:
    """Write the padded shortcuts for Torch-Pruning; returns their zeros."""
    zeros, side = list[nn.Parameter](), SHAPE[-1]
    for name, module in list(net.named_modules()):
        if isinstance(module, PadShortcut):
            side //= 2
            shortcut = CatShortcut(module, side)
            zeros += [shortcut.before, shortcut.after]
            net.set_submodule(name, shortcut)
    return zeros


def padded(net: nn.Module) -> nn.Module:
    """Put the padded shortcuts back, as wide as the zeros are now."""
    for name, module in list(net.named_modules()):
        if isinstance(module, CatShortcut):
            module.pad.before, module.pad.after = module.before.shape[1], module.after.shape[1]
            net.set_submodule(name, module.pad)
    return net


def estimate_norms(net: nn.Module, arguments: argparse.Namespace, file: Path) -> None:
    """Take the statistics of BatchNorm anew, from the images that onnxprune repairs with."""
    data = read_data(arguments.data, model.load(file, runtime.evaluate), read_preprocess(arguments.preprocess))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    net.train()
    with torch.no_grad():
        for feeds, _ in split(data, seed=arguments.seed).calibration.batches(128):
            net(torch.from_numpy(feeds["image"]))
    net.eval()


if __name__ == "__main__":
    main()
