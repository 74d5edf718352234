"""How does onnxprune compare with Torch-Pruning: in seconds, and in what it finds?

    PYTHONPATH=FOLDERS python benchmarks/analysis_beside_torch_pruning.py --exporter-script SCRIPT [--nets ...]
    PYTHONPATH=FOLDERS python benchmarks/analysis_beside_torch_pruning.py --exporter-script SCRIPT --groups [--nets ...]

The first prints medians of the seconds for analysis and one pruning step that keeps 70 % of every group, both sides in
turns within one run. Torch-Pruning traces the network and steps; onnxprune finds the channels of the
loaded file, counts their costs, ranks, plans and cuts. The shape inference that comes before is told apart and left
out of the ratios.

The second compares, for every convolution and linear layer, how many channels can go one by one (0: none) and which
layers change with them.

Not a dependency: `pip install --no-deps --target FOLDER 'torch-pruning==1.6.*'`. SCRIPT is Python; imported, it has
`build(name)`, `export(net, path, exporter, size, static)` and `SIZES`, image sizes other than 224.
"""

from __future__ import annotations

import argparse
import copy
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import torch
from coverage import import_script, limit_memory
from onnx import ModelProto
from torch import nn

from onnxprune import model, runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.criteria import Evidence, importance
from onnxprune.metrics import Costs
from onnxprune.problem import Align, Problem
from onnxprune.surgery import cut

RATIO = 0.3  # of every group goes
REPEATS = 3
LIMIT = 600  # seconds for one side of one net
SHOWN = 8  # layers per net whose differences are printed
TIMED = "resnet50,densenet121,mobilenet_v2,vit_b_16,shufflenet_v2_x1_0,swin_t"
COMPARED = (
    "resnet18,resnet50,wide_resnet50_2,resnext50_32x4d,vgg16_bn,vgg16,alexnet,mobilenet_v2,mobilenet_v3_small,"
    "mobilenet_v3_large,densenet121,squeezenet1_1,googlenet,inception_v3,efficientnet_b0,efficientnet_v2_s,"
    "regnet_y_400mf,regnet_x_400mf,mnasnet1_0,shufflenet_v2_x1_0,convnext_tiny,vit_b_16,swin_t,"
    "deeplabv3_mobilenet_v3_large,lraspp_mobilenet_v3_large"
)
COLUMNS = (
    "network",
    "Torch-Pruning: graph + step",
    "whole",
    "onnxprune: shapes + analysis + ranking + plan and cut",
    "whole, shapes aside",
    "graph / analysis",
    "whole / whole",
)
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.MultiheadAttention)
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass
class Layer:
    """What one side says of a layer.

    Attributes:
        width: output channels that can go one by one; 0 where none can.
        coupled: layers that change when they do, the layer itself included.
    """

    width: int
    coupled: set[str] = field(default_factory=set)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exporter-script", type=Path, required=True)
    parser.add_argument("--nets", help="names, separated by commas")
    parser.add_argument("--groups", action="store_true", help="compare what is found, not how long it takes")
    parser.add_argument("--threads", type=int, help="of PyTorch; its own choice by default, which is slow where busy")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--memory", type=float, default=12, help="GB; what needs more fails")
    args = parser.parse_args()
    limit_memory(args.memory)
    if args.threads:
        torch.set_num_threads(args.threads)
    exporting = import_script(args.exporter_script)  # before Torch-Pruning: it may have to prepare for torchvision
    warnings.filterwarnings("ignore")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "torch-pruning", "onnx", "torchvision")) + "\n")
    names = (args.nets or (COMPARED if args.groups else TIMED)).split(",")
    if not args.groups:
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for name in names:
        net, image = build(exporting, name)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "net.onnx"
            exporting.export(net, file, "torchscript", image.shape[-1], False)
            lines = compared(name, net, image, file) if args.groups else timed(name, net, image, file, args.repeats)
            print(lines, flush=True)


def build(exporting: ModuleType, name: str) -> tuple[nn.Module, torch.Tensor]:
    """Build a network and an image for it."""
    net: nn.Module = exporting.build(name)
    size = exporting.SIZES.get(name, 224)
    return net, torch.randn(1, 3, size, size)


