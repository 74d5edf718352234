"""The program ``onnxprune``: finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import io
import sys
import traceback

import click

from onnxprune.errors import OnnxPruneError, VerifyError

COMMANDS = {
    "apply": "onnxprune.cli.apply:apply",
    "compress": "onnxprune.cli.compress:compress",
    "evaluate": "onnxprune.cli.evaluate:evaluate",
    "finetune": "onnxprune.cli.finetune:finetune",
    "inspect": "onnxprune.cli.inspect:inspect",
    "models": "onnxprune.cli.models:models",
    "policy": "onnxprune.cli.policy:policy",
    "profile": "onnxprune.cli.profile:profile",
}
"""Where each command lives; it is imported when it is called, so that the program starts at once."""

INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: onnxprune compress model.onnx --flops 0.5 -o small.onnx",
)
@click.version_option(package_name="onnxprune")
def onnxprune() -> None:
    """Take an ONNX model, give back a smaller one that is really faster."""


def main(arguments: list[str] | None = None) -> None:
    """Run the program and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold what no text does
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the program.

    Returns:
        0 done; 1 a defect of this program; 2 something the user can mend; 3 a target that cannot be reached;
        130 interrupted.
    """
    try:
        code = onnxprune.main(arguments or ["--help"], prog_name="onnxprune", standalone_mode=False)
    except click.ClickException as error:
        help_hint = " (--help lists the options)" if isinstance(error, click.UsageError) else ""
        return _fail(f"{error.format_message()}{help_hint}", 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; nothing was written, run the same command to start again", INTERRUPTED)
    except VerifyError as error:
        return _fail(f"{error}; nothing was written. This is a defect of onnxprune, please report it", 1)
    except OnnxPruneError as error:
        return _fail(_with_notes(str(error), error), error.exit_code)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        text = f"{error.strerror or error}{place}; free space or choose another place"
        return _fail(_with_notes(text, error), 2)
    except MemoryError as error:
        text = "not enough memory for this model; close other programs, or give smaller sizes with --shape"
        return _fail(_with_notes(text, error), 2)
    except Exception:
        traceback.print_exc()
        return _fail("this is a defect of onnxprune, please report it with the lines above", 1)
    return code if isinstance(code, int) else 0


def _with_notes(message: str, error: BaseException) -> str:
    return "; ".join([message, *getattr(error, "__notes__", ())])


def _fail(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code
