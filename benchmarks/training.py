"""What cut models answer after training: base, cut, repaired and trained, on test images that nothing else sees.

    python benchmarks/training.py MODEL [MODEL ...] --data train.npz --test test.npz --run FOLDER [-- FINETUNE OPTIONS]

Each line: model, target and search, then top-1 of the original, the bare cut, the repaired model and the trained one.
What follows a lone `--` goes to `onnxprune finetune`; `--teacher` learns from the original's answers as well. All of it
lies in the folder, and a second start goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxprune
from onnxprune import CompressSettings
from onnxprune.outputs import beside

PROGRAM = str(Path(sys.executable).with_name("onnxprune"))


def main() -> None:
    given, extra = given_and_extra()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--flops", default="0.5")
    parser.add_argument("--searches", default="greedy,uniform")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--preprocess", default="cifar10")
    parser.add_argument("--label-offset", type=int, default=0)
    parser.add_argument("--teacher", action="store_true")
    parser.add_argument(
        "--choose", default="last", help="best: by samples held out, which the networks may know by heart"
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(given)
    arguments.run.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        for target in arguments.flops.split(","):
            for search in arguments.searches.split(","):
                print(line(arguments, model, target, search, extra), flush=True)


def given_and_extra() -> tuple[list[str], list[str]]:
    """Part the command line at a lone `--`: what this program takes, and what it hands on to finetune."""
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def make(model: Path, small: Path, bare: Path, asked: CompressSettings, **given: Any) -> None:
    """Compress a model, and write the bare cut of the same plan; what is there already is taken as it is."""
    if not beside(small, "report").exists():  # it comes last
        onnxprune.compress(model, small, asked, force=True, **given)
    if not bare.exists():
        onnxprune.apply(model, beside(small, "plan"), bare, verify_level="none")


def line(arguments: argparse.Namespace, model: Path, target: str, search: str, extra: list[str]) -> str:
    """Compress, train and judge one model; what is there already is taken as it is."""
    name = f"{model.stem}.{target}.{search}"
    small, bare = arguments.run / f"{name}.onnx", arguments.run / f"{name}.cut.onnx"
    given = {"data": arguments.data, "preprocess": arguments.preprocess, "label_offset": arguments.label_offset}
    make(model, small, bare, CompressSettings({"macs": target}, search=search, seed=arguments.seed), **given)
    options = ["--epochs", str(arguments.epochs), "--seed", str(arguments.seed), *extra]
    named = [*options, "--teacher"] if arguments.teacher else options
    run = arguments.run / f"{name}{''.join(named).replace('--', '.').replace('/', '_')}.run"
    options += ["--teacher", str(model)] if arguments.teacher else []
    trained = run.with_suffix(f".{arguments.choose}.onnx")
    if not trained.exists():
        command = [PROGRAM, "finetune", str(small), "--data", arguments.data, "--preprocess", arguments.preprocess]
        command += ["--label-offset", str(arguments.label_offset), "--choose", arguments.choose, *options]
        command += ["-o", str(trained), "--run", str(run), "--resume"]
        print(f"# {shlex.join(command)}", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)
    tops = []
    for title, file in (("original", model), ("cut", bare), ("repaired", small), ("trained", trained)):
        scores = onnxprune.evaluate(file, **{**given, "data": arguments.test})
        tops.append(f"{title} {100 * (scores.top1 or 0):.2f}")
    return f"{name} | {' | '.join(tops)} | {shlex.join(options)}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
