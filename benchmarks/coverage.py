"""Which models can be pruned? Many models, each checked in a process of its own; one row each, and a table of them.

    python benchmarks/coverage.py --rows rows.jsonl --folder FOLDER --exporter-script SCRIPT --torchvision FOLDER
    python benchmarks/coverage.py --rows rows.jsonl --table docs/coverage.md

The first command may be stopped at any time: rows that are done are not done again. Models come from two sources:

* a folder of .onnx files. Where a file has structure only (weights made by ConstantOfShape), it gets random weights.
  Files without layers that multiply are listed, but not counted.
* torchvision, through a script that exports them. Called as `SCRIPT FOLDER NAME --exporter torchscript|dynamo` it
  writes `FOLDER/NAME.EXPORTER.onnx`; imported, it has `names()` and `torchvision`. `--torchvision` is the folder that
  torchvision lies in, where it is not installed. All models of up to 100 M parameters are taken, and two above. One
  file is on disk at a time.

A model passes when it loads, has groups, some of its MACs can be pruned, `--flops 0.5` is met, the result passes
verification, and tests/oracle.py finds nothing wrong with random plans that keep 1 to 90 % of each group.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import oracle

from onnxprune import model, runtime, search
from onnxprune.channels import Channels, find_channels
from onnxprune.criteria import Evidence, importance
from onnxprune.errors import InputError, TargetError
from onnxprune.metrics import Costs
from onnxprune.problem import FINE, Problem
from onnxprune.surgery import cut
from onnxprune.targets import parse_target
from onnxprune.verify import verify

Row = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]

EXPORTERS = ("torchscript", "dynamo")
LARGEST = 100e6  # parameters
LARGE = ("vgg16", "vit_l_16")  # taken although larger
TARGET = "0.5"
SEED = 0
PLANS = 2  # random plans for the oracle
HEAVY_PARAMS, HEAVY_MACS = 50e6, 8e9  # models above one of these get one random plan
ORACLE = "oracle"  # how the names of its stages begin
TOP = 3  # reasons that a row of the table names


@dataclass(frozen=True)
class Case:
    """A model to check.

    Attributes:
        name: of its row.
        source: ``files`` or the exporter.
        file: the model file; None where it is exported first.
        shapes: sizes for inputs that leave them free.
        structure_only: whether its weights are made by ConstantOfShape.
    """

    name: str
    source: str
    file: Path | None = None
    shapes: Shapes | None = None
    structure_only: bool = False


def main() -> None:
    args = arguments().parse_args()
    if args.check:
        limit_memory(args.memory)
        examine(args.check, parse_shapes(args.shape).get("", {}), args.structure_only != [], Saved(args.rows))
        return
    rows = read_rows(args.rows)
    for case in cases(args):
        if is_any(case.name, args.only or ["*"]) and (case.name not in rows or is_any(case.name, args.redo)):
            start = time.perf_counter()
            row = {"name": case.name, "source": case.source, **check(case, args), "versions": versions(args)}
            row["total_seconds"] = round(time.perf_counter() - start, 1)
            with args.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            rows[case.name] = row
            print(f"{case.name}: {'; '.join(faults(row)) or 'passes'} ({row['total_seconds']} s)", flush=True)
    if args.table:
        args.table.write_text(table(list(rows.values())))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines, one a model; what is there is not redone")
    parser.add_argument("--folder", type=Path, help="folder of .onnx files")
    parser.add_argument("--structure-only", action="append", default=[], metavar="PATTERN")
    parser.add_argument("--shape", action="append", default=[], metavar="FILE:INPUT=SIZES")
    parser.add_argument("--exporter-script", type=Path)
    parser.add_argument("--torchvision", type=Path, help="the folder that torchvision lies in")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="such as resnet18.*")
    parser.add_argument("--redo", action="append", default=[], metavar="PATTERN", help="rows to make anew")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one model, its export aside")
    parser.add_argument("--memory", type=float, default=16, help="GB for one model")
    parser.add_argument("--table", type=Path, help="the Markdown file to write from all rows")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)  # what each process of its own is asked to do
    return parser


# ------------------------------------------------------------------------------------------------ the models


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """List all models: files first, then both exports of each network."""
    shapes = parse_shapes(args.shape)
    for file in sorted(args.folder.glob("*.onnx")) if args.folder else []:
        yield Case(file.name, "files", file, shapes.get(file.name), is_any(file.name, args.structure_only))
    if args.exporter_script:
        for name in networks(args.exporter_script, args.torchvision):
            for exporter in EXPORTERS:
                yield Case(f"{name}.{exporter}", exporter)


def parse_shapes(texts: Sequence[str]) -> dict[str, Shapes]:
    """Read ``FILE:INPUT=SIZES``, by file."""
    found: dict[str, Shapes] = defaultdict(dict)
    for text in texts:
        file, _, rest = text.partition(":")
        name, _, sizes = rest.partition("=")
        found[file][name] = tuple(map(int, sizes.split(",")))
    return found


def is_any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def networks(script: Path, folder: Path | None) -> list[str]:
    """Name the networks to export, in a process of its own that has torchvision on its path."""
    code = "import sys, coverage, pathlib; print('\\n'.join(coverage.small_networks(pathlib.Path(sys.argv[1]))))"
    path = [str(Path(__file__).parent), *search_path(folder)]
    done = subprocess.run(
        [sys.executable, "-c", code, str(script.resolve())],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.split()


def search_path(folder: Path | None) -> list[str]:
    """Give the folders to look for modules in, before those that are installed."""
    given = os.environ.get("PYTHONPATH", "")
    return [*([str(folder.resolve())] if folder else []), *([given] if given else [])]


def small_networks(script: Path) -> list[str]:
    """Name the script's networks of up to 100 M parameters, and the larger ones asked for; nothing is built."""
    exporting = import_script(script)
    sizes = {
        name: exporting.torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
        for name in exporting.names()
    }
    return [name for name, size in sizes.items() if size <= LARGEST or name in LARGE]


