"""Several processes that train one model together, as torchrun starts them; one alone where it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number; 0 tells, saves and writes.
        count: how many there are.
        device: what it computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether it is the one that tells, saves and writes."""
        return self.rank == 0

    def added(self, values: Tensor) -> Tensor:
        """Add up numbers over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def share(self, values: Tensor) -> None:
        """Take over what the first process has."""
        if self.count > 1:
            distributed.broadcast(values, 0)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            distributed.barrier()


def is_first() -> bool:
    """Tell whether this is the process that tells, saves and writes, before it joins the others."""
    return int(os.environ.get("RANK", 0)) == 0


def alone() -> Processes:
    """Train in this process only."""
    return Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one; take a GPU each where there are any."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if not distributed.is_torchelastic_launched() or distributed.is_initialized():
        yield Processes(0, 1, device)
        return
    distributed.init_process_group("nccl" if has_gpu else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
