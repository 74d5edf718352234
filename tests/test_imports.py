"""Imports go down only: what a newcomer reads first never depends on what comes later."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    ("onnxprune.cli",),
    ("onnxprune",),  # the public functions
    ("onnxprune.pipeline", "onnxprune.finetuning", "onnxprune.policies"),
    ("onnxprune.stepwise",),
    ("onnxprune.summary", "onnxprune.outputs", "onnxprune.dropping"),
    ("onnxprune.attempts", "onnxprune.finish"),
    ("onnxprune.limits", "onnxprune.runs"),
    ("onnxprune.measured",),
    ("onnxprune.attempt", "onnxprune.inspection", "onnxprune.workers"),
    ("onnxprune.prepare", "onnxprune.journal", "onnxprune.course", "onnxprune.records"),
    ("onnxprune.settings",),
    ("onnxprune.search",),
    ("onnxprune.search.policy",),
    ("onnxprune.judging", "onnxprune.drawing", "onnxprune.predicting"),
    ("onnxprune.problem", "onnxprune.verify", "onnxprune.picture"),
    ("onnxprune.lossless", "onnxprune.evaluation", "onnxprune.repair", "onnxprune.criteria", "onnxprune.stages"),
    ("onnxprune.training", "onnxprune.comparing"),
    ("onnxprune.training.functions",),
    ("onnxprune.answers", "onnxprune.obs", "onnxprune.groups"),
    ("onnxprune.statistics", "onnxprune.worths"),
    ("onnxprune.original", "onnxprune.seats", "onnxprune.extents", "onnxprune.targets"),
    ("onnxprune.metrics", "onnxprune.data", "onnxprune.zeroing", "onnxprune.readers", "onnxprune.moments"),
    ("onnxprune.surgery", "onnxprune.constants", "onnxprune.images", "onnxprune.arrays", "onnxprune.walk"),
    ("onnxprune.plan", "onnxprune.linear", "onnxprune.quantized", "onnxprune.draft", "onnxprune.inputs"),
    ("onnxprune.blocks", "onnxprune.batchnorm"),
    ("onnxprune.profiling",),
    ("onnxprune.depth", "onnxprune.runtime", "onnxprune.reporting", "onnxprune.numbers", "onnxprune.patches"),
    ("onnxprune.channels",),
    ("onnxprune.balancing", "onnxprune.regrouping"),
    ("onnxprune.components",),
    ("onnxprune.tying",),
    ("onnxprune.ops",),
    ("onnxprune.model",),
    ("onnxprune.dequantizing",),
    ("onnxprune.shapes", "onnxprune.progress"),
    ("onnxprune.preprocess",),
    ("onnxprune.weights", "onnxprune.files", "onnxprune.nodes"),
    ("onnxprune.errors",),
)
"""From top to bottom; modules of one line know nothing of each other."""

PLACE = {name: level for level, names in enumerate(LAYERS) for name in names}
PACKAGES = {"onnxprune": ROOT / "onnxprune", "onnxprune.cli": ROOT / "cli", "onnxprune.models": ROOT / "models"}


def modules() -> dict[str, Path]:
    """Every module of the distribution, by the name it is imported under."""
    found = {}
    for package, folder in PACKAGES.items():
        for file in folder.rglob("*.py"):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Every module that a module imports, wherever in it, but for those it names for type checkers only."""
    file = MODULES[name]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def unit(name: str) -> str:
    """The module or package of the list above that a module belongs to."""
    package = name.rpartition(".")[0]
    return name if name in PLACE or package == "onnxprune" else package


def test_every_module_has_its_place() -> None:
    units = {unit(name) for name in MODULES if not name.startswith("onnxprune.models")}
    assert units == set(PLACE)


@pytest.mark.parametrize("name", [n for n in MODULES if not n.startswith("onnxprune.models")])
def test_a_module_imports_only_what_lies_below_it(name: str) -> None:
    own = unit(name)
    for other in imported(name):
        if not other.startswith("onnxprune") or unit(other) == own:
            continue
        if other.startswith("onnxprune.models"):
            assert own == "onnxprune.cli", f"{name} imports {other}"
        elif name != "onnxprune":
            assert PLACE[unit(other)] > PLACE[own], f"{name} imports {other}"


def test_the_zoo_knows_nothing_of_the_rest_but_its_errors() -> None:
    for name in MODULES:
        if name.startswith("onnxprune.models"):
            ours = {other for other in imported(name) if other.startswith("onnxprune")}
            assert {o for o in ours if not o.startswith("onnxprune.models")} <= {"onnxprune.errors"}, name


def test_onnxruntime_has_one_user() -> None:
    users = {name for name in MODULES for other in imported(name) if other.split(".")[0] == "onnxruntime"}
    assert users == {"onnxprune.runtime"}


def test_torch_is_for_training_searching_and_the_zoo() -> None:
    users = {name for name in MODULES for other in imported(name) if other.split(".")[0] == "torch"}
    allowed = ("onnxprune.models", "onnxprune.search", "onnxprune.training")
    assert users
    assert all(name.startswith(allowed) for name in users)


def test_the_commands_import_nothing_heavy_before_they_run() -> None:
    for name in MODULES:
        if not name.startswith("onnxprune.cli"):
            continue
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        roots = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
        froms = {(node.module or "") for node in top if isinstance(node, ast.ImportFrom) and not node.level}
        assert not roots & {"numpy", "onnx", "onnxruntime", "torch", "rich", "scipy"}, name
        assert {module for module in froms if module.startswith("onnxprune")} <= {"onnxprune.errors"}, name


def test_every_package_folder_is_declared() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    assert set(setup["packages"]) == folders
    for package, folder in setup["package-dir"].items():
        assert (ROOT / folder / "__init__.py").samefile(PACKAGES[package] / "__init__.py")
    for file in MODULES.values():
        assert (file.parent / "__init__.py").exists(), f"{file} lies in a folder that is no package"