def import_script(script: Path) -> ModuleType:
    """Import a Python file."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(args: argparse.Namespace) -> dict[str, str]:
    """Name the versions that a row depends on."""
    found = {name: metadata.version(name) for name in ("onnx", "torch")}
    for name in ("onnxruntime-gpu", "onnxruntime"):
        for distribution in metadata.distributions(name=name):
            found.setdefault("onnxruntime", distribution.version)
    for distribution in metadata.distributions(name="torchvision", path=[*search_path(args.torchvision), *sys.path]):
        found.setdefault("torchvision", distribution.version)
    return found


# ---------------------------------------------------------------------------------------- one model, from outside


def check(case: Case, args: argparse.Namespace) -> Row:
    """Export a model if need be, and check it in a process of its own; whatever happens there is told in the row."""
    with tempfile.TemporaryDirectory() as scratch:
        if case.file is not None:
            return check_file(case, case.file, args, Path(scratch))
        start = time.perf_counter()
        network = case.name.removesuffix(f".{case.source}")
        said = export(network, case.source, args, Path(scratch))
        file = Path(scratch) / f"{case.name}.onnx"
        if not file.exists():
            return {"died": f"the exporter fails: {said}"}
        seconds = round(time.perf_counter() - start, 1)
        return {"export_seconds": seconds, **check_file(case, file, args, Path(scratch))}


def export(network: str, exporter: str, args: argparse.Namespace, folder: Path) -> str:
    """Export a network; returns the last line that the script printed."""
    command = [sys.executable, str(args.exporter_script), str(folder), network, "--exporter", exporter]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search_path(args.torchvision))}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return f"no end after {args.limit:.0f} s"
    return last_line(done.stdout) if done.returncode == 0 else last_line(done.stderr)


def check_file(case: Case, file: Path, args: argparse.Namespace, folder: Path) -> Row:
    """Check a file in a process of its own."""
    saved = folder / "row.json"
    command = [sys.executable, __file__, "--check", str(file), "--rows", str(saved), "--memory", str(args.memory)]
    for name, sizes in (case.shapes or {}).items():
        command += ["--shape", f":{name}={','.join(map(str, sizes))}"]
    if case.structure_only:
        command += ["--structure-only", "*"]
    died = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
        if done.returncode:
            died = last_line(done.stderr) or f"ended by signal {-done.returncode}"
    except subprocess.TimeoutExpired:
        died = f"no end after {args.limit:.0f} s"
    row: Row = json.loads(saved.read_text()) if saved.exists() else {"stage": "start"}
    if died:
        row["died"] = f"{died} (at: {row['stage']})"
    return row


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:400]


# ----------------------------------------------------------------------------------------- one model, from inside


class Saved:
    """A row that is on disk after every stage, so that a crash loses nothing but what came after.

    Args:
        file: where to keep it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.row: Row = {"failures": {}, "seconds": {}}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; what goes wrong in it is part of the row and stops only this stage."""
        self.row["stage"] = name
        self._write()
        start = time.perf_counter()
        try:
            yield
        except (Exception, MemoryError) as error:
            self.row["failures"][name] = f"{type(error).__name__}: {error}"[:600]
        self.row["seconds"][name] = round(time.perf_counter() - start, 3)
        self.row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self._write()

    def _write(self) -> None:
        self._file.write_text(json.dumps(self.row))


def limit_memory(gigabytes: float) -> None:
    """Let a model that needs too much fail by itself, before the machine ends something else."""
    size = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def examine(file: Path, shapes: Shapes, structure_only: bool, saved: Saved) -> None:
    """Do all checks on one model."""
    with tempfile.TemporaryDirectory() as folder:
        if structure_only:
            filled = oracle.with_random_weights(onnx.load(file), SEED)
            file = Path(folder) / file.name
            onnx.save(filled, file)
        if analyse_and_halve(file, shapes, saved):
            ask_the_oracle(file, shapes, saved)


def analyse_and_halve(file: Path, shapes: Shapes, saved: Saved) -> bool:
    """Find what can be pruned and keep half of it; returns whether the model makes sense."""
    row = saved.row
    with saved.stage("load"):
        try:
            loaded = model.load(file, runtime.evaluate, shapes)
        except InputError as error:
            row["refused"] = str(error)[:300]
            return False
    if "load" in row["failures"]:
        return False
    with saved.stage("analysis"):
        channels = find_channels(loaded)
    if "analysis" in row["failures"]:
        return False
    with saved.stage("costs"):
        costs = Costs(channels)
        row |= describe(channels, costs)
    if row.get("groups"):
        halve(channels, costs, saved)
    return "macs" in row


def describe(channels: Channels, costs: Costs) -> Row:
    """Say what can be pruned, and which reasons hold how much of the rest."""
    original = costs.of([group.width for group in channels.groups])
    nodes = costs.per_node()
    total = sum(node.macs for node in nodes)
    frozen, half = Counter[str](), Counter[str]()
    for node in nodes:
        if node.reason >= 0:
            (half if node.is_free else frozen)[reason_text(channels, node.reason)] += node.macs
    return {
        "nodes": len(channels.model.graph.nodes),
        "params": int(original["params"][0]),
        "macs": total,
        "groups": len(channels.groups),
        "idle_groups": idle_groups(channels),
        "prunable": share(sum(node.macs for node in nodes if node.is_free), total),
        "frozen": {text: share(macs, total) for text, macs in frozen.most_common()},
        "half_frozen": {text: share(macs, total) for text, macs in half.most_common()},
        "uncounted": costs.uncounted(),
        "notes": channels.model.notes,
    }


def idle_groups(channels: Channels) -> int:
    """Count the groups that touch no stored numbers: nothing would be cut with them, so there should be none."""
    stored = [
        isinstance(key, tuple) or key in channels.model.stored
        for key, axes in channels.axes.items()
        for _ in axes.shape
    ]
    return sum(not any(stored[axis] for axis in group.axes) for group in channels.groups)


def share(part: float, total: float) -> float:
    return round(part / total, 4) if total else 0.0


def reason_text(channels: Channels, index: int) -> str:
    """Put a reason into words that are the same for all nodes of a kind: names are left out."""
    reason = channels.reasons[index]
    text = re.sub(r" *'[^']*'", "", reason.text)
    return f"{channels.model.graph.nodes[reason.node].op}: {text}" if reason.node >= 0 else text


def halve(channels: Channels, costs: Costs, saved: Saved) -> None:
    """Compress to half of the MACs, as the command line does but for dead channels and timing."""
    row = saved.row
    total = float(row["macs"])
    with saved.stage("search"):
        target = parse_target("macs", TARGET, total)
        problem = Problem(channels, costs, [target], importance(Evidence(channels, SEED), "l2"), FINE)
        row["lowest"] = share(problem.lowest()["macs"], total)
        try:
            plan = search.find("uniform")(problem, search.SearchSettings(seed=SEED), lambda done, of: None)
        except TargetError:
            return
        reached = float(costs.of(plan.counts)["macs"][0])
        row |= {"kept": share(reached, total), "below": share(target.limit - reached, total)}
        row["met"] = reached <= target.limit
    if "met" not in row:
        return
    with saved.stage("cut"):
        result = cut(channels, plan, runtime.evaluate)
    if "cut" in row["failures"]:
        return
    with saved.stage("verify"):
        row["verify"] = verify(channels, plan, result, "fast")["outputs"]


def ask_the_oracle(file: Path, shapes: Shapes, saved: Saved) -> None:
    """Check random plans with code that knows nothing of onnxprune's."""
    heavy = saved.row["params"] > HEAVY_PARAMS or saved.row["macs"] > HEAVY_MACS
    saved.row["plans"] = 1 if heavy else PLANS
    for seed in range(SEED, SEED + saved.row["plans"]):
        with saved.stage(f"{ORACLE}, seed {seed}"):
            oracle.check(file, seed=seed, asked=shapes)


