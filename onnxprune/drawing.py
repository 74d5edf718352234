"""The multi-stage graph of a network as a picture: a page for the browser, or text for Graphviz.

Left the blocks, in the order in which they run and in one colour where they are alike; right the groups, each with the
blocks it runs through; below, on the page, each motif operation by operation. A file may hold any text: it is escaped,
and the page runs no scripts and loads nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxprune.blocks import Operation
from onnxprune.errors import InputError
from onnxprune.files import aside, is_same
from onnxprune.picture import TIMES, Picture, Row, clean, end_of, start_of
from onnxprune.stages import Stages
from onnxprune.weights import Floats

GOLDEN = 137.508  # degrees from one colour to the next
MARGIN, WIDE, RIGHT, PAGE = 70, 430, 620, 1200  # pixels: left of the blocks, of a block, left of the groups, in all
BLOCK, ROW = 46, 24  # pixels from one block to the next, and from one group to the next
LAYER, LANE, BEND = 56, 160, 60  # pixels in the drawing of a motif


def check_drawing(path: Path, model: Path, force: bool) -> None:
    """Make sure that a drawing of a model can be written before any work is done.

    Raises:
        InputError: the folder is missing, something is in the way, or the ending tells of no known format.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"--graph {path}: the name must end in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"--graph {path}: the folder {path.parent} does not exist; create it or choose another file")
    if path.is_dir():
        raise InputError(f"--graph {path} is a folder; give a file name")
    if is_same(path, model):
        raise InputError(f"--graph {path} is the input model; choose another name")
    if path.exists() and not force:
        raise InputError(f"{path} exists; choose another --graph or overwrite it with --force")


def draw(stages: Stages, path: Path, title: str, counts: npt.ArrayLike | None = None) -> None:
    """Draw a network, so that no reader sees half of the file.

    Args:
        stages: its graph.
        path: the file; ``.html`` is a page, ``.dot`` is for Graphviz.
        title: what to call the network.
        counts: (groups,) channels kept; all of them if left out.
    """
    text = FORMATS[path.suffix](Picture(stages, title, counts))
    with aside(path) as draft:
        draft.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------- the page


def _html(picture: Picture) -> str:
    """Write a page."""
    style = f"""
body {{ font: 13px system-ui, sans-serif; margin: 24px; color: #223; background: #fff }}
h1 {{ font-size: 18px }} h2 {{ font-size: 15px; margin-top: 32px }} p {{ color: #667; max-width: 70em }}
svg {{ font: 12px system-ui, sans-serif }} svg .small {{ fill: #778; font-size: 11px }}
svg path, svg line {{ fill: none; stroke: #b8bfcc }} svg .flow {{ stroke: #556 }}
.group:hover path {{ stroke: #d33; stroke-width: 2 }} .group:hover text {{ fill: #d33 }}
main {{ display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start }}
figure {{ margin: 0; border: 2px solid; border-radius: 6px; padding: 8px; overflow-x: auto; max-width: {PAGE}px }}
"""
    title = escape(clean(picture.title))
    motifs = len({box.motif for box in picture.boxes})
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{title}</title><style>{style}</style><h1>{title}</h1>",
            f"<p>Left {len(picture.boxes)} blocks in the order in which they run, in one colour where they are alike, "
            "with their share of the original's multiply-accumulates; right the "
            f"{len(picture.rows)} groups of channels that can be cut, each with its width and what goes with all of "
            "its channels, and the blocks that it runs through.</p>",
            _network(picture),
            f"<h2>{motifs} unlike blocks</h2><p>Circles are tensors (channels {TIMES} positions), labels the "
            "operations that make them.</p><main>",
            *_motifs(picture),
            "</main></html>\n",
        ]
    )


def _network(picture: Picture) -> str:
    height = max(len(picture.boxes) * BLOCK, len(picture.rows) * ROW, BLOCK)
    block_y = (np.arange(len(picture.boxes)) + 0.5) * height / max(len(picture.boxes), 1)
    row_y = (np.arange(len(picture.rows)) + 0.5) * height / max(len(picture.rows), 1)
    parts = [
        f'<svg width="{PAGE}" height="{height}"><defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8" class="flow"/></marker></defs>'
    ]
    for before, after in picture.flows:
        start, end = block_y[before], block_y[after]
        if after == before + 1:
            middle = MARGIN + WIDE / 2
            way = f"M{middle:.0f} {start + 16:.1f}V{end - 16:.1f}"
        else:
            bend = MARGIN - min(MARGIN, 16 + 6 * (after - before))
            way = f"M{MARGIN} {start + 6:.1f}C{bend} {start:.1f} {bend} {end:.1f} {MARGIN} {end - 6:.1f}"
        parts.append(f'<path class="flow" marker-end="url(#tip)" d="{way}"/>')
    parts += [_row(row, y, block_y) for row, y in zip(picture.rows, row_y, strict=True)]
    for number, (box, y) in enumerate(zip(picture.boxes, block_y, strict=True)):
        text = clean(picture.text(box))
        parts.append(
            f"<g><title>{escape(text)}</title>"
            f'<rect x="{MARGIN}" y="{y - 16:.1f}" width="{WIDE}" height="32" rx="5" {_colours(box.motif)}/>'
            f'<text x="{MARGIN + 8}" y="{y + 4:.1f}">{number}</text>'
            f'<text x="{MARGIN + 34}" y="{y + 4:.1f}">{escape(start_of(text))}</text>'
            f'<text x="{MARGIN + WIDE - 8}" y="{y + 4:.1f}" text-anchor="end">{box.share:.1%}</text></g>'
        )
    return "\n".join([*parts, "</svg>"])


