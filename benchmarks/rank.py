"""Which score tells, before any training, which plan will be better after it?

    python benchmarks/rank.py MODEL --data train.npz [--plans 20] [--flops 0.5] [--epochs 1] [--images 20000]

Draws random plans, scores each in the ways a search could (after the cut as it is, after BatchNormalization or moment
matching, after least squares from statistics, after sequential least squares with few samples and with all), trains
each unrepaired cut model shortly with labels, and prints Kendall's tau of each score with the accuracy after training.
Training images only: some to train with, others to judge by. For networks of Conv, Relu, Add, Slice, Pad, pooling and
Gemm, such as the ResNets of the zoo.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto, numpy_helper
from scipy.stats import kendalltau
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from onnxprune import runtime
from onnxprune.criteria import Evidence, importance
from onnxprune.data import Data, read_data, read_preprocess
from onnxprune.judging import Candidates, repaired
from onnxprune.prepare import Prepared, Source, prepare
from onnxprune.problem import FINE, Align, Problem
from onnxprune.repair import stand_in
from onnxprune.runtime import BLAS_THREADS
from onnxprune.settings import CompressSettings, resolve
from onnxprune.statistics import Statistics
from onnxprune.surgery import cut
from onnxprune.targets import parse_target

RATE = 0.005  # folded networks have no BatchNormalization to keep larger steps from diverging


class Network(nn.Module):
    """An ONNX graph of few operators, its initializers as parameters."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        model = folded(model)
        self.nodes = list(model.graph.node)
        self.fixed: dict[str, np.ndarray[Any, Any]] = {}
        self.trained = nn.ParameterDict()
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim:
                self.trained[tensor.name.replace(".", "/")] = nn.Parameter(torch.from_numpy(values.copy()))
            else:
                self.fixed[tensor.name] = values
        for node in self.nodes:
            if node.op_type == "Constant":
                self.fixed[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.input, self.output = model.graph.input[0].name, model.graph.output[0].name

    def forward(self, x: Tensor) -> Tensor:
        """Run the graph."""
        found: dict[str, Any] = {self.input: x}
        for node in self.nodes:
            if node.op_type != "Constant":
                operands = [self._operand(name, found) for name in node.input]
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                found[node.output[0]] = run(node.op_type, operands, attributes)
        result: Tensor = found[self.output]
        return result

    def _operand(self, name: str, found: dict[str, Any]) -> Any:
        if name in found:
            return found[name]
        key = name.replace(".", "/")
        return self.trained[key] if key in self.trained else self.fixed.get(name)


def folded(model: ModelProto) -> ModelProto:
    """Compute what does not depend on the input, such as the widths of pads."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def run(op: str, x: list[Any], given: dict[str, Any]) -> Tensor:
    """Compute one operator."""
    if op == "Conv":
        return F.conv2d(x[0], x[1], x[2], given.get("strides", 1), given.get("pads", [0, 0])[:2])
    if op == "Relu":
        return F.relu(x[0])
    if op == "Add":
        return x[0] + x[1]
    if op == "Slice":
        index = [slice(None)] * x[0].ndim
        for start, end, axis, step in zip(*(np.asarray(v).tolist() for v in x[1:5]), strict=True):
            index[axis] = slice(start, min(end, 2**31), step)
        return x[0][tuple(index)]
    if op == "Pad":
        pads = np.asarray(x[1]).reshape(2, -1).T[::-1].reshape(-1).tolist()
        return F.pad(x[0], pads)
    if op == "ReduceMean":
        axes = given.get("axes") or np.asarray(x[1]).tolist()
        return x[0].mean(dim=list(axes), keepdim=bool(given.get("keepdims", 1)))
    if op in ("Flatten", "Reshape"):
        return x[0].flatten(1)
    if op == "Gemm":
        return F.linear(x[0], x[1] if given.get("transB") else x[1].T, x[2])
    raise NotImplementedError(op)


def trained_accuracy(model: ModelProto, data: Data, unseen: Data, epochs: int, seed: int) -> float:
    """Train with labels (SGD, one cycle, crops and flips) and give top-1 on other samples."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Network(model)
    batch = 128
    steps = epochs * (len(data) // batch)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for _ in range(epochs):
        order = data.take(rng.permutation(len(data))[: len(data) // batch * batch])
        for feed, labels in order.batches(batch):
            x = augmented(next(iter(feed.values())), rng)
            with torch.autocast("cpu", torch.bfloat16):
                scores = network(torch.from_numpy(x).to(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), torch.from_numpy(labels))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        hits = [
            (network(torch.from_numpy(next(iter(feed.values())))).argmax(1).numpy() == labels).sum()
            for feed, labels in unseen.batches(500)
        ]
    return float(sum(hits)) / len(unseen)


def augmented(x: np.ndarray[Any, Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Shift images by up to four pixels and turn half of them round."""
    padded = np.pad(x, ((0, 0), (0, 0), (4, 4), (4, 4)))
    rows, columns = rng.integers(0, 9, (2, len(x)))
    size = x.shape[2]
    made = np.stack([p[:, r : r + size, c : c + size] for p, r, c in zip(padded, rows, columns, strict=True)])
    flipped = rng.random(len(x)) < 0.5
    made[flipped] = made[flipped][..., ::-1]
    return made


def ready(arguments: argparse.Namespace, seed: int = 0) -> tuple[Prepared, Statistics, Problem]:
    """Load a model and its data, and rank its channels for one target."""
    settings = resolve(CompressSettings({"macs": arguments.flops}, seed=seed), True)
    prepared = prepare(Source(arguments.model, settings, arguments.data, arguments.preprocess))
    statistics, channels = prepared.statistics(), prepared.lossless.channels
    target = parse_target("macs", arguments.flops, prepared.original_costs["macs"])
    worth = importance(Evidence(channels, seed, statistics), "obs")
    asked = getattr(arguments, "align", None)
    align = FINE if asked is None else Align(asked)
    return prepared, statistics, Problem(channels, prepared.costs, [target], worth, align, lossless=prepared.lossless)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--start", choices=["cut", "repaired"], default="cut")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    prepared, statistics, problem = ready(arguments, arguments.seed)
    assert prepared.parts is not None
    channels = prepared.lossless.channels
    candidates = prepared.candidates(statistics)
    data = read_data(arguments.data, prepared.original.model, read_preprocess(arguments.preprocess))
    used = {index for indices in prepared.parts.indices.values() for index in indices}
    others = np.asarray([index for index in range(len(data)) if index not in used])
    to_train, unseen = data.take(others[: arguments.images]), data.take(others[arguments.images :][:5000])
    rng = np.random.default_rng(arguments.seed)
    rows: list[dict[str, float]] = []
    for number in range(arguments.plans):
        plan = problem.plan(problem.fit(rng.uniform(0.2, 1, len(problem.widths))))
        smaller = cut(channels, plan, runtime.evaluate)
        row = scores(candidates, plan, smaller, statistics)
        start = smaller if arguments.start == "cut" else repaired(candidates.original, plan, smaller, "least_squares")
        row["trained"] = trained_accuracy(start, to_train, unseen, arguments.epochs, arguments.seed)
        rows.append(row)
        print(number, {name: round(value, 4) for name, value in row.items()}, flush=True)
    trained = [row["trained"] for row in rows]
    for name in rows[0]:
        if name != "trained":
            tau = kendalltau([row[name] for row in rows], trained)
            print(f"{name} | tau {tau.statistic:+.2f} | p {tau.pvalue:.3f}")


def scores(candidates: Candidates, plan: Any, smaller: ModelProto, statistics: Any) -> dict[str, float]:
    """Score a cut model in every way; larger is better."""
    ways = {
        "raw": smaller,
        "bn": repaired(candidates.original, plan, smaller, "bn"),
        "least squares, one-shot": stand_in(statistics, plan, smaller),
        "least squares, sequential": repaired(candidates.original, plan, smaller, "least_squares"),
    }
    found: dict[str, float] = {}
    for name, model in ways.items():
        judged = candidates.judge.judge(model)
        found[f"{name}: -KL"] = -judged.error
        found[f"{name}: agreement"] = float(judged.agreement or 0)
    return found


if __name__ == "__main__":
    with threadpool_limits(limits=BLAS_THREADS, user_api="blas"):
        main()
