"""What compressed models answer without any training, for several searches at the same target.

    python benchmarks/one_shot.py MODEL [MODEL ...] --flops 0.7,0.5,0.3 --data train.npz --test test.npz

Each line: model, target, search, what was kept of the FLOPs, top-1 of the original, after the cut, and after each
repair, on the test data, which nothing else sees; then the seconds that all of it took.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from threadpoolctl import threadpool_limits

from onnxprune import runtime
from onnxprune.attempts import Attempts
from onnxprune.criteria import Evidence, importance
from onnxprune.data import read_data, read_preprocess
from onnxprune.journal import Journal
from onnxprune.judging import judge_on, repaired
from onnxprune.prepare import Source, prepare
from onnxprune.progress import Quiet
from onnxprune.runtime import BLAS_THREADS
from onnxprune.settings import CompressSettings, resolve
from onnxprune.surgery import cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--data", required=True, help="samples to calibrate and search with; labels are not used")
    parser.add_argument("--test", required=True, help="samples to report on")
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--label-offset", type=int, default=0)
    parser.add_argument("--searches", default="greedy,uniform,random")
    parser.add_argument("--budget", type=int, default=40, help="candidates that a search may judge")
    parser.add_argument("--repairs", default="least_squares", help="of the plan that was found")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for model in arguments.models:
        for target in arguments.flops.split(","):
            for search in arguments.searches.split(","):
                print(line(arguments, model, target, search), flush=True)


def line(arguments: argparse.Namespace, path: Path, target: str, search: str) -> str:
    start = time.perf_counter()
    asked = CompressSettings({"macs": target}, search=search, budget=arguments.budget, seed=arguments.seed)
    prepared = prepare(Source(path, resolve(asked, True), arguments.data, arguments.preprocess, arguments.label_offset))
    statistics = prepared.statistics()
    worth = importance(Evidence(prepared.lossless.channels, arguments.seed, statistics), "obs")
    candidates = prepared.candidates(statistics)
    attempt = Attempts(prepared, worth, Journal(candidates), Quiet()).best
    smaller = cut(attempt.channels, attempt.plan, runtime.evaluate)
    results = {"raw": smaller}
    for kind in arguments.repairs.split(","):
        results[kind] = repaired(candidates.original, attempt.plan, smaller, kind)
    seconds = time.perf_counter() - start
    test = read_data(arguments.test, prepared.original.model, read_preprocess(arguments.preprocess))
    judge = judge_on(prepared.original, test.loaded(), arguments.label_offset)
    tops = {"original": judge.original_scores.top1} | {name: judge.judge(m).top1 for name, m in results.items()}
    shown = " | ".join(f"{name} {100 * (top or 0):.2f}" for name, top in tops.items())
    return f"{path.stem} | {target} | {search} | {attempt.macs_share:.3f} | {shown} | {seconds:.0f} s"


if __name__ == "__main__":
    with threadpool_limits(limits=BLAS_THREADS, user_api="blas"):
        main()