# ----------------------------------------------------------------------------------------------------- rows, table


def read_rows(file: Path) -> dict[str, Row]:
    """Read the rows that are done; of several of one name the last counts."""
    lines = file.read_text().splitlines() if file.exists() else []
    return {row["name"]: row for row in map(json.loads, filter(None, lines))}


def faults(row: Row) -> list[str]:
    """List why a model does not pass."""
    if "refused" in row:
        return [f"refused: {row['refused']}"]
    if "macs" not in row:
        return [row.get("died") or "; ".join(row["failures"].values()) or "nothing is known of it"]
    found = []
    if not row["macs"]:
        found.append("has no layers that multiply")
    elif not row["groups"]:
        found.append(f"no groups{held_by(row)}")
    elif not row["prunable"]:
        found.append(f"none of its MACs can be pruned{held_by(row)}")
    elif not row.get("met") and "lowest" in row:
        found.append(f"half of the MACs cannot be reached, the lowest is {row['lowest']:.1%}{held_by(row)}")
    if row.get("idle_groups"):
        found.append(f"{row['idle_groups']} groups touch no stored numbers")
    found += [f"{stage}: {text}" for stage, text in row["failures"].items()]
    return [*found, row["died"]] if "died" in row else found


def held_by(row: Row) -> str:
    """Name the reasons that hold most of the MACs, whole layers before those whose inputs can shrink."""
    texts = [f"{text} ({part:.1%})" for text, part in list(row["frozen"].items())[:TOP]]
    texts += [f"{text} ({part:.1%}, inputs shrink)" for text, part in list(row["half_frozen"].items())[:1]]
    return f"; held by {'; '.join(texts)}" if texts else ""


