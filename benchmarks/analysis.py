"""How long do analysis and cut take? Reading the file is not counted, shape inference and probe runs are.

python benchmarks/analysis.py MODEL.onnx [MODEL.onnx ...]      seconds per model
python benchmarks/analysis.py --chain                          chains of 5,000 and 10,000 nodes, and their ratio
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune import model, runtime
from onnxprune.channels import find_channels
from onnxprune.metrics import Costs
from onnxprune.plan import Plan
from onnxprune.surgery import cut

REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--chain", action="store_true")
    args = parser.parse_args()
    for path in args.models:
        proto = model.read_file(path)
        seconds = min(analyse_and_cut(proto, path.parent) for _ in range(REPEATS))
        print(f"| {path.name} | {len(proto.graph.node)} nodes | {seconds:.2f} s |", flush=True)
    if args.chain:
        short, long = (min(analyse_and_cut(chain(n), Path()) for _ in range(REPEATS)) for n in (5_000, 10_000))
        print(f"| chain | 5,000 nodes {short:.2f} s, 10,000 nodes {long:.2f} s | ratio {long / short:.2f} |")


def analyse_and_cut(proto: ModelProto, folder: Path) -> float:
    """Give the seconds from a parsed model to a cut one."""
    start = time.perf_counter()
    channels = find_channels(model.analyse(proto, folder, runtime.evaluate, {}))
    Costs(channels).of([group.width for group in channels.groups])
    half = Plan(tuple(np.arange(max(1, group.width // 2)) for group in channels.groups))
    cut(channels, half, runtime.evaluate)
    return time.perf_counter() - start


def chain(nodes: int) -> ModelProto:
    """Build a chain of convolutions and activations."""
    rng = np.random.default_rng(0)
    graph_nodes, weights, last = [], [], "x"
    for index in range(nodes // 2):
        weights.append(numpy_helper.from_array(rng.standard_normal((8, 8, 1, 1), np.float32), f"w{index}"))
        graph_nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], name=f"conv{index}"))
        graph_nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        last = f"r{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 4, 4]) for name in ("x", last)]
    graph = helper.make_graph(graph_nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


if __name__ == "__main__":
    main()
