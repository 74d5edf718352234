"""Times that were measured once are not measured again, unless what they depend on has changed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from cli_nets import convs
from onnx import ModelProto

from onnxprune import runtime
from onnxprune.channels import Channels, find_channels
from onnxprune.metrics import Costs
from onnxprune.model import Model, analyse
from onnxprune.predicting import kept, memory
from onnxprune.predicting.device import Device
from onnxprune.predicting.samples import Samples, draw
from onnxprune.progress import Progress, Quiet


def net(seed: int = 0) -> Channels:
    return find_channels(analyse(convs(seed=seed), Path(), runtime.evaluate, {}))


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """Keep times in a folder of its own; gives the devices on which something was measured."""
    found: list[Device] = []

    def measure(channels: Channels, device: Device, seed: int, progress: Progress) -> Samples:
        found.append(device)
        counts = draw(channels, 12, seed)
        ms = Costs(channels).of(counts)["macs"] / 1e6
        nodes = np.zeros((12, len(channels.model.graph.nodes) + 1))
        nodes[:, 0] = ms
        return Samples(counts, ms, nodes)

    monkeypatch.setattr(kept, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(kept, "measure", measure)
    return found


def ms(channels: Channels, device: Device | None = None) -> float:
    found = kept.predictor(channels, Costs(channels), device or Device(), Quiet())
    return float(found.ms([group.width // 2 for group in channels.groups])[0])


def test_the_same_model_on_the_same_machine_is_measured_once(measured: list[Device]) -> None:
    assert ms(net()) == ms(net())
    assert len(measured) == 1


def test_another_model_or_way_to_run_it_is_measured_anew(measured: list[Device]) -> None:
    for channels, device in ((net(), None), (net(1), None), (net(), Device(threads=2)), (net(), Device(batch=8))):
        ms(channels, device)
    assert len(measured) == 4


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY", array()])
def test_a_broken_file_is_measured_again_and_replaced(measured: list[Device], tmp_path: Path, content: bytes) -> None:
    before = ms(net())
    (file,) = (tmp_path / "onnxprune" / "latency").glob("*.npz")
    file.write_bytes(content)
    assert ms(net()) == before
    assert len(measured) == 2
    ms(net())
    assert len(measured) == 2


def test_a_folder_that_cannot_be_written_only_costs_time(
    measured: list[Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(kept, "user_cache_path", lambda name: tmp_path / "file" / name)
    assert ms(net()) == ms(net())
    assert len(measured) == 2


def test_what_was_used_longest_ago_makes_room(
    measured: list[Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "MOST", 2)
    for seed in range(4):
        ms(net(seed))
    assert len(list((tmp_path / "onnxprune" / "latency").glob("*.npz"))) == 2


def test_memory_is_predicted_alike_again_however_much_processes_vary(
    measured: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def needed(proto: ModelProto, model: Model, device: Device) -> int:
        asked.append(1)
        return 10**7 + 2 * proto.ByteSize() + 10_000 * len(asked)

    monkeypatch.setattr(memory, "needed", needed)
    channels = net()
    counts = np.asarray([[group.width // 2 for group in channels.groups]])
    found = [kept.memory_predictor(channels, Costs(channels), Device(), Quiet())[0](counts) for _ in range(2)]
    np.testing.assert_array_equal(*found)
    assert len(asked) == len(memory.SHARES)
