"""Makes `oracle` and `nets` importable from every folder of tests, and keeps tests away from the user's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and threads that wait for each other cost most


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Put what runs keep on disk into a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what compress tells of memory in every report: it takes two processes. Tests of it bring it back."""
    for module in ("pipeline", "stepwise"):
        monkeypatch.setattr(f"onnxprune.{module}.try_memory", lambda *given: [])


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time what was cut for a tenth as long, which is most of what a command on a small net takes."""
    monkeypatch.setattr("onnxprune.runtime.MOST_TURNS", 20)