def _row(row: Row, y: float, block_y: Floats) -> str:
    name, start, end = clean(row.name), MARGIN + WIDE, RIGHT - 4
    middle = (start + end) // 2
    ways = (
        f'<path d="M{start} {block_y[box]:.1f}C{middle} {block_y[box]:.1f} {middle} {y:.1f} {end} {y:.1f}"/>'
        for box in row.boxes
    )
    return (
        f'<g class="group"><title>{escape(name)}</title>{"".join(ways)}'
        f'<text x="{RIGHT}" y="{y + 4:.1f}">{escape(end_of(name))}</text>'
        f'<text x="{RIGHT + 400}" y="{y + 4:.1f}" text-anchor="end">{row.width}</text>'
        f'<text x="{RIGHT + 460}" y="{y + 4:.1f}" text-anchor="end">{row.share:.1%}</text>'
        f'<rect x="{RIGHT + 470}" y="{y - 5:.1f}" width="{min(row.share * 300, PAGE - RIGHT - 470):.1f}" height="10" '
        f'fill="#7a8cb5"/></g>'
    )


def _colours(motif: int) -> str:
    hue = motif * GOLDEN % 360
    return f'fill="hsl({hue:.0f} 65% 88%)" stroke="hsl({hue:.0f} 45% 55%)"'


def _motifs(picture: Picture) -> Iterator[str]:
    """Draw the first block of each motif."""
    count = Counter(box.motif for box in picture.boxes)
    first = {box.motif: box for box in reversed(picture.boxes)}
    for motif, box in sorted(first.items()):
        times = f"{count[motif]} blocks" if count[motif] > 1 else "1 block"
        hue = motif * GOLDEN % 360
        yield f'<figure style="border-color: hsl({hue:.0f} 45% 65%)"><figcaption>{times}</figcaption>'
        yield f"{_motif(picture, box.operations)}</figure>"


def _motif(picture: Picture, operations: list[Operation]) -> str:
    layer, lane = _layout(operations)
    x = {name: BEND + 10 + lane[name] * LANE for name in lane}
    y = {name: 12 + layer[name] * LAYER for name in lane}
    width, height = max(x.values()) + LANE, max(y.values()) + 14
    parts = [f'<svg width="{width}" height="{height}">']
    for operation in operations:
        made = operation.makes[0]
        ends = [*((name, made) for name in operation.reads), *((operation.reads[0], n) for n in operation.makes[1:])]
        for before, after in ends:
            down, far = layer[after] - layer[before], lane[after] != lane[before]
            bend = min(BEND, 14 * down) if down > 1 and not far else 0
            turn = y[after] - 24 if far and down > 1 else y[before] + 24  # past what stands in its own lane
            curve = f"C{x[before] - bend} {turn} {x[after] - bend} {y[after] - 28}"
            way = f"M{x[before]} {y[before] + 5}{curve} {x[after]} {y[after] - 5}"
            parts.append(f'<path marker-end="url(#tip)" d="{way}"/>')
        label = clean(picture.label(operation))
        parts.append(f'<text x="{x[made] + 8}" y="{y[made] - 14}">{escape(end_of(label))}</text>')
    for name in lane:
        parts.append(f'<circle cx="{x[name]}" cy="{y[name]}" r="4" fill="#556"><title>{escape(clean(name))}</title>')
        parts.append(f'</circle><text class="small" x="{x[name] + 8}" y="{y[name] + 4}">{picture.size(name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _layout(operations: list[Operation]) -> tuple[dict[str, int], dict[str, int]]:
    """Place tensors: each a layer below what it is made of, below that itself where there is room."""
    made = {name for operation in operations for name in operation.makes}
    layer: dict[str, int] = {}
    for operation in operations:
        depth = 1 + max((layer[name] for name in operation.reads if name in made), default=0)
        layer.update(dict.fromkeys(operation.makes, depth))
    for operation in operations:  # what comes from outside stands just above what first reads it
        for name in operation.reads:
            if name not in made:
                layer[name] = min(layer.get(name, len(operations)), layer[operation.makes[0]] - 1)
    lane: dict[str, int] = {}
    taken: set[tuple[int, int]] = set()
    widest: dict[int, int] = {}
    for operation in operations:
        for name in (*operation.reads, *operation.makes):
            if name not in lane:
                depth, wanted = layer[name], lane.get(operation.reads[0], 0)
                lane[name] = wanted if (depth, wanted) not in taken else widest[depth] + 1
                widest[depth] = max(widest.get(depth, 0), lane[name])
                taken.add((depth, lane[name]))
    return layer, lane


# ------------------------------------------------------------------------------------------- for Graphviz


def _dot(picture: Picture) -> str:
    """Write a graph for Graphviz."""
    lines = [
        f"digraph {_quoted(picture.title)} {{",
        '  node [fontname="sans-serif" fontsize=10]; edge [color="#555566"];',
    ]
    for number, box in enumerate(picture.boxes):
        hue = box.motif * GOLDEN % 360 / 360
        label = _quoted(f"{number}: {start_of(clean(picture.text(box)))}, {box.share:.1%}")
        lines.append(f'  b{number} [shape=box style="filled,rounded" fillcolor="{hue:.3f} 0.15 0.97" label={label}];')
    for number, row in enumerate(picture.rows):
        lines.append(
            f"  g{number} [shape=ellipse label={_quoted(f'{end_of(row.name)}, {row.width}, {row.share:.1%}')}];"
        )
        lines += [f'  b{box} -> g{number} [dir=none style=dashed color="#b8bfcc"];' for box in row.boxes]
    lines += [f"  b{before} -> b{after};" for before, after in picture.flows]
    return "\n".join([*lines, "}\n"])


def _quoted(text: str) -> str:
    escaped = clean(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


FORMATS = {".html": _html, ".dot": _dot}
"""How to write each kind of file, by its ending."""
