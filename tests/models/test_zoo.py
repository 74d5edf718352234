"""The networks of the zoo: their size, their seeded weights, their registry."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from onnxprune import models as zoo
from onnxprune.errors import InputError

# Millions of: params, MACs of the convolutions, MACs of the dense layers; as published.
PUBLISHED = {
    "resnet18": (11.6895, 1813.56, 0.51),
    "resnet50": (25.557, 4087.14, 2.05),
    "vgg16": (138.36, 15346.63, 123.63),
    "mobilenet_v1": (4.232, 567.72, 1.02),
    "mobilenet_v2": (3.505, 299.49, 1.28),
    "cifar_resnet20": (0.2697, 40.55, 0.00064),
    "cifar_resnet32": (0.4642, 68.86, 0.00064),
    "cifar_resnet44": (0.6586, 97.17, 0.00064),
    "cifar_resnet56": (0.8530, 125.49, 0.00064),
    "cifar_resnet110": (1.7280, 252.89, 0.00064),
}


def count(name: str) -> tuple[int, int, int]:
    """Count params, MACs of the convolutions and MACs of the dense layers."""
    net = zoo.blueprint(name)
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *zoo.describe(name).input_shape, device="meta"))
    flops = counter.get_flop_counts()["Global"]
    params = sum(param.numel() for param in net.parameters())
    return params, flops[torch.ops.aten.convolution] // 2, flops[torch.ops.aten.addmm] // 2


def weight_bytes(net: nn.Module) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in net.state_dict().items()}


def test_the_zoo_holds_every_promised_name() -> None:
    imagenet = ["resnet18", "resnet34", "resnet50", "vgg16", "vgg16_bn", "mobilenet_v1", "mobilenet_v2"]
    family = [f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)]
    assert zoo.names() == imagenet + [f"{name}_cifar" for name in imagenet] + family


@pytest.mark.parametrize("name", zoo.names())
def test_the_registry_states_the_true_params_and_macs(name: str) -> None:
    params, conv_macs, dense_macs = count(name)
    entry = zoo.describe(name)
    assert (entry.params, entry.macs) == (params, conv_macs + dense_macs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_params_and_macs_equal_the_published_numbers(name: str) -> None:
    published = PUBLISHED[name]
    for counted, expected in zip(count(name), published, strict=True):
        digits = len(str(expected).partition(".")[2])
        assert round(counted / 1e6, digits) == pytest.approx(expected, abs=1.01 * 10**-digits)


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_gives_one_logit_per_class(name: str) -> None:
    entry = zoo.describe(name)
    logits = zoo.blueprint(name)(torch.empty(3, *entry.input_shape, device="meta"))
    assert logits.shape == (3, entry.classes)


@pytest.mark.parametrize("name", ["mobilenet_v1_cifar", "vgg16_cifar", "cifar_resnet110"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name: str) -> None:
    first = weight_bytes(zoo.build(name, seed=3))
    assert first == weight_bytes(zoo.build(name, seed=3))
    other = weight_bytes(zoo.build(name, seed=4))
    drawn = [key for key in first if not key.endswith("num_batches_tracked")]
    assert all(first[key] != other[key] for key in drawn)


def test_the_weights_do_not_depend_on_the_number_of_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = weight_bytes(zoo.build("mobilenet_v2_cifar"))
        torch.set_num_threads(2)
        shared = weight_bytes(zoo.build("mobilenet_v2_cifar"))
    finally:
        torch.set_num_threads(threads)
    assert alone == shared


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    zoo.build("vgg16_bn_cifar")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in zoo.names() if "cifar" in name])
def test_a_built_network_is_in_eval_mode_and_gives_finite_differing_logits(name: str) -> None:
    net = zoo.build(name)
    assert not any(module.training for module in net.modules())
    images = torch.randn(2, *zoo.describe(name).input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net(images)
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 20
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["cifar_resnet56", "mobilenet_v2_cifar", "vgg16_cifar"])
def test_exchanging_two_filters_of_any_convolution_changes_the_logits(name: str) -> None:
    net = zoo.build(name)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net(images)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                kept = module.weight.clone()
                module.weight[:2] = kept[:2].flip(0)
                assert (net(images) - logits).abs().max() > 1e-4
                module.weight.copy_(kept)


def test_the_biases_of_plain_vgg_all_differ() -> None:
    net = zoo.build("vgg16_cifar")
    biases = [module.bias for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    values = torch.cat([bias for bias in biases if bias is not None])
    assert (values != 0).all()
    assert len({bias.detach().numpy().tobytes() for bias in biases if bias is not None}) == len(biases)


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet18", "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("resnet50", "layer1.0.conv3.weight", (256, 64, 1, 1)),
        ("resnet50", "fc.weight", (1000, 2048)),
        ("vgg16", "features.28.weight", (512, 512, 3, 3)),
        ("vgg16_bn", "features.41.running_mean", (512,)),
        ("vgg16", "classifier.6.bias", (1000,)),
        ("mobilenet_v2", "features.1.conv.1.weight", (16, 32, 1, 1)),
        ("mobilenet_v2", "features.17.conv.1.0.weight", (960, 1, 3, 3)),
        ("mobilenet_v2", "classifier.1.weight", (1000, 1280)),
    ],
)
def test_the_imagenet_networks_name_their_layers_as_torchvision_does(
    name: str, key: str, shape: tuple[int, ...]
) -> None:
    assert zoo.blueprint(name).state_dict()[key].shape == shape


def test_an_unknown_name_is_refused_with_a_close_one() -> None:
    with pytest.raises(InputError, match=r"^no model named 'resnet81' in the zoo; did you mean 'resnet18'\?"):
        zoo.describe("resnet81")
    with pytest.raises(InputError, match=r"onnxprune models list"):
        zoo.build("zzz")


def test_reading_the_registry_imports_no_torch() -> None:
    script = (
        "import sys, onnxprune.models as zoo; [zoo.describe(name) for name in zoo.names()];"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'onnx', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
