"""The networks of the zoo: their size, their seeded weights, their registry."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from onnxprune import models as zoo
from onnxprune.errors import InputError
from onnxprune.models import unet

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
    # MACs of the paper, table 1; params of osmr/imgclsmob.
    "shufflenet_v1_g1": (1.531936, 143, 0.576),
    "shufflenet_v1_g2": (1.733848, 140, 0.8),
    "shufflenet_v1_g3": (1.865728, 137, 0.96),
    "shufflenet_v1_g4": (1.968344, 133, 1.088),
    "shufflenet_v1_g8": (2.434768, 137, 1.536),
}
# Millions of params, billions of MACs.
PUBLISHED_TOTALS = {
    # The metadata of torchvision's weight files.
    "shufflenet_v2_x0_5": (1.366792, 0.04),
    "shufflenet_v2_x1_0": (2.278604, 0.145),
    "shufflenet_v2_x1_5": (3.503624, 0.296),
    "shufflenet_v2_x2_0": (7.393996, 0.583),
    "densenet121": (7.978856, 2.834),
    "squeezenet1_1": (1.235496, 0.349),
    "efficientnet_b0": (5.288548, 0.386),
    # DeiT-Tiny, the same network, in Wang et al. 2021 (Pyramid Vision Transformer), table 2.
    "vit_tiny": (5.7, 1.3),
    # Sandler et al. 2018, table 6.
    "ssdlite": (4.3, 0.8),
    # chenyaofo/pytorch-cifar-models.
    "shufflenet_v2_x0_5_cifar": (0.35, 0.0109),
    "shufflenet_v2_x1_0_cifar": (1.26, 0.045),
    "shufflenet_v2_x1_5_cifar": (2.49, 0.09426),
    "shufflenet_v2_x2_0_cifar": (5.37, 0.18781),
}
# What one image gives, where it is not one logit a class.
OUTPUTS = {"unet": [(2, 128, 128)], "ssdlite": [(2034, 81), (2034, 4)]}
LIGHT = {"squeezenet1_1", "efficientnet_b0", "unet", "ssdlite"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small networks run some twenty times slower when threads wait for each other on cores that are taken."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def count(name: str) -> tuple[int, int, int]:
    """Count params, MACs of the convolutions and MACs of the matrix products."""
    net = zoo.blueprint(name)
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *zoo.describe(name).input_shape, device="meta"))
    flops = counter.get_flop_counts()["Global"]
    convolutions = flops[torch.ops.aten.convolution]
    params = sum(param.numel() for param in net.parameters())
    return params, convolutions // 2, (sum(flops.values()) - convolutions) // 2


def equals(counted: float, published: float) -> bool:
    """Compare to the last digit that is published, which may have been cut or rounded."""
    digits = len(str(published).partition(".")[2]) if isinstance(published, float) else 0
    return round(counted, digits) == pytest.approx(published, abs=1.01 * 10**-digits)


def outputs(net: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    found = net(images)
    return found if isinstance(found, tuple) else (found,)


def weight_bytes(net: nn.Module) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in net.state_dict().items()}


def test_the_zoo_holds_every_promised_name() -> None:
    imagenet = ["resnet18", "resnet34", "resnet50", "vgg16", "vgg16_bn", "mobilenet_v1", "mobilenet_v2"]
    family = [f"cifar_resnet{depth}" for depth in (20, 32, 44, 56, 110)]
    shuffle_v1 = [f"shufflenet_v1_g{groups}" for groups in (1, 2, 3, 4, 8)]
    shuffle_v2 = [f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")]
    others = ["densenet121", "squeezenet1_1", "efficientnet_b0", "vit_tiny", "unet", "ssdlite"]
    small = ["shufflenet_v1_g3", *shuffle_v2, "densenet40", "vit_tiny"]
    first = imagenet + [f"{name}_cifar" for name in imagenet] + family
    assert zoo.names() == first + shuffle_v1 + shuffle_v2 + others + [f"{name}_cifar" for name in small]


@pytest.mark.parametrize("name", zoo.names())
def test_the_registry_states_the_true_params_and_macs(name: str) -> None:
    params, conv_macs, dense_macs = count(name)
    entry = zoo.describe(name)
    assert (entry.params, entry.macs) == (params, conv_macs + dense_macs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_params_and_macs_equal_the_published_numbers(name: str) -> None:
    for counted, published in zip(count(name), PUBLISHED[name], strict=True):
        assert equals(counted / 1e6, published)


@pytest.mark.parametrize("name", PUBLISHED_TOTALS)
def test_params_and_all_macs_equal_the_published_numbers(name: str) -> None:
    entry = zoo.describe(name)
    params, macs = PUBLISHED_TOTALS[name]
    assert equals(entry.params / 1e6, params)
    assert equals(entry.macs / 1e9, macs)


def test_params_equal_the_published_ones_where_those_are_all_there_is() -> None:
    assert zoo.describe("densenet40_cifar").params == 176_122  # DenseNet-BC-40 (k=12) of osmr/imgclsmob
    with torch.device("meta"):
        wide = unet.network((3, 96, 96), 1, width=32)
    # The U-Net in Zhou et al. 2018 (UNet++), table 3.
    assert equals(sum(param.numel() for param in wide.parameters()) / 1e6, 7.76)


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_gives_what_its_entry_says(name: str) -> None:
    entry = zoo.describe(name)
    found = outputs(zoo.blueprint(name), torch.empty(3, *entry.input_shape, device="meta"))
    assert [output.shape for output in found] == [(3, *shape) for shape in OUTPUTS.get(name, [(entry.classes,)])]
    assert len(entry.outputs) == len(found)


@pytest.mark.parametrize("name", ["mobilenet_v1_cifar", "vgg16_cifar", "cifar_resnet110", "vit_tiny_cifar", "unet"])
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


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if "cifar" in name or name in LIGHT else pytest.mark.slow) for name in zoo.names()],
)
def test_a_built_network_is_in_eval_mode_and_gives_finite_differing_logits(name: str) -> None:
    net = zoo.build(name)
    assert not any(module.training for module in net.modules())
    images = torch.randn(2, *zoo.describe(name).input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = outputs(net, images)
    for output in found:
        assert output.isfinite().all()
        assert 0.1 < output.std() < 20
        assert (output[0] - output[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "name",
    [
        *("cifar_resnet56", "mobilenet_v2_cifar", "vgg16_cifar", "shufflenet_v1_g3_cifar", "densenet40_cifar"),
        *("vit_tiny_cifar", "unet"),
    ],
)
def test_exchanging_two_filters_of_any_layer_changes_the_logits(name: str) -> None:
    net = zoo.build(name)
    images = torch.randn(2, *zoo.describe(name).input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = net(images)
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
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
        ("shufflenet_v2_x1_0", "stage2.0.branch1.2.weight", (58, 24, 1, 1)),
        ("shufflenet_v2_x1_0", "stage3.7.branch2.6.running_mean", (116,)),
        ("shufflenet_v2_x2_0", "conv5.0.weight", (2048, 976, 1, 1)),
        ("shufflenet_v2_x2_0", "fc.weight", (1000, 2048)),
        ("densenet121", "features.denseblock4.denselayer16.conv2.weight", (32, 128, 3, 3)),
        ("densenet121", "features.transition3.conv.weight", (512, 1024, 1, 1)),
        ("densenet121", "features.norm5.weight", (1024,)),
        ("densenet121", "classifier.weight", (1000, 1024)),
        ("squeezenet1_1", "features.12.expand3x3.weight", (256, 64, 3, 3)),
        ("squeezenet1_1", "classifier.1.weight", (1000, 512, 1, 1)),
        ("efficientnet_b0", "features.2.0.block.2.fc1.weight", (4, 96, 1, 1)),
        ("efficientnet_b0", "features.7.0.block.3.0.weight", (320, 1152, 1, 1)),
        ("efficientnet_b0", "classifier.1.weight", (1000, 1280)),
        ("vit_tiny", "pos_embed", (1, 197, 192)),
        ("vit_tiny", "patch_embed.proj.weight", (192, 3, 16, 16)),
        ("vit_tiny", "blocks.11.attn.qkv.weight", (576, 192)),
        ("vit_tiny", "blocks.0.mlp.fc1.bias", (768,)),
    ],
)
def test_the_imagenet_networks_name_their_layers_as_torchvision_and_timm_do(
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
