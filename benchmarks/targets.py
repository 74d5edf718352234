"""Are targets met, and does the result run faster? One row per model and target, as a Markdown table.

    python benchmarks/targets.py MODEL.onnx [MODEL.onnx ...] [--targets 0.7,0.5,0.3] [--align N]

Both sides are timed in one run, in turns, on one thread; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import onnxprune
from onnxprune.errors import OnnxPruneError
from onnxprune.reporting import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--targets", default="0.7,0.5,0.3")
    parser.add_argument("--align", type=int)
    parser.add_argument("--shape", action="append", default=[], metavar="NAME=SIZES")
    args = parser.parse_args()
    shapes = {name: tuple(map(int, sizes.split(","))) for name, _, sizes in (s.partition("=") for s in args.shape)}
    print(", ".join(f"{name} {number}" for name, number in versions().items()) + "\n")
    columns = "model | target | MACs kept | below target by | faster | widths | outputs against the zeroed original | s"
    print(f"| {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    for path in args.models:
        for target in args.targets.split(","):
            print(row(path, target, args.align, shapes), flush=True)


def row(path: Path, target: str, align: int | None, shapes: dict[str, tuple[int, ...]]) -> str:
    """Compress one model and describe the result."""
    settings = onnxprune.CompressSettings(targets={"macs": target}, align=align, shapes=shapes)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = onnxprune.compress(path, Path(folder) / "small.onnx", settings)
        except OnnxPruneError as error:
            return f"| {path.name} | {target} | {error} | | | | | |"
    kept = report.after.macs / report.before.macs
    below = (report.target["macs"]["limit"] - report.after.macs) / report.before.macs
    before, after = report.before.latency_ms, report.after.latency_ms
    faster = f"{before['median'] / after['median']:.2f}x" if before and after else ""
    align_used = report.settings["align"]
    return (
        f"| {path.name} | {target} | {kept:.1%} | {below:.2%} | {faster} | {align_used['multiple']} | "
        f"{report.checks['outputs']} | {time.perf_counter() - start:.1f} |"
    )


if __name__ == "__main__":
    main()
