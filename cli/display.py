"""What the commands share: options, progress, numbers for people, JSON results."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LARGEST_SIZE = 2**31 - 1
ESTIMATE_AFTER = 2.0  # seconds before the time left is estimated
PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal
DATA_FORMS = "an .npz with x (and y) or an array for each input, an .npy, a folder of images, or module:function"

Function = TypeVar("Function", bound=Callable[..., Any])

shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=N,C,H,W",
    help="Sizes of an input that leaves them free; repeatable.",
)


def check_json(file: Path | None, out: Path | None = None) -> None:
    """Refuse a file for --json that holds no JSON, or is another of the files of a command, before any work is done.

    Args:
        file: what --json names.
        out: the file that the command writes, whose plan and report go beside it.

    Raises:
        InputError: it cannot be written, or what is read or written would be lost.
    """
    from onnxprune.files import is_same
    from onnxprune.outputs import written_files

    if file is None or str(file) == "-":
        return
    if not file.parent.is_dir():
        raise InputError(f"--json {file}: the folder {file.parent} does not exist; create it or choose another file")
    given = click.get_current_context().params
    values = [value for name, value in given.items() if name != "json_file"]
    several = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    files = [Path(value) for value in several if isinstance(value, str | Path)]
    files += [] if out is None else written_files(out)
    if any(file.resolve() == other.resolve() or is_same(file, other) for other in files):
        raise InputError(f"--json {file} would overwrite another file of this command; choose another name")
    if file.is_file():
        with file.open("rb") as opened:
            begins = opened.read(100).lstrip()
        if begins and begins[:1] not in (b"{", b"["):
            raise InputError(f"--json {file} would overwrite a file that holds no JSON; --json takes the file to write")


keep_option = click.option(
    "--keep", multiple=True, metavar="PATTERN", help="Leave the nodes of this name alone (* and ? match); repeatable."
)
approximate_option = click.option(
    "--approximate",
    is_flag=True,
    help="Let axes shrink that normalisations average over (LayerNorm); the rest of the network then sees other means.",
)
slots_option = click.option(
    "--slots",
    is_flag=True,
    help="Cut the inside of convolution groups and attention heads, instead of whole groups and heads.",
)
json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the result as JSON to this file (-: print it, best with --quiet).",
)
force_option = click.option("--force", is_flag=True, help="Overwrite existing files.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
verify_option = click.option(
    "--verify",
    type=click.Choice(["none", "fast", "full"]),
    default="fast",
    show_default=True,
    help="How thoroughly the result is checked before it is written.",
)
provider_option = click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="What runs models that are measured: cpu, cuda, tensorrt, or another one of the installed onnxruntime.",
)
batch_option = click.option(
    "--batch", type=int, help="Samples at a time while models are measured (default: 1, or what the file fixes)."
)
threads_option = click.option(
    "--threads",
    default=1,
    show_default=True,
    help="Threads of one operator while models are measured; 0 leaves it to onnxruntime, as users do who set nothing.",
)
preprocess_option = click.option(
    "--preprocess",
    default="none",
    show_default=True,
    help="How pixels become inputs: cifar10, imagenet, inception, none, or a file like preprocessor_config.json.",
)
label_offset_option = click.option(
    "--label-offset", default=0, show_default=True, help="The output index of a class is its label plus this."
)


def model_argument(function: Function) -> Function:
    """Add the argument MODEL."""
    return click.argument("model", type=click.Path(path_type=Path))(function)


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Read ``image=1,3,224,224`` (``1x3x224x224`` too).

    Raises:
        InputError: it reads otherwise.
    """
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        try:
            shapes[name] = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            name = ""
        if not name or max(shapes[name]) > LARGEST_SIZE:
            raise InputError(f"--shape {text!r}: write the input's name and its sizes, such as image=1,3,224,224")
    return shapes


def parse_shares(text: str) -> tuple[float, ...]:
    """Read ``0.6,0.4``.

    Raises:
        InputError: it reads otherwise.
    """
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError as error:
        raise InputError(f"--flops {text}: give shares separated by commas, such as 0.6,0.4") from error


