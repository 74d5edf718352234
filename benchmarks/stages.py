"""How long does the multi-stage graph take, to build once and to draw at some widths, and a step of the policy?

python benchmarks/stages.py [NAME ...]         networks of the zoo, milliseconds
python benchmarks/stages.py --chain            chains of 2,000 and 4,000 nodes, and their ratio
python benchmarks/stages.py MODEL.onnx         a file

A step: the network as shrunk so far is drawn and embedded, every group gets an action, and the network is shrunk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from analysis import chain
from onnx import ModelProto

from onnxprune import model, models, runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.metrics import Costs
from onnxprune.problem import Problem
from onnxprune.search.gnn_rl import LENGTH
from onnxprune.search.greedy import descend
from onnxprune.search.policy.environment import Episodes, State
from onnxprune.search.policy.learning import Learner, Learning, fresh, seeded
from onnxprune.stages import Stages
from onnxprune.targets import parse_target

NAMES = ("cifar_resnet56", "resnet50", "mobilenet_v2")
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--chain", action="store_true")
    args = parser.parse_args()
    if args.chain:
        short, long = (measure(f"chain of {nodes} nodes", analysed(chain(nodes))) for nodes in (2_000, 4_000))
        print(f"| ratio | build {long[0] / short[0]:.2f} | at {long[1] / short[1]:.2f} |")
        return
    for name in args.names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(name)
            if path.suffix != ".onnx":
                path = Path(folder) / "net.onnx"
                models.export(name, path)
            measure(name, find_channels(model.load(path, runtime.evaluate)))


def analysed(proto: ModelProto) -> Channels:
    return find_channels(model.analyse(proto, Path(), runtime.evaluate, {}))


def measure(name: str, channels: Channels) -> tuple[float, float]:
    """Print milliseconds to build and to draw, and give them."""
    costs = Costs(channels)
    widths = np.asarray([group.width for group in channels.groups])
    counts = np.random.default_rng(0).integers(1, widths + 1)
    build = best(lambda: Stages(channels, costs))
    stages = Stages(channels, costs)
    draw = best(lambda: stages.at(counts))
    act = best(stepping(channels, costs))
    motifs, cut = stages.at()[1].count, stages.at(counts)[1].count
    print(
        f"| {name} | {len(stages.blocks.operations)} operations, {stages.blocks.count} blocks, {motifs} motifs "
        f"({cut} as cut), {len(widths)} groups | build {build:.1f} ms | at {draw:.2f} ms "
        f"| step {act:.1f} ms |",
        flush=True,
    )
    return build, draw


def stepping(channels: Channels, costs: Costs) -> Callable[[], object]:
    """Give one step of the policy, from the whole network towards half of it."""
    target = parse_target("macs", "0.5", float(costs.of([group.width for group in channels.groups])["macs"][0]))
    worth = [np.geomspace(1, 0.1, group.width) for group in channels.groups]
    problem = Problem(channels, costs, [target], worth)
    episodes = Episodes(problem, descend(problem), LENGTH)
    with seeded(0) as generator:
        learner = Learner(fresh(), episodes, Learning(), generator)
    first = episodes.begin()

    def step() -> State:
        with seeded(0):
            (after,) = learner.moved([first], learner.act([first], torch.zeros(1, episodes.groups)))
        return after

    return step


def best(work: Callable[[], object]) -> float:
    """Give the milliseconds of the fastest of some runs."""
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e3)
    return min(taken)


if __name__ == "__main__":
    main()
