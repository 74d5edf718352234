"""What compress is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from onnxprune import runtime, search
from onnxprune.criteria import CRITERIA, NEED_DATA
from onnxprune.data import CHOICES
from onnxprune.errors import InputError
from onnxprune.metrics import LATENCY, MEMORY
from onnxprune.predicting.device import Device
from onnxprune.targets import parse_target
from onnxprune.verify import LEVELS


@dataclass(frozen=True)
class CompressSettings:
    """What compress is asked for.

    Attributes:
        targets: metric (``macs``, ``params``, ``latency_us``, ``memory_bytes``) to a fraction or an absolute value,
            as text.
        max_drop: in place of targets, the points of accuracy (or agreement) that may be lost.
        search: name of a search; None chooses by whether there is data.
        policy: file of the policy that `gnn_rl` starts from; None: it knows nothing at first.
        policy_preset: ``default``, or ``paper`` for `gnn_rl` as it was published.
        budget: candidates the search may judge.
        time_limit: seconds that the search may take, over all its interruptions; None: as many as it needs.
        seed: same seed, same plan, as long as `align` is fixed.
        criterion: how channels are ranked; None chooses by whether there is data.
        repair: how a cut model is repaired, see `REPAIRS`.
        finetune_epochs: times that the repaired model is trained on all samples; 0 leaves it as it is.
        choose: the epoch that is taken: ``best`` by the samples of the search, or ``last``, for samples that the model
            was trained on before.
        steps: times that a part is cut, repaired and trained, one after the other.
        calibration: the most samples that statistics and repair look at; None: 2,048, or fewer of a large model.
        workers: processes that judge candidates.
        align: multiple that widths must be; None tries some and measures the results; ``auto`` measures cuts first
            and takes the finest one that none is faster than.
        keep: patterns of node names to leave alone.
        min_keep: fewest channels a group keeps.
        approximate: let axes shrink that normalisations average over.
        slots: cut the inside of groups and attention heads instead of whole ones.
        verify: ``none``, ``fast`` or ``full``.
        shapes: sizes for inputs that leave them free.
        provider: what runs models whose time is measured, a key of `runtime.PROVIDERS` or onnxruntime's own name.
        threads: for one operator while time is measured; 0 leaves it to onnxruntime.
        batch: samples at a time while time is measured; None: 1, or what the file fixes.
    """

    targets: dict[str, str] = field(default_factory=dict)
    max_drop: float | None = None
    search: str | None = None
    policy: str | None = None
    policy_preset: str = "default"
    budget: int = 100
    time_limit: float | None = None
    seed: int = 0
    criterion: str | None = None
    repair: str = "least_squares"
    finetune_epochs: int = 0
    choose: str = "best"
    steps: int = 1
    calibration: int | None = None
    workers: int = 1
    align: int | Literal["auto"] | None = None
    keep: tuple[str, ...] = ()
    min_keep: int = 1
    approximate: bool = False
    slots: bool = False
    verify: str = "fast"
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    provider: str = "cpu"
    threads: int = 1
    batch: int | None = None

    @property
    def multiple(self) -> int | None:
        """What widths must be a multiple of; None: that is left open."""
        return None if self.align == "auto" else self.align

    @property
    def names_policy(self) -> bool:
        """Whether a policy or a preset is asked for, which `gnn_rl` alone has."""
        return self.policy is not None or self.policy_preset != "default"

    @property
    def device(self) -> Device:
        """What times are measured on."""
        return Device(runtime.provider_name(self.provider), self.threads, self.batch)


LARGEST_SEED = 2**32
LONGEST = 1e9  # seconds

REPAIRS = ("least_squares", "bn", "none")
"""How a cut model is repaired."""


SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def parse_seconds(text: str) -> float:
    """Read a time: ``90``, ``90s``, ``10m`` or ``2h``.

    Raises:
        InputError: it reads otherwise.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", text.lower())
    if match is None:
        raise InputError(f"--time-limit {text}: give seconds, or a time such as 90s, 10m or 2h")
    return float(match[1]) * SECONDS[match[2]]


