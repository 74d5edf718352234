"""The model zoo: well-known networks, built in PyTorch with seeded weights and exported to ONNX.

One line of the registry below is one network. Its `file` is a module of this folder that offers
``network(input_shape, classes, **options) -> torch.nn.Module``. To add a network, write that file and one line here.
Reading the registry does not import PyTorch.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ZooEntry", "names", "describe", "build", "blueprint", "export"]


@dataclass(frozen=True)
class ZooEntry:
    """One network of the zoo.

    Attributes:
        name: What the user calls it.
        input_shape: Channels, height and width of one image.
        classes: Number of classes.
        params: Learned values; running statistics do not count.
        macs: Multiply-accumulates of the convolutions and matrix products for one image.
        file: The module of this folder that defines the network.
        options: What to hand to that module's ``network`` beside the input shape and the classes.
        description: Where the network comes from, in one line.
        outputs: What the network computes: logits, and boxes where it finds objects.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    params: int
    macs: int
    file: str
    options: Mapping[str, object] = field(hash=False)
    description: str
    outputs: tuple[str, ...] = ("logits",)


_IMAGENET = ((3, 224, 224), 1000)
_CIFAR = ((3, 32, 32), 10)
_RESNET = "He et al. 2015, Deep Residual Learning for Image Recognition"
_VGG = "Simonyan and Zisserman 2014, Very Deep Convolutional Networks for Large-Scale Image Recognition"
_MOBILENET_V1 = "Howard et al. 2017, MobileNets: Efficient CNNs for Mobile Vision Applications"
_MOBILENET_V2 = "Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks"
_SHUF1 = "Zhang et al. 2017, ShuffleNet: An Extremely Efficient CNN for Mobile Devices"
_SHUF2 = "Ma et al. 2018, ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design"
_DENSENET = "Huang et al. 2016, Densely Connected Convolutional Networks"
_SQUEEZENET = "Iandola et al. 2016, SqueezeNet: AlexNet-level accuracy with 50x fewer parameters; version 1.1"
_EFFICIENTNET = "Tan and Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
_VIT = "Dosovitskiy et al. 2020, An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale"
_SSD = "Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, section 6.2"
_UNET = "Ronneberger et al. 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation; a quarter as wide"

_ZOO = {
    entry.name: entry
    for entry in (
        ZooEntry("resnet18", *_IMAGENET, 11_689_512, 1_814_073_344, "resnet", {"depth": 18}, _RESNET),
        ZooEntry("resnet34", *_IMAGENET, 21_797_672, 3_663_761_408, "resnet", {"depth": 34}, _RESNET),
        ZooEntry("resnet50", *_IMAGENET, 25_557_032, 4_089_184_256, "resnet", {"depth": 50}, _RESNET),
        ZooEntry("vgg16", *_IMAGENET, 138_357_544, 15_470_264_320, "vgg", {"normed": False}, _VGG),
        ZooEntry("vgg16_bn", *_IMAGENET, 138_365_992, 15_470_264_320, "vgg", {"normed": True}, _VGG),
        ZooEntry("mobilenet_v1", *_IMAGENET, 4_231_976, 568_740_352, "mobilenet", {"version": 1}, _MOBILENET_V1),
        ZooEntry("mobilenet_v2", *_IMAGENET, 3_504_872, 300_774_272, "mobilenet", {"version": 2}, _MOBILENET_V2),
        ZooEntry("resnet18_cifar", *_CIFAR, 11_173_962, 555_422_720, "resnet", {"depth": 18}, _RESNET),
        ZooEntry("resnet34_cifar", *_CIFAR, 21_282_122, 1_159_402_496, "resnet", {"depth": 34}, _RESNET),
        ZooEntry("resnet50_cifar", *_CIFAR, 23_520_842, 1_297_829_888, "resnet", {"depth": 50}, _RESNET),
        ZooEntry("vgg16_cifar", *_CIFAR, 14_719_818, 313_201_664, "vgg", {"normed": False}, _VGG),
        ZooEntry("vgg16_bn_cifar", *_CIFAR, 14_728_266, 313_201_664, "vgg", {"normed": True}, _VGG),
        ZooEntry("mobilenet_v1_cifar", *_CIFAR, 3_217_226, 46_354_432, "mobilenet", {"version": 1}, _MOBILENET_V1),
        ZooEntry("mobilenet_v2_cifar", *_CIFAR, 2_236_682, 87_976_448, "mobilenet", {"version": 2}, _MOBILENET_V2),
        ZooEntry("cifar_resnet20", *_CIFAR, 269_722, 40_551_040, "cifar_resnet", {"depth": 20}, _RESNET),
        ZooEntry("cifar_resnet32", *_CIFAR, 464_154, 68_862_592, "cifar_resnet", {"depth": 32}, _RESNET),
        ZooEntry("cifar_resnet44", *_CIFAR, 658_586, 97_174_144, "cifar_resnet", {"depth": 44}, _RESNET),
        ZooEntry("cifar_resnet56", *_CIFAR, 853_018, 125_485_696, "cifar_resnet", {"depth": 56}, _RESNET),
        ZooEntry("cifar_resnet110", *_CIFAR, 1_727_962, 252_887_680, "cifar_resnet", {"depth": 110}, _RESNET),
        ZooEntry("shufflenet_v1_g1", *_IMAGENET, 1_531_936, 143_078_976, "shufflenet_v1", {"groups": 1}, _SHUF1),
        ZooEntry("shufflenet_v1_g2", *_IMAGENET, 1_733_848, 140_836_512, "shufflenet_v1", {"groups": 2}, _SHUF1),
        ZooEntry("shufflenet_v1_g3", *_IMAGENET, 1_865_728, 137_460_672, "shufflenet_v1", {"groups": 3}, _SHUF1),
        ZooEntry("shufflenet_v1_g4", *_IMAGENET, 1_968_344, 134_339_776, "shufflenet_v1", {"groups": 4}, _SHUF1),
        ZooEntry("shufflenet_v1_g8", *_IMAGENET, 2_434_768, 138_365_952, "shufflenet_v1", {"groups": 8}, _SHUF1),
        ZooEntry("shufflenet_v2_x0_5", *_IMAGENET, 1_366_792, 40_476_448, "shufflenet_v2", {"width": 0.5}, _SHUF2),
        ZooEntry("shufflenet_v2_x1_0", *_IMAGENET, 2_278_604, 144_907_992, "shufflenet_v2", {"width": 1.0}, _SHUF2),
        ZooEntry("shufflenet_v2_x1_5", *_IMAGENET, 3_503_624, 295_759_392, "shufflenet_v2", {"width": 1.5}, _SHUF2),
        ZooEntry("shufflenet_v2_x2_0", *_IMAGENET, 7_393_996, 583_253_464, "shufflenet_v2", {"width": 2.0}, _SHUF2),
        ZooEntry("densenet121", *_IMAGENET, 7_978_856, 2_834_161_664, "densenet", {"depth": 121}, _DENSENET),
        ZooEntry("squeezenet1_1", *_IMAGENET, 1_235_496, 349_151_936, "squeezenet", {}, _SQUEEZENET),
        ZooEntry("efficientnet_b0", *_IMAGENET, 5_288_548, 385_814_752, "efficientnet", {}, _EFFICIENTNET),
        ZooEntry("vit_tiny", *_IMAGENET, 5_717_416, 1_253_683_200, "vit", {}, _VIT),
        ZooEntry("unet", (3, 128, 128), 2, 1_942_594, 758_382_592, "unet", {"width": 16}, _UNET),
        ZooEntry("ssdlite", (3, 320, 320), 81, 4_328_693, 788_830_144, "ssdlite", {}, _SSD, ("logits", "boxes")),
        ZooEntry("shufflenet_v1_g3_cifar", *_CIFAR, 914_338, 42_590_592, "shufflenet_v1", {"groups": 3}, _SHUF1),
        ZooEntry("shufflenet_v2_x0_5_cifar", *_CIFAR, 352_042, 10_902_016, "shufflenet_v2", {"width": 0.5}, _SHUF2),
        ZooEntry("shufflenet_v2_x1_0_cifar", *_CIFAR, 1_263_854, 45_002_112, "shufflenet_v2", {"width": 1.0}, _SHUF2),
        ZooEntry("shufflenet_v2_x1_5_cifar", *_CIFAR, 2_488_874, 94_259_712, "shufflenet_v2", {"width": 1.5}, _SHUF2),
        ZooEntry("shufflenet_v2_x2_0_cifar", *_CIFAR, 5_365_486, 187_811_200, "shufflenet_v2", {"width": 2.0}, _SHUF2),
        ZooEntry("densenet40_cifar", *_CIFAR, 176_122, 72_365_352, "densenet", {"depth": 40}, _DENSENET),
        ZooEntry("vit_tiny_cifar", *_CIFAR, 2_693_578, 182_849_664, "vit", {}, _VIT),
    )
}


