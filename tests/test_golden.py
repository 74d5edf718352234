"""Groups, widths and the share of the MACs that can shrink, as they were found before.

Wrong ties show in outputs; ties that are too many, and things frozen for no reason, show here only. After a change
that is meant to move these figures, write them anew and read the difference:

    ONNXPRUNE_GOLDEN=write pytest tests/test_golden.py -m "slow or not slow"
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import oracle
import pytest
from nets import NETS

from onnxprune import channels, model, models, runtime

GOLDEN = Path(__file__).parent / "golden"
EXPORTERS = ("torchscript", "dynamo")
QUICK = {("cifar_resnet20", "torchscript"), ("cifar_resnet20", "dynamo"), ("mobilenet_v2_cifar", "torchscript")}
ZOO = [
    pytest.param(name, exporter, marks=() if (name, exporter) in QUICK else pytest.mark.slow)
    for name in models.names()
    for exporter in EXPORTERS
]


def compare(file: str, name: str, found: channels.Channels) -> None:
    """Compare the figures of a model with the stored ones, or store them where that is asked for."""
    path = GOLDEN / file
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    figures = oracle.figures(found)
    if os.environ.get("ONNXPRUNE_GOLDEN") == "write":
        stored[name] = figures
        lines = [f'"{key}": {json.dumps(stored[key])}' for key in sorted(stored)]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    assert stored[name] == figures


@pytest.mark.parametrize("name", NETS)
def test_a_tiny_net_has_the_figures_it_had(name: str) -> None:
    proto = NETS[name].build()
    compare("nets.json", name, channels.find_channels(model.analyse(proto, Path(), runtime.evaluate, {})))


@pytest.mark.parametrize(("name", "exporter"), ZOO)
def test_a_net_of_the_zoo_has_the_figures_it_had(name: str, exporter: str, tmp_path: Path) -> None:
    models.export(name, tmp_path / "net.onnx", exporter=exporter)
    found = channels.find_channels(model.load(tmp_path / "net.onnx", runtime.evaluate))
    compare("zoo.json", f"{name} {exporter}", found)
    for file in tmp_path.iterdir():  # some are half a gigabyte, and pytest keeps them
        file.unlink()


def test_no_figures_are_stored_of_nets_that_are_gone() -> None:
    stored = {file: set(json.loads((GOLDEN / file).read_text(encoding="utf-8"))) for file in ("nets.json", "zoo.json")}
    assert stored["nets.json"] == set(NETS)
    assert stored["zoo.json"] == {f"{name} {exporter}" for name in models.names() for exporter in EXPORTERS}
