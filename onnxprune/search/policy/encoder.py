"""The multi-stage graph network (m-GNN): each stage's graphs are embedded once, and feed the edges of the next stage.

After GNN-RL (arXiv 2102.03214), where motifs are embedded first and become the edges of the level above. Any number of
stages: the network folds over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import GINEConv, global_max_pool, global_mean_pool

from onnxprune.stages import Stage


@dataclass(frozen=True)
class Level:
    """A stage of several networks, or of one at several widths, side by side.

    Attributes:
        nodes: (nodes, node features).
        edges: (2, edges) source and target.
        features: (edges, edge features).
        part: (edges,) the graph of the level before whose embedding belongs to the edge, -1 for none.
        graph: (nodes,) the graph that a node belongs to.
        count: number of graphs.
    """

    nodes: Tensor
    edges: Tensor
    features: Tensor
    part: Tensor
    graph: Tensor
    count: int


def batch(states: Sequence[Sequence[Stage]]) -> list[Level]:
    """Put the graphs of several states side by side; the last level has one graph a state."""
    return side_by_side([[_level(stage) for stage in stages] for stages in states])


def _level(stage: Stage) -> Level:
    nodes, features = torch.from_numpy(stage.nodes), torch.from_numpy(stage.features)
    edges, part, graph = (torch.from_numpy(numbers) for numbers in (stage.edges, stage.part, stage.graph))
    return Level(nodes, edges, features, part, graph, stage.count)


def side_by_side(batches: Sequence[Sequence[Level]]) -> list[Level]:
    """Put several batches side by side."""
    found, below = list[Level](), np.zeros(len(batches), np.int64)
    for levels in zip(*batches, strict=True):
        nodes = np.cumsum([0, *(len(level.nodes) for level in levels)]).tolist()
        graphs = np.cumsum([0, *(level.count for level in levels)])
        parts = [torch.where(lv.part < 0, -1, lv.part + b) for lv, b in zip(levels, below.tolist(), strict=True)]
        found.append(
            Level(
                torch.cat([level.nodes for level in levels]),
                torch.cat([level.edges + n for level, n in zip(levels, nodes, strict=False)], dim=1),
                torch.cat([level.features for level in levels]),
                torch.cat(parts),
                torch.cat([level.graph + g for level, g in zip(levels, graphs.tolist(), strict=False)]),
                int(graphs[-1]),
            )
        )
        below = graphs[:-1]
    return found


class Encoder(nn.Module):
    """Embeds the nodes of the last stage, and the network as a whole.

    Args:
        sizes: per stage the numbers of node and of edge features.
        width: of all embeddings.
        rounds: of messages in each stage.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], width: int, rounds: Sequence[int]) -> None:
        super().__init__()
        below = (0, *(width for _ in sizes[1:]))
        self.stages = nn.ModuleList(
            _StageEncoder(nodes, edges + under, width, count)
            for (nodes, edges), under, count in zip(sizes, below, rounds, strict=True)
        )

    def forward(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        """Embed a batch of states.

        Returns:
            (nodes of the last level, width), and (states, width).
        """
        pooled: Tensor | None = None
        for encoder, level in zip(self.stages, levels, strict=True):
            embedded, pooled = encoder(level, pooled)
        assert pooled is not None
        return embedded, pooled


class _StageEncoder(nn.Module):
    """Messages in both directions, in several rounds, and one embedding for each graph.

    Args:
        nodes: features of a node.
        edges: features of an edge, what comes from the stage before included.
        width: of embeddings.
        rounds: of messages.
    """

    def __init__(self, nodes: int, edges: int, width: int, rounds: int) -> None:
        super().__init__()
        self.node = nn.Sequential(nn.Linear(nodes, width), nn.ReLU(), nn.Linear(width, width))
        self.edge = nn.Linear(edges, width)
        self.forth = nn.ModuleList(_messages(width) for _ in range(rounds))
        self.back = nn.ModuleList(_messages(width) for _ in range(rounds))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(rounds))
        self.pool = nn.Sequential(nn.Linear(2 * width, width), nn.Tanh())

    def forward(self, level: Level, below: Tensor | None) -> tuple[Tensor, Tensor]:
        features = level.features
        if below is not None:
            nothing = below.new_zeros(1, below.shape[1])
            features = torch.cat([features, torch.cat([below, nothing])[level.part]], dim=1)
        x, edges = self.node(level.nodes), self.edge(features)
        for forth, back, norm in zip(self.forth, self.back, self.norms, strict=True):
            y = norm(x)
            x = x + forth(y, level.edges, edges) + back(y, level.edges.flip(0), edges)
        pools = [pool(x, level.graph, level.count) for pool in (global_mean_pool, global_max_pool)]
        return x, self.pool(torch.cat(pools, dim=1))


def _messages(width: int) -> GINEConv:
    return GINEConv(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)), aggr="mean")