def is_counted(row: Row) -> bool:
    """Tell whether a model can be expected to pass: a file that is no model, or holds no layers, cannot."""
    return row["source"] != "files" or not ("refused" in row or row.get("macs") == 0)


def table(rows: list[Row]) -> str:
    """Write everything as Markdown."""
    parts = [heading(rows)]
    for source in (*EXPORTERS, "files"):
        found = sorted((row for row in rows if row["source"] == source), key=lambda row: row["name"])
        if found:
            parts.append(section(source, found))
    failing = [row for row in sorted(rows, key=lambda row: row["name"]) if faults(row)]
    lines = [f"- `{row['name']}`: {escape('; '.join(faults(row)))}" for row in failing]
    parts.append("## What does not pass, and why\n\n" + ("\n".join(lines) or "Nothing."))
    return "\n\n".join(parts) + "\n"


def heading(rows: list[Row]) -> str:
    """Say what passes, by which command, with which versions."""
    counts = []
    for source in (*EXPORTERS, "files"):
        counted = [row for row in rows if row["source"] == source and is_counted(row)]
        if counted:
            passed = sum(not faults(row) for row in counted)
            what = "files from the wild" if source == "files" else f"networks of torchvision, exporter {source}"
            counts.append(f"- {what}: **{passed} of {len(counted)}** pass")
    named = {f"{name} {version}" for row in rows for name, version in row["versions"].items()}
    return f"""# Coverage

Which models can be pruned, and how much of them. This file is written by `benchmarks/coverage.py`.

{chr(10).join(counts)}

A model passes when it loads, has groups, some of its MACs can be pruned, `--flops {TARGET}` is met, the result passes
verification, and the independent oracle of the tests finds nothing wrong with random plans that keep 1 to 90 % of each
group ({PLANS} plans; 1 for models above {HEAVY_PARAMS / 1e6:.0f} M parameters or {HEAVY_MACS / 1e9:.0f} GMACs).
Networks of torchvision have random weights; taken are those of up to {LARGEST / 1e6:.0f} M parameters, and the larger
{" and ".join(LARGE)}.
Prunable is the share of the MACs of layers that can shrink, lowest the least share of MACs that can be kept.

```
python benchmarks/coverage.py --rows ROWS --exporter-script SCRIPT --torchvision FOLDER \\
    --folder FOLDER --structure-only 'light_*' --shape tract_byte_sb_bidi_lstm.onnx:input=1,16 \\
    --table docs/coverage.md
```

Versions: {", ".join(sorted(named))}. Seed {SEED}. Costs are those at batch 1."""


