"""How fast a training step is: an exported network run by the executor, beside the same network written in PyTorch.

    python benchmarks/training_step.py [NAME ...] [--batch 128] [--compile]

Each line: network of the zoo, milliseconds of a step (forward, backward; channels_last, bf16 where the CPU has it) in
PyTorch and in the executor, medians of both taken in turns, and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onnxprune import models as zoo
from onnxprune.training.executor import Executor
from onnxprune.training.trainer import uses_bf16

NAMES = ("cifar_resnet56", "mobilenet_v2_cifar", "shufflenet_v2_x1_0_cifar", "vgg16_bn_cifar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.onnx"
            zoo.export(name, path, to_train=True)
            executor = Executor(onnx.load(path), Path(folder), compiled=arguments.compile)
        network: nn.Module = zoo.build(name)
        plain = torch.compile(network) if arguments.compile else network
        for module in (executor, network):
            for parameter in module.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            module.train()
        x = torch.randn(arguments.batch, *zoo.describe(name).input_shape).to(memory_format=torch.channels_last)
        y = torch.arange(arguments.batch) % zoo.describe(name).classes
        ways: dict[str, Callable[[Tensor], Tensor]] = {"torch": plain, "executor": lambda x, e=executor: e(x)[0]}  # type: ignore[misc]
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.steps + 2):
            for way, run in ways.items():
                start = time.perf_counter()
                step(run, x, y)
                times[way].append(1e3 * (time.perf_counter() - start))
        ours, theirs = (float(np.median(times[way][2:])) for way in ("executor", "torch"))
        print(f"{name} | torch {theirs:.0f} ms | executor {ours:.0f} ms | {ours / theirs:.2f}", flush=True)


def step(run: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=uses_bf16("auto", torch.device("cpu"))):
        scores = run(x)
    torch.autograd.backward(F.cross_entropy(scores.float(), y))


if __name__ == "__main__":
    main()
