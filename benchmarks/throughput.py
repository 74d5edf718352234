"""Candidates per second: how fast plans are judged, against two other ways, all in one run.

    python benchmarks/throughput.py MODEL --data train.npz [--images 1000] [--flops 0.5] [--plans 5]

`cut, repaired` is what a search does here. `masked in torch` is the way of the GNN-RL authors: channels set to zero in
the eager PyTorch network, which is then evaluated whole. `zeroed` runs the uncut graph in onnxruntime with zeros in its
weights. Times are medians over random plans.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from prepared import ready
from threadpoolctl import threadpool_limits

from onnxprune import runtime
from onnxprune.judging import repaired
from onnxprune.numbers import Numbers
from onnxprune.plan import Plan, kept_atoms
from onnxprune.readers import find_readers
from onnxprune.repair import stand_in
from onnxprune.runtime import BLAS_THREADS
from onnxprune.surgery import cut
from onnxprune.training.executor import Executor
from onnxprune.workers import Workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--plans", type=int, default=5)
    parser.add_argument("--workers", action="store_true", help="also judge with one process a core")
    parser.add_argument("--align", type=int, help="multiple of all widths; as compress chooses them by default")
    arguments = parser.parse_args()
    prepared, statistics, problem = ready(arguments)
    assert prepared.parts is not None
    channels = prepared.lossless.channels
    candidates = prepared.candidates(statistics)
    readers = find_readers(channels)
    images = len(prepared.parts.search)
    feeds = [torch.from_numpy(next(iter(f.values()))) for f, _ in prepared.parts.search.batches(100)]

    def zeroed(plan: Plan) -> Numbers:
        keep, numbers = kept_atoms(channels, plan), Numbers(channels.model.proto, channels.model.folder)
        for reader in readers:
            layer = reader.layer
            weight = numbers.get((layer.index, 1))
            if weight is not None and len(layer.x) == 1:
                kept = layer.weight * keep[layer.x][:, None, :, None] * keep[layer.y][:, :, None, None]
                numbers.set((layer.index, 1), layer.layout(kept, weight.shape).astype(weight.dtype))
        return numbers

    def masked(plan: Plan) -> None:
        network = Executor(zeroed(plan).proto, channels.model.folder).eval()
        with torch.no_grad():
            for feed in feeds:
                network(feed)

    ways: dict[str, Callable[[Plan], object]] = {
        "masked in torch": masked,
        "zeroed": lambda plan: candidates.judge.judge(zeroed(plan).proto),
        "cut, not repaired": lambda plan: candidates.judge.judge(cut(channels, plan, runtime.evaluate)),
        "cut, repaired from statistics": lambda plan: candidates.judge.judge(
            stand_in(statistics, plan, cut(channels, plan, runtime.evaluate))
        ),
        "cut, repaired (sequential)": lambda plan: candidates.judge.judge(
            repaired(candidates.original, plan, cut(channels, plan, runtime.evaluate), candidates.repair)
        ),
    }
    rng = np.random.default_rng(0)
    plans = [problem.plan(problem.fit(rng.uniform(0.3, 1, len(problem.widths)))) for _ in range(arguments.plans + 1)]
    times: dict[str, list[float]] = {name: [] for name in ways}
    for plan in plans:
        for name, way in ways.items():
            start = time.perf_counter()
            way(plan)
            times[name].append(time.perf_counter() - start)
    workers = (os.cpu_count() or 1) if arguments.workers else 0
    if workers:
        with Workers(prepared.source, workers) as judging:
            judging.errors(plans[:workers])  # each process loads the model
            start = time.perf_counter()
            judging.errors(plans[workers:])
            each = (time.perf_counter() - start) / (len(plans) - workers)
        times[f"the same, {workers} workers"] = [each, each]
    base = float(np.median(times["masked in torch"][1:]))  # the first plan warms up
    for name, found in times.items():
        middle = float(np.median(found[1:]))
        print(f"{name} | {1 / middle:.2f} candidates/s on {images} images | {base / middle:.2f}x masked in torch")


if __name__ == "__main__":
    with threadpool_limits(limits=BLAS_THREADS, user_api="blas"):
        main()
