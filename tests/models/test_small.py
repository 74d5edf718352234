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
def test_every_network_is_built_alike_each_time_and_takes_small_images(name: str) -> None:
    one, other = (small.build(name, (3, small.SIDE, small.SIDE), 7) for _ in range(2))
    image = torch.rand(2, 3, small.SIDE, small.SIDE)
    with torch.no_grad():
        torch.testing.assert_close(one(image), other(image), rtol=0, atol=0)
        assert one(image).shape == (2, 7)


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


def test_photographs_are_made_small_and_what_is_tested_with_is_not_trained_on(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(5_000) % 3
    pixels = generator.integers(0, 80, (5_000, 20, 24, 3), np.uint8) + 80 * labels[:, None, None, None].astype(np.uint8)
    np.savez(tmp_path / "photographs.npz", x=pixels, y=labels)
    train, test = small.photographs(tmp_path / "photographs.npz")
    assert train.x.shape == (3_000, 3, 16, 16)
    assert test.x.shape == (2_000, 3, 16, 16)
    x, y = torch.cat([train.x, test.x]), torch.cat([train.y, test.y])
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)
    brightness = x.mean((1, 2, 3))
    assert y[brightness.argsort()].tolist() == sorted(labels)  # each image has its own label still
    assert len(x.flatten(1).unique(dim=0)) == 5_000


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((5_000, 8, 8, 3), np.uint8)}, "x and y"),
        ({"x": np.zeros((5_000, 8, 8), np.uint8), "y": np.zeros(5_000, int)}, "samples, height, width, 3"),
        ({"x": np.zeros((50, 8, 8, 3), np.uint8), "y": np.zeros(50, int)}, "4000 at least"),
        ({"x": np.zeros((5_000, 8, 8, 3), np.float32), "y": np.zeros(5_000, int)}, "bytes"),
    ],
)
def test_photographs_that_do_not_fit_are_told(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "photographs.npz", **arrays)  # type: ignore[arg-type]
    result = CliRunner().invoke(small.main, [str(tmp_path / "small"), "--data", str(tmp_path / "photographs.npz")])
    assert result.exit_code == 2
    assert said in result.output


def test_some_photographs_are_turned_round_and_all_are_moved_by_a_pixel_at_most() -> None:
    images = torch.arange(64.0).reshape(8, 8).repeat(100, 1, 1, 1) + 1
    shown = small.shift_and_mirror(images, torch.Generator().manual_seed(0))[:, 0, 2:-2, 2:-2]
    near = {images[0, 0, 2 + down : 6 + down, 2 + right : 6 + right] for down in (-1, 0, 1) for right in (-1, 0, 1)}
    plain = [any(torch.equal(one, other) for other in near) for one in shown]
    turned = [any(torch.equal(one.flip(1), other) for other in near) for one in shown]
    assert all(a != b for a, b in zip(plain, turned, strict=True))
    assert 30 < sum(turned) < 70


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(small.main, [str(tmp_path / "file" / "small")])
    assert result.exit_code == 2
    assert "cannot make the folder" in result.output
