"""Write docs/ops.md from the rules themselves: ``python docs/make_ops.py``."""

from __future__ import annotations

from pathlib import Path

from onnxprune.ops import FAMILIES

HEAD = """# Operators and their rules

Written by `docs/make_ops.py` from `onnxprune/ops/`. An operator that is not here freezes what it touches, with that
reason. Axes that a rule does not mention freeze with the reason in the last column.

| operators | rule | what it does not mention |
|---|---|---|
"""


def text() -> str:
    """Describe every family in a row."""
    rows = []
    for family in FAMILIES:
        first = (family.__doc__ or "").strip().splitlines()[0]
        names = sorted(f"{family.domain}.{op}".lstrip(".") for op in family.ops)
        rows.append(f"| {', '.join(names)} | {first} | {family.why} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("ops.md").write_text(text(), encoding="utf-8")
