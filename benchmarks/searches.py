"""Which search finds the best plan with the same budget: scores on search samples, and top-1 on test images at last.

    python benchmarks/searches.py MODEL [MODEL ...] --flops 0.5,0.3 --data train.npz --test test.npz --run FOLDER

Each line: model, target, search, seed; the least error of a candidate (KL divergence from the original's answers,
repaired with few samples; without data the share of importance that is lost), that of the chosen plan after the full
repair, the number of plans judged on data, seconds, and top-1 of the repaired model on test data, which nothing else
sees. Then means and spreads over the seeds, and the mean difference in top-1 from the first search, seed by seed. All
of it lies in the folder, and a second start goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

import onnxprune
from onnxprune import CompressSettings

SEARCHES = "gnn_rl,evolution,greedy,amc,random,uniform,paper"


class Found(NamedTuple):
    """What one search came to."""

    error: float
    full: float
    judged: int
    seconds: float
    top1: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--flops", default="0.5,0.3")
    parser.add_argument("--searches", default=SEARCHES, help="names; paper is gnn_rl as it was published")
    parser.add_argument("--budget", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--policy", help="for gnn_rl")
    parser.add_argument("--data", help="without it plans are judged by the importance that they lose")
    parser.add_argument("--test", help="without it top-1 is not measured")
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--label-offset", type=int, default=0)
    parser.add_argument("--run", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        for target in arguments.flops.split(","):
            found: dict[str, list[Found]] = defaultdict(list)
            for seed in range(arguments.seeds):
                for search in arguments.searches.split(","):
                    found[search].append(one(arguments, model, target, search, seed))
                    shown = " | ".join(f"{name} {value:.5g}" for name, value in found[search][-1]._asdict().items())
                    print(f"{model.stem} | {target} | {search} | seed {seed} | {shown}", flush=True)
            for line in summary(found):
                print(f"{model.stem} | {target} | {line}", flush=True)


def one(arguments: argparse.Namespace, model: Path, target: str, search: str, seed: int) -> Found:
    """Run one search, or take what it came to before."""
    name = f"{model.stem}.{target}.{search}.budget{arguments.budget}.seed{seed}"
    out, told = arguments.run / f"{name}.onnx", arguments.run / f"{name}.json"
    if told.exists():
        return Found(**json.loads(told.read_text()))
    published = search == "paper"
    asked = CompressSettings(
        {"macs": target},
        search="gnn_rl" if published else search,
        policy_preset="paper" if published else "default",
        policy=arguments.policy if search == "gnn_rl" else None,
        budget=arguments.budget,
        seed=seed,
        workers=arguments.workers,
        verify="none",  # nor is anything timed, so that widths are aligned alike for all
    )
    folder = arguments.run / f"{name}.run"
    given = {"preprocess": arguments.preprocess, "label_offset": arguments.label_offset}
    with_data = {"data": arguments.data, "run": folder, **given} if arguments.data else {}
    report = onnxprune.compress(model, out, asked, force=True, **with_data)
    assert report.score is not None
    error, full, top1 = 1 - report.score, float("nan"), float("nan")
    if arguments.data:
        error = -report.score
        rows = [json.loads(line) for line in (folder / "judged.jsonl").read_text().splitlines()]
        full = min((row["error"] for row in rows if row["effort"] == "full"), default=full)
    if arguments.test:
        top1 = 100 * (onnxprune.evaluate(out, data=arguments.test, **given).top1 or 0)
    best = Found(error, full, sum(report.search["judged"].values()), report.search["seconds"], top1)
    told.write_text(json.dumps(best._asdict()))
    return best


def summary(found: dict[str, list[Found]]) -> list[str]:
    """Give mean and spread of each search, and compare it with the first, seed by seed."""
    first = next(iter(found.values()))
    lines = []
    for name, runs in found.items():
        columns = {
            "error": [run.error for run in runs],
            "full": [run.full for run in runs],
            "top1": [run.top1 for run in runs],
        }
        measured = {key: values for key, values in columns.items() if np.isfinite(values).all()}
        parts = [f"{key} {np.mean(values):.4g} +- {np.std(values):.2g}" for key, values in measured.items()]
        if "top1" in measured:
            apart = [theirs.top1 - mine.top1 for mine, theirs in zip(first, runs, strict=True)]
            parts.append(f"top1 less the first's {np.mean(apart):+.2f}")
        lines.append(" | ".join([name, *parts]))
    return lines


if __name__ == "__main__":
    main()
