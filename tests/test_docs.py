from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from cli_nets import CLASSES, IMAGE, convs, write
from test_imports import PLACE

ROOT = Path(__file__).parent.parent


def test_the_table_of_operators_is_what_the_rules_say() -> None:
    text = runpy.run_path(str(ROOT / "docs" / "make_ops.py"))["text"]()
    assert (ROOT / "docs" / "ops.md").read_text(encoding="utf-8") == text, "run python docs/make_ops.py"


@pytest.mark.parametrize("file", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_links_lead_somewhere(file: str) -> None:
    page = ROOT / file
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_architecture_page_lists_every_module_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^  (\w+\.py(?:, \w+\.py)*|\w+/)(?= |$)", text[: text.index("\n## ")])
    folder = ROOT / "onnxprune"
    folders = {f"{file.parent.name}/" for file in folder.glob("*/__init__.py")}
    files = {file.name for file in folder.glob("*.py") if file.name != "__init__.py"}
    assert sorted(name for names in listed for name in names.split(", ")) == sorted(files | folders)


def test_the_architecture_page_lists_modules_in_the_order_of_their_imports() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^  (\w+)(?:\.py|/) ", text[: text.index("\n## ")])
    levels = [PLACE[f"onnxprune.{name}"] for name in listed]
    assert levels == sorted(levels)


def test_the_python_of_the_readme_runs_and_writes_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(convs(), Path("model.onnx"))
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((100, *IMAGE)).astype(np.float32), generator.integers(0, CLASSES, 100)
    np.savez("test.npz", x=x, y=y)
    blocks = re.findall(r"(?s)```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"))
    exec("\n".join(blocks), {})
    assert {"small.onnx", "small.report.json", "half.onnx"} <= {file.name for file in tmp_path.iterdir()}
