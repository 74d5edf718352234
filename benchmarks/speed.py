"""How much faster, and how much less memory, after a cut? One row per model, target, batch and threads, as Markdown.

    python benchmarks/speed.py MODEL.onnx [MODEL.onnx ...] [--flops 0.5,0.2] [--params 0.3] [--batches 1,16]
        [--threads 1,2] [--provider cpu] [--bind] [--seconds 20]

Models are cut with equal widths (no data), then measured as `onnxprune profile` does: each in a process of its own, all
in turns, with an interval of 95 %. Memory is what a process holds between runs, above an empty one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnxprune
from onnxprune import ProfileSettings
from onnxprune.errors import OnnxPruneError
from onnxprune.profiling import machine
from onnxprune.profiling.profile import Profile, ProfileReport
from onnxprune.reporting import versions

MEGABYTE = 1e6
COLUMNS = "model | target | batch | threads | MACs kept | faster | interval | of the ideal | memory, MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--flops", default="0.5,0.2")
    parser.add_argument("--params", help="together with each of --flops")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--bind", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in {**versions(), **machine.described()}.items()) + "\n")
    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    are_measured = list[bool]()
    for path in args.models:
        for target in args.flops.split(","):
            with tempfile.TemporaryDirectory() as folder:
                are_measured.append(show(args, path, target, Path(folder) / "small.onnx"))
    if not all(are_measured):
        sys.exit(1)


def show(args: argparse.Namespace, path: Path, target: str, small: Path) -> bool:
    """Cut a model and print a row for each way to run it; returns whether all could be measured."""
    targets = {"macs": target} | ({} if args.params is None else {"params": args.params})
    words = f"{path.stem} | {target}{'' if args.params is None else f', params {args.params}'}"
    try:
        report = onnxprune.compress(path, small, onnxprune.CompressSettings(targets))
    except OnnxPruneError as error:
        print(f"| {words} | {error} |", flush=True)
        return False
    kept = report.after.macs / report.before.macs
    is_measured = True
    for threads in map(int, args.threads.split(",")):
        for batch in map(int, args.batches.split(",")):
            asked = ProfileSettings(args.provider, batch, threads, bind=args.bind, seconds=args.seconds)
            try:
                found = onnxprune.profile([path, small], asked)
            except OnnxPruneError as error:
                print(f"| {words} | {batch} | {threads} | {error} |", flush=True)
                is_measured = False
                continue
            print(f"| {words} | {batch} | {threads} | {row(found, kept)} |", flush=True)
    return is_measured


def row(found: ProfileReport, kept: float) -> str:
    (speedup,), (before, after) = found.speedups, found.profiles
    return (
        f"{kept:.1%} | {speedup.median:.2f}x | {speedup.low:.2f} to {speedup.high:.2f} | {speedup.median * kept:.0%} | "
        f"{memory(before, after)}"
    )


def memory(before: Profile, after: Profile) -> str:
    """Say what was held before and after, on the device where it has memory of its own."""
    device = "device_steady" if before.memory["device_steady"] is not None else "steady"
    old, new = before.memory[device], after.memory[device]
    return "unknown" if old is None or new is None else f"{old / MEGABYTE:.0f} to {new / MEGABYTE:.0f}"


if __name__ == "__main__":
    main()
