"""One family of errors. Every message says what is wrong, where, and what to do about it."""

from __future__ import annotations


class OnnxPruneError(Exception):
    """Anything this package raises on purpose."""

    exit_code = 1


class InputError(OnnxPruneError):
    """The user can mend it: a bad option, a missing or broken file, data that does not fit the model."""

    exit_code = 2


class LostWorkerError(InputError):
    """A process was ended from outside; what was done before holds, and the run can go on."""


class TargetError(OnnxPruneError):
    """The target cannot be reached; the message names the lowest value that can."""

    exit_code = 3


class InterruptedRunError(OnnxPruneError):
    """The user stopped a run that can go on; the message says how."""

    exit_code = 130


class VerifyError(OnnxPruneError):
    """A result failed its own verification and was not written: a defect of this package, please report it."""


def at(name: str, op: str) -> str:
    """Name a node for a message: ``node 'conv1' (Conv)``."""
    return f"node {name!r} ({op})" if name else f"an unnamed {op} node"
