"""onnxruntime is asked for more than a model's own outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import Builder

from onnxprune import runtime


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_the_outputs_of_convolutions_of_one_input_can_be_asked_for(asked: tuple[int, ...]) -> None:
    b = Builder()
    x = b.stem(8)
    x = b.relu(b.conv(x, 8, 10))
    products = [b.conv(x, 10, 8), b.conv(x, 10, 8)]
    model = b.done(b.conv(b.node("Add", *products), 8, 4))
    names = [products[number] for number in asked]
    feed = {"x": b.rng.standard_normal((2, 3, 6, 6)).astype(np.float32)}
    got = runtime.open_with(model, names, Path()).run(feed, names)
    wanted = runtime.open_with(model, names, Path(), optimize=False).run(feed, names)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(model.graph.output) == 1