@contextmanager
def limited() -> Iterator[None]:
    """Give up after a while."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end after {LIMIT} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)


def first_line(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "needs more memory than --memory allows"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}".replace("|", "\\|")


# ------------------------------------------------------------------------------------------------------- seconds


def timed(name: str, net: nn.Module, image: torch.Tensor, file: Path, repeats: int) -> str:
    """Time both sides in turns; returns a row of the table."""
    proto = model.read_file(file)
    jobs: dict[str, Callable[[], list[float]]] = {
        "theirs": lambda: their_seconds(copy.deepcopy(net), image),
        "ours": lambda: our_seconds(proto, file.parent),
    }
    runs: dict[str, list[list[float]]] = {side: [] for side in jobs}
    failed: dict[str, str] = {}
    for _ in range(repeats):
        for side, job in jobs.items():
            if side not in failed:
                try:
                    with limited():
                        runs[side].append(job())
                except Exception as error:  # whatever Torch-Pruning raises is a result
                    failed[side] = f"fails: {first_line(error)}"
    return f"| {name} | {' | '.join(cells(runs, failed))} |"


def cells(runs: Mapping[str, list[list[float]]], failed: Mapping[str, str]) -> list[str]:
    """Sum up all runs: medians of each part, of both sides' whole, and how many times longer Torch-Pruning takes."""
    part = {side: np.median(found, axis=0) for side, found in runs.items() if side not in failed}
    whole = {side: statistics.median(map(sum, runs[side])) for side in part}
    texts = {side: " + ".join(f"{seconds:.3f}" for seconds in part[side]) for side in part} | dict(failed)
    if "ours" not in part:
        return [texts["theirs"], "", texts["ours"], "", "", ""]
    no_shapes = statistics.median(sum(run[1:]) for run in runs["ours"])
    ours = [texts["ours"], f"{no_shapes:.3f}"]
    if "theirs" not in part:
        return [texts["theirs"], "", *ours, "", ""]
    graphs = part["theirs"][0] / part["ours"][1]
    return [texts["theirs"], f"{whole['theirs']:.3f}", *ours, f"{graphs:.1f}", f"{whole['theirs'] / no_shapes:.1f}"]


def their_seconds(net: nn.Module, image: torch.Tensor) -> list[float]:
    """Time the dependency graph and one step of Torch-Pruning; the network is changed by it."""
    ignored = heads(net, image)
    times = [time.perf_counter()]
    pruner = their_pruner(net, image, ignored)
    times.append(time.perf_counter())
    pruner.step()
    times.append(time.perf_counter())
    return np.diff(times).tolist()


def our_seconds(proto: ModelProto, folder: Path) -> list[float]:
    """Time shape inference, analysis with costs, ranking, and the plan with its cut."""
    times = [time.perf_counter()]
    loaded = model.analyse(proto, folder, runtime.evaluate, {})
    times.append(time.perf_counter())
    channels = find_channels(loaded)
    costs = Costs(channels)
    times.append(time.perf_counter())
    worth = importance(Evidence(channels), "l2")
    times.append(time.perf_counter())
    problem = Problem(channels, costs, [], worth, Align(1))
    counts = np.maximum(1, np.floor((1 - RATIO) * problem.widths)).astype(np.int64)
    cut(channels, problem.plan(counts), runtime.evaluate)
    times.append(time.perf_counter())
    return np.diff(times).tolist()


def their_pruner(net: nn.Module, image: torch.Tensor, ignored: list[nn.Module]) -> Any:
    """Let Torch-Pruning find what depends on what."""
    torch_pruning = import_module("torch_pruning")
    return torch_pruning.pruner.MetaPruner(
        net,
        image,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        in_channel_groups={},  # the defaults are shared between all pruners
        out_channel_groups={},
        num_heads={m: m.num_heads for m in net.modules() if isinstance(m, nn.MultiheadAttention)},
    )


def heads(net: nn.Module, image: torch.Tensor) -> list[nn.Module]:
    """Find the layers that make the outputs; Torch-Pruning must be told to leave them alone."""
    with torch.no_grad():
        classes = net(image).shape[1]
    return [
        module
        for module in net.modules()
        if classes == getattr(module, "out_features", getattr(module, "out_channels", None))
    ]


# -------------------------------------------------------------------------------------------------------- groups