def resolve(settings: CompressSettings, has_data: bool) -> CompressSettings:
    """Choose what was left open, and make sure that the settings name things that exist, before any work is done.

    Raises:
        InputError: one does not, or needs data where there is none.
    """
    default = "gnn_rl" if settings.names_policy else "greedy" if has_data else "uniform"
    chosen = replace(
        settings,
        search=default if settings.search is None else settings.search,
        criterion=("obs" if has_data else "l2") if settings.criterion is None else settings.criterion,
    )
    _check(chosen)
    if not has_data and chosen.criterion in NEED_DATA:
        raise InputError(f"--criterion {chosen.criterion} looks at what the model computes; give --data, or use l2")
    if not has_data and chosen.max_drop is not None:
        raise InputError(
            "--max-drop needs --data to measure what is lost; give --data, or a target such as --flops 0.5"
        )
    if not has_data and chosen.repair not in (CompressSettings.repair, "none"):
        raise InputError(f"--repair {chosen.repair} needs samples to repair with; give --data, or leave it out")
    if not has_data and chosen.finetune_epochs:
        raise InputError("--finetune-epochs needs samples to train on; give --data")
    if chosen.policy is not None:  # a run may go on from another working folder
        chosen = replace(chosen, policy=str(Path(chosen.policy).absolute()))
    return chosen if has_data else replace(chosen, repair="none")


def _check(settings: CompressSettings) -> None:
    if settings.max_drop is None and not settings.targets:
        raise InputError("no target: say how small, for example --flops 0.5")
    if settings.max_drop is not None and settings.targets:
        raise InputError("--max-drop finds the smallest model by itself; leave the other targets out")
    for metric, text in settings.targets.items():
        parse_target(metric, text, original=1)  # the model is not read yet
    if settings.max_drop is not None and not 0 <= settings.max_drop < 100:
        raise InputError(f"--max-drop {settings.max_drop}: give points of accuracy from 0 to 100, for example 1.0")
    for option, value, choices in (
        ("--search", settings.search, search.names()),
        ("--criterion", settings.criterion, CRITERIA),
        ("--repair", settings.repair, REPAIRS),
        ("--verify", settings.verify, LEVELS),
        ("--choose", settings.choose, CHOICES),
        ("--policy-preset", settings.policy_preset, search.PRESETS),
    ):
        if value not in choices:
            raise InputError(f"{option} {value!r} does not exist; choose one of {', '.join(choices)}")
    if settings.search != "gnn_rl" and settings.names_policy:
        raise InputError(f"--search {settings.search} has no policy; leave --policy and --policy-preset to gnn_rl")
    if settings.policy is not None and settings.policy_preset != "default":
        raise InputError("--policy-preset paper learns from nothing each time; leave --policy out")
    if settings.policy is not None and not Path(settings.policy).is_file():
        raise InputError(f"--policy {settings.policy}: no such file; make one with `onnxprune policy train`")
    if settings.choose != CompressSettings.choose and not settings.finetune_epochs:
        raise InputError(f"--choose {settings.choose} takes an epoch of training; give --finetune-epochs as well")
    if settings.budget < 1:
        raise InputError(f"--budget {settings.budget}: a search needs at least one candidate")
    if settings.time_limit is not None and not 0 < settings.time_limit < LONGEST:
        raise InputError(f"--time-limit {settings.time_limit:g}: give seconds above 0, or a time such as 90s, 10m, 2h")
    if settings.calibration is not None and settings.calibration < 1:
        raise InputError(f"--calibration {settings.calibration}: at least one sample is needed")
    if settings.finetune_epochs < 0:
        raise InputError(f"--finetune-epochs {settings.finetune_epochs}: give 0 or more")
    if settings.steps < 1:
        raise InputError(f"--steps {settings.steps}: at least one step is needed")
    if settings.steps > 1 and (not settings.finetune_epochs or settings.max_drop is not None):
        raise InputError("--steps trains between cuts, towards a target; give --finetune-epochs, and no --max-drop")
    if {LATENCY, MEMORY} & settings.targets.keys() and (settings.verify == "none" or settings.steps > 1):
        raise InputError("--latency and --memory measure what is cut, in one step; leave --verify none and --steps out")
    if settings.threads < 0 or (settings.batch is not None and settings.batch < 1):
        raise InputError("--threads must be 0 or more, and --batch 1 or more")
    if settings.multiple is not None and settings.multiple < 1:
        raise InputError(f"--align {settings.align}: give 1 or more, or auto")
    if settings.workers < 1:
        raise InputError(f"--workers {settings.workers}: at least one process is needed")
    check_seed(settings.seed)


def check_seed(seed: int) -> None:
    """Make sure that everything that draws numbers can draw them from a seed.

    Raises:
        InputError: it cannot.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed {seed}: give a number from 0 to {LARGEST_SEED}")
