"""The demo model: its data, its files, its accuracy."""

import builtins
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from onnxprune.errors import InputError
from onnxprune.models import digits


def share_right(folder: Path) -> float:
    """Score the written model on the written test data."""
    session = ort.InferenceSession(str(folder / digits.MODEL_FILE), providers=["CPUExecutionProvider"])
    with np.load(folder / digits.TEST_FILE) as data:
        logits = np.asarray(session.run(["logits"], {"image": data["x"]})[0])
        return float((logits.argmax(1) == data["y"]).mean())


def test_the_three_splits_share_no_image_and_hold_every_class_evenly() -> None:
    splits = digits.digits()
    images = [image.numpy().tobytes() for split in splits for image in split.x]
    assert len(images) == len(set(images)) == 1797
    assert [len(split.y) for split in splits] == [1197, 200, 400]
    for split in splits:
        counts = split.y.bincount(minlength=10) / len(split.y)
        assert counts.min() > 0.09
        assert counts.max() < 0.11


def test_one_epoch_writes_a_model_that_scores_the_same_in_onnxruntime(tmp_path: Path) -> None:
    accuracy = digits.write_demo(tmp_path / "new" / "demo", epochs=1)
    assert share_right(tmp_path / "new" / "demo") == pytest.approx(accuracy, abs=0.005)
    with np.load(tmp_path / "new" / "demo" / digits.CALIBRATION_FILE) as data:
        assert data["x"].shape == (200, 1, 8, 8)
        assert (data["x"].dtype, data["y"].dtype) == (np.float32, np.int64)
        assert (data["x"].min(), data["x"].max()) == (0.0, 1.0)


def test_a_finished_demo_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (digits.MODEL_FILE, digits.TEST_FILE, digits.CALIBRATION_FILE):
        (tmp_path / name).touch()
    monkeypatch.setattr(digits, "write_demo", lambda folder: pytest.fail("trained again"))
    result = CliRunner().invoke(digits.main, [str(tmp_path)])
    assert result.exit_code == 0
    assert "already holds the digits demo" in result.output


def test_without_scikit_learn_the_error_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: object) -> object:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"pip install onnxprune\[demo\]"):
        digits.digits()
    result = CliRunner().invoke(digits.main, [str(tmp_path / "demo")])
    assert result.exit_code == InputError.exit_code
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy(tmp_path: Path) -> None:
    assert digits.write_demo(tmp_path) >= 0.975
    assert share_right(tmp_path) >= 0.975
