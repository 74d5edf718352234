"""How the zoo's small networks are trained from scratch: one line each, for ``onnxprune models train``.

All by stochastic gradient descent with a cosine; on CIFAR-10 with shifted and mirrored images.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.errors import InputError

from . import describe


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Times that every image is seen.
        rate: Highest learning rate.
        weight_decay: Of weights.
        batch: Images a step.
        cutout: Side of the square that is blanked in each image.
        clip: Most that the norm of all gradients may be; 0 for no limit.
    """

    epochs: int = 200
    rate: float = 0.1
    weight_decay: float = 5e-4
    batch: int = 128
    cutout: int = 0
    clip: float = 0.0


_DEEP = Recipe(weight_decay=1e-4)  # He et al., 2015
_PLAIN = Recipe(rate=0.05)
_SMALL = Recipe(weight_decay=1e-4, clip=5.0)

RECIPES = {
    "cifar_resnet20": _DEEP,
    "cifar_resnet32": _DEEP,
    "cifar_resnet44": _DEEP,
    "cifar_resnet56": _DEEP,
    "cifar_resnet110": Recipe(weight_decay=1e-4, clip=5.0),
    "resnet18_cifar": Recipe(),
    "vgg16_bn_cifar": _PLAIN,
    "mobilenet_v1_cifar": _SMALL,
    "mobilenet_v2_cifar": _SMALL,
    "shufflenet_v1_g3_cifar": _SMALL,
    "shufflenet_v2_x0_5_cifar": _SMALL,
    "shufflenet_v2_x1_0_cifar": _SMALL,
}


def recipe(name: str) -> Recipe:
    """Look up how a network is trained."""
    describe(name)
    if name not in RECIPES:
        raise InputError(f"the zoo has no recipe to train {name!r}; those it has: {', '.join(RECIPES)}")
    return RECIPES[name]
