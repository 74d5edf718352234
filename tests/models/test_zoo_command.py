"""The command group ``onnxprune models``."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from onnxprune import models as zoo
from onnxprune.cli.models import models
from onnxprune.errors import InputError
from onnxprune.models.recipes import RECIPES


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models, arguments)


def test_list_shows_every_network_with_its_numbers() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert all(name in result.output for name in zoo.names())
    row = next(line for line in result.output.splitlines() if "mobilenet_v2 " in line)
    assert all(cell in row for cell in ("3x224x224", "1000", "3.505", "300.77"))


def test_list_writes_json_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "zoo.json"
    assert "resnet18" in run("list", "--json", str(file)).output
    entries = json.loads(file.read_text())
    assert [entry["name"] for entry in entries] == zoo.names()
    assert entries[0] == {
        "name": "resnet18",
        "input_shape": [3, 224, 224],
        "classes": 1000,
        "params": 11_689_512,
        "macs": 1_814_073_344,
        "description": zoo.describe("resnet18").description,
    }


def test_list_refuses_a_json_file_in_an_absent_folder(tmp_path: Path) -> None:
    error = run("list", "--json", str(tmp_path / "absent" / "zoo.json")).exception
    assert isinstance(error, InputError)
    assert "does not exist; create it or choose another file" in str(error)


def test_export_writes_name_dot_onnx_and_replaces_it_only_by_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("export", "cifar_resnet20")
    assert result.exit_code == 0
    assert result.output.startswith("wrote cifar_resnet20.onnx: input 3x32x32, 10 classes, ")
    before = Path("cifar_resnet20.onnx").read_bytes()

    error = run("export", "cifar_resnet20", "--seed", "1").exception
    assert isinstance(error, InputError)
    assert "cifar_resnet20.onnx already exists; give --force" in str(error)
    assert Path("cifar_resnet20.onnx").read_bytes() == before

    assert run("export", "cifar_resnet20", "--seed", "1", "--batch", "2", "--force").exit_code == 0
    image = onnx.load("cifar_resnet20.onnx").graph.input[0]
    assert image.type.tensor_type.shape.dim[0].dim_value == 2
    assert Path("cifar_resnet20.onnx").read_bytes() != before


def test_export_refuses_an_unknown_name(tmp_path: Path) -> None:
    error = run("export", "resnet19", "-o", str(tmp_path / "net.onnx")).exception
    assert isinstance(error, InputError)
    assert "no model named 'resnet19'" in str(error)


@pytest.mark.parametrize("command", [(), ("list",), ("export",)])
def test_every_help_page_has_an_example(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example: onnxprune models" in result.output


def test_starting_the_command_imports_nothing_heavy() -> None:
    script = (
        "import sys, onnxprune.cli.models;"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'rich', 'onnx', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_list_runs_without_torch() -> None:
    script = (
        "import sys; from onnxprune.cli.models import models; models(['list'], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["cifar_resnet20", "shufflenet_v2_x0_5_cifar"])
def test_train_learns_from_a_start_with_its_norms_in_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y = np.arange(64) % 2
    x = np.where(y[:, None, None, None] == 1, 160, 90) + rng.integers(-40, 40, (64, 32, 32, 3))
    np.savez("data.npz", x=x.astype(np.uint8), y=y)
    result = run("train", name, "--data", "data.npz", "--preprocess", "cifar10", "--epochs", "2", "--quiet")
    assert result.exit_code == 0, result.output
    nodes = [node.op_type for node in onnx.load(f"{name}.onnx").graph.node]
    assert nodes.count("BatchNormalization") >= 19
    rows = json.loads(Path(f"{name}.report.json").read_text())["epochs"]
    assert rows[2]["loss"] < rows[1]["loss"]


def test_train_names_the_networks_that_have_a_recipe() -> None:
    error = run("train", "vgg16", "--data", "data.npz").exception
    assert isinstance(error, InputError)
    assert "no recipe to train 'vgg16'" in str(error)
    assert all(name in str(error) for name in RECIPES)
    assert set(RECIPES) <= set(zoo.names())


def test_a_start_to_train_from_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((0, 0, 1)):
        files.append(tmp_path / f"{number}.onnx")
        zoo.export("cifar_resnet20", files[-1], seed=seed, to_train=True)
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
