from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_table_of_operators_is_what_the_rules_say() -> None:
    text = runpy.run_path(str(ROOT / "docs" / "make_ops.py"))["text"]()
    assert (ROOT / "docs" / "ops.md").read_text(encoding="utf-8") == text, "run python docs/make_ops.py"


@pytest.mark.parametrize("file", ["README.md", *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))])
def test_links_lead_somewhere(file: str) -> None:
    page = ROOT / file
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "name", ["pipeline", "surgery", "channels", "metrics", "problem", "verify", "runtime", "shapes"]
)
def test_the_architecture_page_knows_the_module(name: str) -> None:
    assert (ROOT / "onnxprune" / f"{name}.py").exists()
    assert f"{name}.py" in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