def section(source: str, rows: list[Row]) -> str:
    """Write the table of one source."""
    columns = {
        "model": lambda row: row["name"].removesuffix(f".{source}").removesuffix(".onnx"),
        "passes": lambda row: ("no" if faults(row) else "yes") if is_counted(row) else "not counted",
        "params": lambda row: f"{row['params'] / 1e6:.1f} M",
        "MACs": lambda row: f"{row['macs'] / 1e9:.2f} G",
        "groups": lambda row: str(row["groups"]),
        "prunable": lambda row: f"{row['prunable']:.1%}",
        "what holds the rest": lambda row: "; ".join(f"{t} {p:.1%}" for t, p in list(row["frozen"].items())[:TOP]),
        "lowest": lambda row: f"{row['lowest']:.1%}",
        f"kept at {TARGET}": lambda row: f"{row['kept']:.1%}",
        "below by": lambda row: f"{row['below']:.2%}",
        "verified within": lambda row: difference(row["verify"]),
        "random plans": lambda row: f"{plans_passed(row)} of {row['plans']}",
        "analysis + cut": lambda row: f"{row['seconds']['analysis'] + row['seconds']['cut']:.2f} s",
    }
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell(column, row) for column in columns.values())} |" for row in rows]
    title = "Files from the wild" if source == "files" else f"torchvision, {source}"
    return f"## {title}\n\n" + "\n".join(lines)


def plans_passed(row: Row) -> int:
    """Count the random plans that the oracle finds nothing wrong with."""
    return sum(stage.startswith(ORACLE) and stage not in row["failures"] for stage in row["seconds"])


def cell(column: Callable[[Row], str], row: Mapping[str, Any]) -> str:
    """Fill a cell; it stays empty where a row did not come that far."""
    try:
        return escape(column(dict(row)))
    except KeyError:
        return ""


def escape(text: str) -> str:
    """Keep a text from ending its cell or its line."""
    return " ".join(text.split()).replace("|", "\\|")


def difference(text: str) -> str:
    """Take the number out of what verification says."""
    found = re.search(r"within (\S+)", text)
    return found[1] if found else text


if __name__ == "__main__":
    main()
