"""``inspect --graph``: the picture of a network, as a page and for Graphviz."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_nets import convs, residual, run, write
from nets import NETS
from onnx import ModelProto

import onnxprune
from onnxprune import drawing, metrics, model, runtime
from onnxprune.channels import find_channels
from onnxprune.errors import InputError
from onnxprune.stages import Stages

ENDINGS = (".html", ".dot")
VOID = {"meta"}
NASTY = '"></title><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\\N\\"];\n}\u202e\x07'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of its own that holds model.onnx."""
    monkeypatch.chdir(tmp_path)
    write(residual(), tmp_path / "model.onnx")
    return tmp_path


def stages_of(proto: ModelProto) -> Stages:
    channels = find_channels(model.analyse(proto, Path(), runtime.evaluate, {}))
    return Stages(channels, metrics.Costs(channels))


class Page(HTMLParser):
    """Reads a page as a browser would; whatever is opened must be closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def statements(text: str) -> list[str]:
    """Read text for Graphviz, line by line; each is one of the few forms that are written."""
    string = r'"(?:[^"\\\n]|\\\\|\\")*"'
    attribute = rf"\w+=(?:{string}|[\w]+)"
    forms = (
        rf"digraph {string} \{{",
        rf"  node \[{attribute}(?: {attribute})*\]; edge \[{attribute}\];",
        rf"  [bg]\d+(?: -> [bg]\d+)?(?: \[{attribute}(?: {attribute})*\])?;",
        r"\}",
    )
    lines = text.splitlines()
    for line in lines:
        assert any(re.fullmatch(form, line) for form in forms), line
    return lines


def test_a_page_shows_blocks_and_groups_and_loads_nothing(folder: Path) -> None:
    outcome = run("inspect", "model.onnx", "--graph", "graph.html")
    assert outcome.code == 0, outcome.err
    text = (folder / "graph.html").read_text()
    page = Page(text)
    stages = stages_of(residual())
    for group in stages.channels.groups:
        assert group.name in page.texts
        assert str(group.width) in page.texts
    assert page.tags.count("rect") == stages.blocks.count + len(stages.channels.groups)
    assert page.tags.count("figure") == stages.at()[1].count
    assert not {"script", "img", "link", "iframe", "object", "image", "use", "a", "foreignobject"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src")]
    assert "url(" not in text.replace("url(#tip)", "")
    assert "default-src 'none'" in text


def test_text_for_graphviz_has_a_node_for_each_block_and_each_group(folder: Path) -> None:
    assert run("inspect", "model.onnx", "--graph", "graph.dot").code == 0
    text = (folder / "graph.dot").read_text()
    nodes = [line.split()[0] for line in statements(text) if re.match(r"  [bg]\d+ \[", line)]
    stages = stages_of(residual())
    blocks, groups = stages.blocks.count, len(stages.channels.groups)
    assert sorted(nodes) == sorted([*(f"b{n}" for n in range(blocks)), *(f"g{n}" for n in range(groups))])


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_it(folder: Path) -> None:
    proto = residual()
    proto.graph.node[0].name = NASTY
    drawing.draw(stages_of(proto), folder / "graph.dot", NASTY)
    subprocess.run(["dot", "-Tsvg", "graph.dot"], check=True, capture_output=True)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_network_is_drawn_the_same_each_time(folder: Path, ending: str) -> None:
    for name in ("one", "two"):
        assert run("inspect", "model.onnx", "--quiet", "--graph", name + ending).code == 0
    assert (folder / f"one{ending}").read_bytes() == (folder / f"two{ending}").read_bytes()
    assert sorted(file.name for file in folder.iterdir()) == ["model.onnx", f"one{ending}", f"two{ending}"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_a_file_calls_things_is_shown_as_text(tmp_path: Path, ending: str) -> None:
    proto = residual()
    names: dict[str, str] = {}
    for number, node in enumerate(proto.graph.node):
        node.name = f"{number}{NASTY}"
        for tensor in node.output:
            names[tensor] = f"{tensor}{NASTY}"
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    proto.graph.output[0].name = names[proto.graph.output[0].name]
    drawing.draw(stages_of(proto), tmp_path / f"graph{ending}", f"of {NASTY}.onnx")
    text = (tmp_path / f"graph{ending}").read_text(encoding="utf-8")
    assert "\u202e" not in text
    assert "\x07" not in text
    if ending == ".dot":
        statements(text)
    else:
        page = Page(text)
        assert set(page.tags) <= set(Page(page_of(residual(), tmp_path)).tags)
        assert not [name for name, _ in page.attributes if name.startswith("on")]


def page_of(proto: ModelProto, folder: Path) -> str:
    drawing.draw(stages_of(proto), folder / "plain.html", "plain")
    return (folder / "plain.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["concat", "branch_captures_a_weight", "recurrent", "attention", "sklearn_mlp"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_all_kinds_of_networks_can_be_drawn(name: str, ending: str, tmp_path: Path) -> None:
    stages = stages_of(NETS[name].build())
    drawing.draw(stages, tmp_path / f"graph{ending}", name)
    text = (tmp_path / f"graph{ending}").read_text()
    assert Page(text).tags if ending == ".html" else statements(text)


def test_a_cut_network_shows_what_is_left(tmp_path: Path) -> None:
    stages = stages_of(convs())
    counts = np.asarray([group.width for group in stages.channels.groups]) // 2
    drawing.draw(stages, tmp_path / "graph.html", "cut", counts)
    texts = Page((tmp_path / "graph.html").read_text()).texts
    assert {"8 of 16", "12 of 24", "16 of 32"} <= set(texts)


def test_a_file_that_exists_is_kept_unless_force_is_given(folder: Path) -> None:
    (folder / "graph.html").write_text("mine")
    outcome = run("inspect", "model.onnx", "--graph", "graph.html")
    assert outcome.code == 2
    assert outcome.errors == ["error: graph.html exists; choose another --graph or overwrite it with --force"]
    assert (folder / "graph.html").read_text() == "mine"
    assert run("inspect", "model.onnx", "--graph", "graph.html", "--force").code == 0
    assert "svg" in (folder / "graph.html").read_text()


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ("graph.png", "must end in .html or .dot"),
        ("graph", "must end in .html or .dot"),
        ("nowhere/graph.html", "the folder nowhere does not exist"),
        ("folder.dot", "is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(folder: Path, graph: str, says: str) -> None:
    (folder / "folder.dot").mkdir()
    outcome = run("inspect", "missing.onnx", "--graph", graph)
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert says in outcome.errors[0]


def test_the_model_itself_is_never_overwritten(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "model.html")
    before = (folder / "model.html").read_bytes()
    outcome = run("inspect", "model.html", "--graph", "model.html", "--force")
    assert outcome.code == 2
    assert "is the input model" in outcome.errors[0]
    assert (folder / "model.html").read_bytes() == before


def test_a_model_that_cannot_be_read_leaves_no_drawing(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no model")
    assert run("inspect", "model.onnx", "--graph", "graph.html").code == 2
    assert not (folder / "graph.html").exists()


def test_the_library_draws_as_the_program_does(folder: Path) -> None:
    assert run("inspect", "model.onnx", "--graph", "one.html").code == 0
    onnxprune.inspect(folder / "model.onnx", graph=folder / "two.html")
    assert (folder / "one.html").read_bytes() == (folder / "two.html").read_bytes()
    with pytest.raises(InputError, match="--force"):
        onnxprune.inspect(folder / "model.onnx", graph=folder / "two.html")
    onnxprune.inspect(folder / "model.onnx", graph=folder / "two.html", force=True)
    assert onnx.load(folder / "model.onnx").graph.node