def names() -> list[str]:
    """List the names of all networks, in the order of the registry."""
    return list(_ZOO)


def describe(name: str) -> ZooEntry:
    """Look a network up by its name."""
    if name not in _ZOO:
        close = difflib.get_close_matches(name, _ZOO, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"no model named {name!r} in the zoo; {hint}'onnxprune models list' shows them all")
    return _ZOO[name]


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a network in eval mode; the same seed gives the same weights, bit for bit."""
    from .initial import initialize

    return initialize(blueprint(name), describe(name).input_shape, seed)


def export(
    name: str,
    path: Path | str,
    *,
    exporter: str = "torchscript",
    seed: int = 0,
    weights: Path | str | None = None,
    batch: int | None = None,
    to_train: bool = False,
) -> None:
    """Write a network as an ONNX file with the input ``image`` and the outputs that its entry names.

    Args:
        name: A name from `names`.
        path: The file to write; an existing one is replaced.
        exporter: Either "torchscript" or "dynamo".
        seed: Draws the weights where no file gives them.
        weights: A state dict (.safetensors, .pt or .pth) to use instead of drawn weights.
        batch: Fixes the batch size; left out, it stays dynamic.
        to_train: Draw the weights that training starts from, and leave BatchNorm in the graph.
    """
    from .exporter import check_request, load_weights, write_onnx
    from .initial import untrained

    entry = describe(name)
    check_request(Path(path), exporter, batch)
    if weights is not None:
        net = load_weights(blueprint(name), Path(weights))
    else:
        net = untrained(blueprint(name), seed) if to_train else build(name, seed)
    write_onnx(
        net,
        entry.input_shape,
        Path(path),
        exporter=exporter,
        batch=batch,
        outputs=entry.outputs,
        keep_norms=to_train,
    )


def blueprint(name: str) -> nn.Module:
    """Lay a network out on the meta device: every shape, no memory, no random draw."""
    entry = describe(name)
    return lay_out(entry.file, entry.input_shape, entry.classes, entry.options)


def lay_out(file: str, input_shape: tuple[int, int, int], classes: int, options: Mapping[str, object]) -> nn.Module:
    """Lay out the network that a module of this folder defines, for images of any size, as `blueprint` does."""
    import torch

    module = importlib.import_module(f".{file}", __package__)
    with torch.device("meta"):
        net: nn.Module = module.network(input_shape, classes, **options)
    return net.eval()
