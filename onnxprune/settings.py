"""What compress is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnxprune import search
from onnxprune.criteria import CRITERIA
from onnxprune.errors import InputError
from onnxprune.verify import LEVELS


@dataclass(frozen=True)
class CompressSettings:
    """What compress is asked for.

    Attributes:
        targets: metric (``macs``, ``params``) to a fraction or an absolute value, as text.
        search: name of a search.
        budget: candidates the search may judge.
        seed: same seed, same plan, as long as `align` is fixed.
        criterion: how channels are ranked within a group.
        align: multiple that widths must be; None chooses by measuring.
        keep: patterns of node names to leave alone.
        min_keep: fewest channels a group keeps.
        approximate: let axes shrink that normalisations average over.
        slots: cut the inside of groups and attention heads instead of whole ones.
        verify: ``none``, ``fast`` or ``full``.
        shapes: sizes for inputs that leave them free.
    """

    targets: dict[str, str]
    search: str = "uniform"
    budget: int = 100
    seed: int = 0
    criterion: str = "l2"
    align: int | None = None
    keep: tuple[str, ...] = ()
    min_keep: int = 1
    approximate: bool = False
    slots: bool = False
    verify: str = "fast"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def check_settings(settings: CompressSettings) -> None:
    """Make sure that the settings name things that exist, before any work is done.

    Raises:
        InputError: one does not.
    """
    if not settings.targets:
        raise InputError("no target: say how small, for example --flops 0.5")
    for option, value, choices in (
        ("--search", settings.search, search.names()),
        ("--criterion", settings.criterion, CRITERIA),
        ("--verify", settings.verify, LEVELS),
    ):
        if value not in choices:
            raise InputError(f"{option} {value!r} does not exist; choose one of {', '.join(choices)}")
    if settings.budget < 1:
        raise InputError(f"--budget {settings.budget}: a search needs at least one candidate")
    if settings.seed < 0:
        raise InputError(f"--seed {settings.seed}: a seed is 0 or more")