class Shown:
    """Progress on the error stream: a live line on a terminal, a line now and then elsewhere, nothing when quiet.

    Args:
        quiet: whether to show nothing.
        clock: gives the time in seconds.
    """

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet = quiet
        self._clock = clock
        self._name = ""
        self._live = sys.stderr.isatty() and not quiet
        self._pace = Pace(clock())
        self._told = clock()  # when a plain line was last written

    def say(self, text: str) -> None:
        """Print a line of the result."""
        if self.quiet:
            return
        self.close()
        click.echo(text)
        self._redraw(f"{self._name} ...")

    def stage(self, name: str) -> None:
        """Say that a stage begins."""
        self._name = name
        self._told = self._clock()
        self._pace = Pace(self._told)
        self._redraw(f"{name} ...")
        if not self._live and not self.quiet:
            click.echo(f"{name} ...", err=True)

    def step(self, done: int, total: int, text: str = "", limit: float | None = None) -> None:
        """Say how far the stage is, what it has come to, and about how long it will still take."""
        now = self._clock()
        left = self._pace.left(done, total, now)
        if left is not None and limit is not None:
            left = min(left, limit)
        parts = [f"{done}/{total}", text, "" if left is None else f"about {_duration(left)} left"]
        line = f"{self._name} ... {', '.join(part for part in parts if part)}"
        self._redraw(line)
        if not self._live and not self.quiet and now - self._told >= PLAIN_EVERY:
            self._told = now
            click.echo(line, err=True)

    def close(self) -> None:
        """Clear the live line."""
        self._redraw("")

    def _redraw(self, text: str) -> None:
        if self._live:
            click.echo(f"\r\033[K{text}", err=True, nl=False)


class Pace:
    """How fast something goes that is counted; a stage may count one thing after another.

    Args:
        now: when it begins, in seconds.
    """

    def __init__(self, now: float) -> None:
        self._start = self._last = now
        self._done = self._total = 0

    def left(self, done: int, total: int, now: float) -> float | None:
        """Estimate how many seconds are left; None where it is too early to tell, or nothing is left."""
        if total != self._total or done < self._done:  # something else is counted now
            self._start = self._last
        self._done, self._total, self._last = done, total, now
        elapsed = now - self._start
        return elapsed * (total - done) / done if elapsed >= ESTIMATE_AFTER and 0 < done < total else None


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def console() -> Console:
    """Open the terminal for tables; as wide as they need where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)


def table(title: str, *columns: str) -> Table:
    """Start a table; every column but the first is set to the right where it holds numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in columns:
        made.add_column(name.strip(), justify="right" if name.startswith(" ") else "left", overflow="fold")
    return made


def again(flag: str) -> str:
    """Write the command that is running once more, with a flag at its end."""
    return shlex.join(["onnxprune", *(word for word in sys.argv[1:] if word != flag), flag])


def write_result(json_file: Path | None, content: Any) -> None:
    """Write a command's result as JSON where it was asked for.

    Raises:
        InputError: the file cannot be written.
    """
    from onnxprune.files import aside, json_text

    if json_file is None:
        return
    text = json_text(content, indent=1)
    if str(json_file) == "-":
        click.echo(text)
        return
    try:
        if json_file.exists() and not json_file.is_file():  # a pipe, which nothing can take the place of
            json_file.write_text(text + "\n", encoding="utf-8")
            return
        with aside(json_file.resolve()) as draft:
            draft.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json {json_file} cannot be written: {error.strerror}") from error


def count(number: float) -> str:
    """Write a large count for people: 125.5M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.4g}{unit}"
    return f"{number:.0f}"


def threads(number: int) -> str:
    """Say how many threads one operator may use."""
    return {0: "threads as onnxruntime chooses", 1: "1 thread"}.get(number, f"{number} threads")


def group_name(group: Mapping[str, Any]) -> str:
    """Name a group, and say where cutting it is only approximate."""
    return f"{group['name']} (approximate)" if group["approximate"] else str(group["name"])