def compared(name: str, net: nn.Module, image: torch.Tensor, file: Path) -> str:
    """Compare what both sides find; returns a paragraph."""
    ours, unknown = our_layers(net, find_channels(model.load(file, runtime.evaluate)))
    lost = f"; {unknown} nodes with weights belong to no layer of the network" if unknown else ""
    try:
        with limited():
            pruner = their_pruner(net, image, heads(net, image))
            theirs = their_layers(net, pruner)
    except Exception as error:  # whatever Torch-Pruning raises is a result
        free = sum(layer.width > 0 for layer in ours.values())
        return f"{name}: Torch-Pruning fails: {first_line(error)}; onnxprune frees {free} of {len(ours)} layers{lost}"
    both = [layer for layer in ours if layer in theirs]
    differing = [layer for layer in both if ours[layer] != theirs[layer]]
    only = sorted(ours.keys() ^ theirs.keys())
    lines = [f"{name}: {len(both) - len(differing)} of {len(both)} layers alike{lost}"]
    lines += [f"    {layer}: {difference(ours[layer], theirs[layer])}" for layer in differing[:SHOWN]]
    lines += [f"    ... and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    lines += [f"    seen by one side only: {shortened(only)}"] if only else []
    return "\n".join([*lines, *step_result(pruner, net, image)])


def step_result(pruner: Any, net: nn.Module, image: torch.Tensor) -> list[str]:
    """Say whether the network still runs after a step of Torch-Pruning."""
    try:
        with limited():
            pruner.step()
            with torch.no_grad():
                net(image)
    except Exception as error:  # whatever Torch-Pruning raises is a result
        return [f"    Torch-Pruning's step fails: {first_line(error)}"]
    return []


def difference(ours: Layer, theirs: Layer) -> str:
    """Put the difference of two findings into words."""
    parts = []
    if ours.width != theirs.width:
        parts.append(f"width {theirs.width} in Torch-Pruning, {ours.width} in onnxprune")
    for side, more, less in (("Torch-Pruning", theirs, ours), ("onnxprune", ours, theirs)):
        only = sorted(more.coupled - less.coupled)
        if only and ours.width and theirs.width:
            parts.append(f"{len(only)} layers coupled in {side} only: {shortened(only)}")
    return "; ".join(parts)


def shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """Name the layers with weights; those inside an attention module count as one with it."""
    found = {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}
    whole = [f"{name}." for name, module in found.items() if isinstance(module, nn.MultiheadAttention)]
    return {name: module for name, module in found.items() if not name.startswith(tuple(whole))}


def their_layers(net: nn.Module, pruner: Any) -> dict[str, Layer]:
    """Ask Torch-Pruning what changes with the output channels of each layer."""
    names = {module: name for name, module in layers_of(net).items()}
    graph = pruner.DG
    found = {}
    for module, name in names.items():
        if module not in graph.module2node:
            continue
        functions = graph.get_pruner_of_module(module)
        width = functions.get_out_channels(module)
        group = graph.get_pruning_group(module, functions.prune_out_channels, list(range(width)))
        made = {dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)}
        if made & set(pruner.ignored_layers):
            found[name] = Layer(0)
            continue
        coupled = {names[dep.target.module] for dep, _ in group if dep.target.module in names}
        found[name] = Layer(width // pruner._get_channel_groups(group), coupled)
    return found


def our_layers(net: nn.Module, channels: Channels) -> tuple[dict[str, Layer], int]:
    """Ask onnxprune the same; returns the layers and the number of nodes that belong to none."""
    layers = layers_of(net)
    outputs: dict[str, list[np.ndarray]] = {}
    touched: dict[str, list[np.ndarray]] = {}
    unknown = 0
    for index, node in enumerate(channels.model.graph.nodes):
        axes = channels.view(index).inputs[1] if node.op in OPERATORS and len(node.inputs) > 1 else None
        if axes is None or not is_weight(channels, node):
            continue
        out = out_axis(node, len(axes))
        name = layer_name(node, axes.shape, out, layers, outputs)
        if name is None:
            unknown += 1
            continue
        outputs.setdefault(name, []).append(channels.channel_of[axes[out]])
        touched.setdefault(name, []).append(channels.channel_of[axes.start : axes.end])
    return coupled_layers(channels.count, outputs, touched), unknown


def coupled_layers(
    count: int, outputs: Mapping[str, list[np.ndarray]], touched: Mapping[str, list[np.ndarray]]
) -> dict[str, Layer]:
    """Find for each layer which others touch its output channels."""
    names = list(outputs)
    touches = np.zeros((len(names), count + 1), bool)
    for row, name in enumerate(names):
        touches[row, np.concatenate(touched[name])] = True
    touches[:, -1] = False  # channels that stay have the number -1
    found = {}
    for name in names:
        made = np.unique(np.concatenate(outputs[name]))
        made = made[made >= 0]
        together = np.flatnonzero(touches[:, made].any(axis=1))
        found[name] = Layer(len(made), {names[row] for row in together})
    return found


def is_weight(channels: Channels, node: gs.Node) -> bool:
    """Tell whether a node multiplies with numbers that the file holds."""
    name = node.inputs[1].name
    return channels.aliases.root.get(name, name) in channels.model.stored


def out_axis(node: gs.Node, rank: int) -> int:
    """Name the axis of a node's weight that makes its output channels."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1
    return 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else rank - 1


def layer_name(
    node: gs.Node,
    shape: tuple[int, ...],
    out: int,
    layers: Mapping[str, nn.Module],
    taken: Mapping[str, Any],
) -> str | None:
    """Find the layer that a node was exported from: its name tells the module, the shape tells which of its layers."""
    scope = module_path(node.name)
    if scope in layers:
        return scope
    for name, module in layers.items():
        inside = not scope or name.startswith(f"{scope}.")
        weight = getattr(module, "weight", None)
        if inside and name not in taken and weight is not None:
            sizes = (shape[out], *(size for axis, size in enumerate(shape) if axis != out))
            if tuple(weight.shape) == sizes:
                return name
    return None


def module_path(node_name: str) -> str:
    """Turn ``/layer1/layer1.0/conv1/Conv`` into ``layer1.0.conv1``."""
    path: list[str] = []
    for part in node_name.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)


if __name__ == "__main__":
    main()
