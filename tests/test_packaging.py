"""The wheel holds the whole program, and nothing beside it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel from a copy of the tree, so that nothing is left in it."""
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("needs setuptools and pip")
    folder = tmp_path_factory.mktemp("tree")
    for name in ("onnxprune", "cli", "models"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", "dist"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    (file,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_type_marker(wheel: zipfile.ZipFile) -> None:
    expected = {"onnxprune/py.typed"}
    for name, inside in (("onnxprune", "onnxprune"), ("cli", "onnxprune/cli"), ("models", "onnxprune/models")):
        expected |= {f"{inside}/{file.relative_to(ROOT / name)}" for file in (ROOT / name).rglob("*.py")}
    assert {"onnxprune/cli/main.py", "onnxprune/models/__init__.py", "onnxprune/search/uniform.py"} <= expected
    names = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert names == expected


@pytest.mark.slow
def test_the_wheel_installs_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"onnxprune"}


@pytest.mark.slow
def test_the_wheel_works_where_nothing_else_of_the_tree_is(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "onnxprune = onnxprune.cli.main:main" in wheel.read(entry).decode()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import onnxprune.cli.main as main; print(main.__file__); sys.exit(main.run(['models', 'list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "cifar_resnet20" in done.stdout
