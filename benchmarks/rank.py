"""Which score tells, before any training, which plan will be better after it?

    python benchmarks/rank.py MODEL --data train.npz [--plans 20] [--flops 0.5] [--epochs 2] [--photographs]

Draws random plans, scores each in the ways a search could (after the cut as it is, after BatchNormalization or moment
matching, after least squares from statistics, after sequential least squares, and by the parameters that it keeps),
trains each as `onnxprune finetune` does, and prints Kendall's tau of each score with the accuracy after training.
Training images only: some to train with, others to judge by. A network that knows those by heart answers them too well;
`--photographs` takes the images that onnxprune.models.small trains its networks on, and judges by others.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from prepared import ready
from scipy.stats import kendalltau
from threadpoolctl import threadpool_limits

from onnxprune import FinetuneSettings, runtime
from onnxprune import model as models
from onnxprune.data import Data, read_data, read_preprocess
from onnxprune.judging import Candidates, repaired
from onnxprune.models import small
from onnxprune.plan import Plan
from onnxprune.progress import Quiet
from onnxprune.repair import stand_in
from onnxprune.runtime import BLAS_THREADS
from onnxprune.statistics import Statistics
from onnxprune.surgery import cut
from onnxprune.training.lesson import Lesson, train
from onnxprune.training.processes import alone

UNSEEN, OTHERS = 5000, 8000  # images to judge by; some of the others go to calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--start", choices=["cut", "repaired"], default="repaired")
    parser.add_argument("--align", type=int, help="multiple of all widths; as compress chooses them by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photographs", action="store_true", help="make DATA small, for a network trained on such")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.photographs:
            arguments.data, arguments.preprocess = made_small(Path(arguments.data), Path(folder)), "none"
        compare(arguments)


def made_small(data: Path, folder: Path) -> str:
    """Write the images that small networks were trained on, and behind them others."""
    train, others = small.photographs(data, OTHERS)
    file = folder / "small.npz"
    np.savez(file, x=torch.cat([train.x, others.x]).numpy(), y=torch.cat([train.y, others.y]).numpy())
    return str(file)


def compare(arguments: argparse.Namespace) -> None:
    """Score plans, train what they leave, and tell how scores and accuracy agree."""
    prepared, statistics, problem = ready(arguments, arguments.seed)
    assert prepared.parts is not None
    candidates = prepared.candidates(statistics)
    data = read_data(arguments.data, prepared.original.model, read_preprocess(arguments.preprocess))
    used = {index for indices in prepared.parts.indices.values() for index in indices}
    others = np.asarray([index for index in range(len(data)) if index not in used])
    to_train, unseen = data.take(others[: arguments.images]), data.take(others[arguments.images :][:UNSEEN])
    rng = np.random.default_rng(arguments.seed)
    settings = FinetuneSettings(arguments.epochs, choose="last", seed=arguments.seed)
    rows: list[dict[str, float]] = []
    for number in range(arguments.plans):
        counts = problem.fit(rng.uniform(0.2, 1, len(problem.widths)))
        plan = problem.plan(counts)
        smaller = cut(prepared.lossless.channels, plan, runtime.evaluate)
        mended = repaired(candidates.original, plan, smaller, "least_squares")
        row = scores(candidates, plan, smaller, mended, statistics)
        row["parameters kept"] = float(problem.costs.of(counts)["params"][0] / prepared.original_costs["params"])
        start = smaller if arguments.start == "cut" else mended
        row["trained"] = trained_accuracy(start, to_train, unseen, settings)
        rows.append(row)
        print(number, {name: round(value, 4) for name, value in row.items()}, flush=True)
    trained = [row["trained"] for row in rows]
    for name in rows[0]:
        if name != "trained":
            tau = kendalltau([row[name] for row in rows], trained)
            print(f"{name} | tau {tau.statistic:+.2f} | p {tau.pvalue:.3f}")


def trained_accuracy(proto: ModelProto, data: Data, unseen: Data, settings: FinetuneSettings) -> float:
    """Train a model with labels and give its top-1 on other samples."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        model = models.load(path, runtime.evaluate)
        lesson = Lesson(model, None, data, unseen, 0, {})
        _, result = train(lesson, settings, Path(folder), alone(), Quiet())
    return float(result.rows[-1]["accuracy"])


def scores(
    candidates: Candidates, plan: Plan, smaller: ModelProto, mended: ModelProto, statistics: Statistics
) -> dict[str, float]:
    """Score a cut model, and the same repaired by sequential least squares, in every way; larger is better."""
    ways = {
        "raw": smaller,
        "bn": repaired(candidates.original, plan, smaller, "bn"),
        "least squares, one-shot": stand_in(statistics, plan, smaller),
        "least squares, sequential": mended,
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
