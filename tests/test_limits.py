"""How time and memory grow with the model: numbers that users of large models meet first."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_nets import CLASSES, Draft, convs, write

from onnxprune import model, runtime
from onnxprune.channels import find_channels
from onnxprune.plan import Plan
from onnxprune.surgery import cut

LINEAR = 2.5  # twice the nodes may take at most so many times as long
MEGABYTE = 1_000_000
BASE = 300 * MEGABYTE  # what the program needs for a model of no size
COPIES = 4  # and how often it may hold the model's file beside that


def chain(nodes: int, folder: Path) -> Path:
    """A network of so many nodes in a row, every second one a convolution."""
    draft = Draft()
    x = draft.conv("conv0", "image", 3, 8, 1)
    for number in range(1, nodes - 1, 2):
        x = draft.conv(f"conv{number}", draft.relu(f"relu{number}", x), 8, 8, 1)
    x = draft.relu("last", x) if nodes % 2 == 0 else x
    assert len(draft.nodes) == nodes
    draft.nodes[-1].output[0] = "features"
    return write(draft.model([("image", (1, 3, 4, 4))], [("features", (1, 8, 4, 4))]), folder / f"chain{nodes}.onnx")


def seconds_to_cut(path: Path, rounds: int = 3) -> float:
    """The best time of loading a model, finding its channels and cutting half of them."""
    best = np.inf
    for _ in range(rounds):
        start = time.perf_counter()
        channels = find_channels(model.load(path, runtime.evaluate))
        small = cut(channels, Plan(tuple(np.arange(g.width // 2) for g in channels.groups)), runtime.evaluate)
        best = min(best, time.perf_counter() - start)
        assert len(small.graph.node) == len(channels.model.graph.nodes)
        assert len(channels.groups) > len(small.graph.node) // 2 - 3
    return best


def peak_memory(path: Path, folder: Path) -> int:
    """The most bytes that compressing a model takes, in a process of its own."""
    code = (
        "import resource\n"
        "from onnxprune.cli.main import run\n"
        f"arguments = ['compress', {str(path)!r}, '--flops', '0.5', '-o', {str(folder / 'small.onnx')!r}]\n"
        "assert run([*arguments, '--search', 'uniform', '--verify', 'fast', '--quiet']) == 0\n"
        "print(open('/proc/self/status').read())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.slow
def test_a_chain_of_twice_the_nodes_takes_about_twice_as_long(tmp_path: Path) -> None:
    seconds_to_cut(chain(100, tmp_path), rounds=1)
    short, long = seconds_to_cut(chain(5_000, tmp_path)), seconds_to_cut(chain(10_000, tmp_path))
    print(f"5,000 nodes {short:.2f} s, 10,000 nodes {long:.2f} s, {long / short:.2f} times")
    assert long <= LINEAR * short


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_compressing_a_small_model_takes_little_memory(tmp_path: Path) -> None:
    path = write(convs(), tmp_path / "model.onnx")
    peak = peak_memory(path, tmp_path)
    print(f"{peak / MEGABYTE:.0f} MB")
    assert peak <= BASE + COPIES * path.stat().st_size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_compressing_a_large_model_takes_memory_in_proportion_to_its_file(tmp_path: Path) -> None:
    draft = Draft()
    flat = draft.add("Flatten", "flatten", draft.relu("relu1", draft.conv("conv", "image", 3, 64)))
    x = draft.add("MatMul", "fc1", flat, draft.weight("fc1.weight", 64 * 64, 7000))
    x = draft.add("MatMul", "fc2", draft.relu("relu2", x), draft.weight("fc2.weight", 7000, 1000))
    x = draft.add("MatMul", "fc3", draft.relu("relu3", x), draft.weight("fc3.weight", 1000, CLASSES))
    draft.nodes[-1].output[0] = "logits"
    path = write(draft.model([("image", ("N", 3, 8, 8))], [("logits", ("N", CLASSES))]), tmp_path / "model.onnx")
    assert 140 * MEGABYTE < path.stat().st_size < 160 * MEGABYTE
    peak = peak_memory(path, tmp_path)
    print(f"{peak / MEGABYTE:.0f} MB for a file of {path.stat().st_size / MEGABYTE:.0f} MB")
    assert peak <= BASE + COPIES * path.stat().st_size
