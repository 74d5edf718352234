"""The small networks that the policy learns from: they are built, trained, written and cut like any other."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner

from onnxprune import inspect
from onnxprune.models import small


@pytest.mark.parametrize("name", small.NETWORKS)
def test_every_network_is_built_alike_each_time_and_takes_digits(name: str) -> None:
    one, other = small.build(name), small.build(name)
    image = torch.rand(2, *small.SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(one(image), other(image), rtol=0, atol=0)
        assert one(image).shape == (2, small.CLASSES)


def test_the_command_writes_trained_networks_and_their_images_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "NETWORKS", {"resnet14": small.NETWORKS["resnet14"]})
    monkeypatch.setattr(small, "EPOCHS", 2)
    result = CliRunner().invoke(small.main, [str(tmp_path / "small")])
    assert result.exit_code == 0, result.output
    assert "resnet14: test accuracy" in result.output
    with np.load(tmp_path / "small" / small.DATA_FILE) as data:
        assert data["x"].shape == (1397, 1, 16, 16)
        session = ort.InferenceSession(str(tmp_path / "small" / "resnet14.onnx"), providers=["CPUExecutionProvider"])
        logits = np.asarray(session.run(None, {"image": data["x"]})[0])
        assert (logits.argmax(1) == data["y"]).mean() > 0.3  # chance: 0.1
    assert inspect(tmp_path / "small" / "resnet14.onnx").groups
    again = CliRunner().invoke(small.main, [str(tmp_path / "small")])
    assert "test accuracy" not in again.output


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(small.main, [str(tmp_path / "file" / "small")])
    assert result.exit_code == 2
    assert "cannot make the folder" in result.output
