"""Are latency targets met, are times predicted well, and are plans for a time better than plans for FLOPs?

    python benchmarks/latency.py MODEL.onnx [MODEL.onnx ...] [--latency 0.5,0.3] [--data FILE --preprocess NAME]

One row per model and target: the mean error of predicted times, on cuts that were not fitted; the share of the
original's time that the result took as `onnxprune profile` measures it, each model in a process of its own; and the
score of the plan beside that of a plan for FLOPs of the same predicted time, with the share that this one took. Both
plans come from `greedy`. With data the score is the error of the repaired candidate (KL divergence on images to search
with, less is better); without, it is the share of importance that is kept (more is better).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

import onnxprune
from onnxprune import CompressSettings, ProfileSettings, model, runtime
from onnxprune.attempt import Attempt
from onnxprune.attempts import Attempts
from onnxprune.criteria import Evidence, importance
from onnxprune.errors import OnnxPruneError
from onnxprune.journal import Journal
from onnxprune.metrics import LATENCY
from onnxprune.prepare import Prepared, Source, predict, prepare
from onnxprune.problem import Problem
from onnxprune.progress import Quiet
from onnxprune.runtime import BLAS_THREADS
from onnxprune.search.greedy import descend
from onnxprune.settings import resolve
from onnxprune.surgery import cut
from onnxprune.targets import parse_target

COLUMNS = "model | asked | error of predictions | measured | score | FLOPs plan: measured | score"
HALVINGS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--latency", default="0.5,0.3")
    parser.add_argument("--data")
    parser.add_argument("--preprocess", default="none")
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    for path in args.models:
        for share in args.latency.split(","):
            try:
                print(f"| {path.stem} | {share} | {row(args, path, share)} |", flush=True)
            except OnnxPruneError as error:
                print(f"| {path.stem} | {share} | {error} |", flush=True)


def row(args: argparse.Namespace, path: Path, share: str) -> str:
    asked = resolve(CompressSettings({LATENCY: share}, search="greedy"), args.data is not None)
    prepared, errors = predict(prepare(Source(path, asked, args.data, args.preprocess)), Quiet())
    statistics = None if prepared.parts is None else prepared.statistics()
    samples = None if prepared.parts is None else prepared.parts.calibration
    worth = importance(Evidence(prepared.lossless.channels, 0, statistics, samples), asked.criterion or "")
    journal = None if statistics is None else Journal(prepared.candidates(statistics))
    attempts = Attempts(prepared, worth, journal, Quiet())
    attempts.cut_and_measure()
    best = attempts.best
    other = as_fast(prepared, worth, journal, best)
    times = measured(args, path, [best, other])
    scores = [abs(one.problem.score(one.plan)) for one in (best, other)]
    return f"{errors[LATENCY]:.1%} | {times[0]:.3f} | {scores[0]:.4f} | {times[1]:.3f} | {scores[1]:.4f}"


def as_fast(prepared: Prepared, worth: Any, journal: Journal | None, best: Attempt) -> Attempt:
    """Find a plan for FLOPs that is predicted to take as long: the share by halving, with plans that nobody judges."""
    whole, costs = prepared.original_costs["macs"], prepared.costs
    wanted = float(costs.of(best.plan.counts)[LATENCY][0])
    low, high = 0.02, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        targets = [parse_target("macs", f"{middle:.4f}", whole)]
        plan = descend(Problem(prepared.lossless.channels, costs, targets, worth, best.align))
        low, high = (middle, high) if float(costs.of(plan)[LATENCY][0]) < wanted else (low, middle)
    found = Attempts(prepared, worth, journal, Quiet(), {"macs": f"{low:.4f}"}).best
    found.cut = cut(found.channels, found.plan, runtime.evaluate)
    return found


def measured(args: argparse.Namespace, path: Path, attempts: list[Attempt]) -> list[float]:
    """Give the shares of the original's time."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.onnx" for number in range(len(attempts))]
        for file, one in zip(files, attempts, strict=True):
            model.save(one.result, file, path.parent)
        found = onnxprune.profile([path, *files], ProfileSettings(seconds=args.seconds))
    return [1 / speedup.median for speedup in found.speedups]


if __name__ == "__main__":
    with threadpool_limits(limits=BLAS_THREADS, user_api="blas"):
        main()
