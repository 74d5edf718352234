"""Augmented images are the old ones, moved, mirrored, cropped or with a hole, and the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from onnxprune.training.augment import augment, choose, cropped, mirrored, shifted, with_hole


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=generator(9)) + 0.1


def test_each_image_is_moved_by_its_own_steps_and_zeros_come_in() -> None:
    x = images()
    y = shifted(x, generator())
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    steps = set()
    for one, big in zip(y, padded, strict=True):
        places = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(one, big[:, top : top + 32, left : left + 32])
        ]
        assert len(places) == 1
        steps.update(places)
    assert {top for top, _ in steps} == {left for _, left in steps} == set(range(9))


def test_about_half_of_the_images_are_mirrored_and_none_is_changed_otherwise() -> None:
    x = images(400, 8)
    y = mirrored(x, generator())
    same = [torch.equal(a, b) for a, b in zip(x, y, strict=True)]
    turned = [torch.equal(a.flip(2), b) for a, b in zip(x, y, strict=True)]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 150 < sum(turned) < 250


def test_a_crop_shows_a_part_of_the_image_at_full_size() -> None:
    rows = torch.linspace(0, 1, 64).reshape(1, 1, 64, 1).expand(200, 1, 64, 64)
    y = cropped(rows, generator())
    assert y.shape == rows.shape
    first, last = y[:, 0, 0, 32], y[:, 0, -1, 32]
    assert (last > first).all()
    share = last - first  # of the height that is seen
    assert 0.5 < share.mean() < 0.95
    assert share.min() > 0.4
    assert share.max() < 1.01
    assert first.std() > 0.02


def test_a_hole_is_a_square_of_zeros_wherever_it_fits() -> None:
    holes = (with_hole(images(300), 8, generator()) == 0).all(dim=1)
    sides = [(int(h.any(1).sum()), int(h.any(0).sum())) for h in holes]
    assert all(int(h.sum()) == a * b for h, (a, b) in zip(holes, sides, strict=True))
    assert max(a for a, _ in sides) == 8
    assert min(a for a, _ in sides) >= 4
    assert holes.any(0).all()


@pytest.mark.parametrize("how", ["small", "imagenet", "none"])
def test_the_same_seed_shows_the_same_images(how: str) -> None:
    x = images(8)
    assert torch.equal(augment(x, how, generator(), 4), augment(x, how, generator(), 4))
    other = augment(x, how, generator(1), 4)
    assert torch.equal(augment(x, how, generator(), 4), other) == (how == "none")


@pytest.mark.parametrize(
    ("asked", "shape", "how"),
    [
        ("auto", (2, 3, 32, 32), "small"),
        ("auto", (2, 1, 64, 64), "small"),
        ("auto", (2, 3, 224, 224), "imagenet"),
        ("auto", (2, 64, 8, 8), "none"),  # features, not pixels
        ("auto", (2, 3, 100), "none"),
        ("none", (2, 3, 32, 32), "none"),
    ],
)
def test_how_follows_from_the_size_of_the_images(asked: str, shape: tuple[int, ...], how: str) -> None:
    assert choose(asked, shape) == how


@pytest.mark.parametrize("how", ["small", "imagenet"])
def test_images_of_bytes_are_shown_like_those_of_floats(how: str) -> None:
    x = (images(8) * 200).to(torch.uint8)
    shown = augment(x, how, generator(), cutout=6)
    assert shown.dtype == torch.uint8
    torch.testing.assert_close(shown.float(), augment(x.float(), how, generator(), cutout=6).round())
