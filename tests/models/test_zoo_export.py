"""From the zoo to ONNX files, and weights from files."""

import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from onnxprune import models as zoo
from onnxprune.errors import InputError
from onnxprune.models import exporter as exporting

NET = "cifar_resnet20"
NEWEST_IR, NEWEST_OPSET = 13, 26
QUICK = {("vit_tiny_cifar", "torchscript"), ("unet", "torchscript"), ("shufflenet_v2_x0_5_cifar", "torchscript")}


def outputs_of(path: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))


def logits_of(path: Path, images: torch.Tensor) -> np.ndarray:
    return outputs_of(path, images)["logits"]


def random_images(name: str, batch: int) -> torch.Tensor:
    return torch.randn(batch, *zoo.describe(name).input_shape, generator=torch.Generator().manual_seed(9))


def assert_export_equals_torch(name: str, exporter: str, path: Path) -> None:
    zoo.export(name, path, exporter=exporter)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert model.ir_version <= NEWEST_IR
    assert [(entry.domain, entry.version <= NEWEST_OPSET) for entry in model.opset_import] == [("", True)]
    net = zoo.build(name)
    for batch in (1, 3):
        images = random_images(name, batch)
        assert_outputs_equal(net, images, path, zoo.describe(name).outputs)


def assert_outputs_equal(net: nn.Module, images: torch.Tensor, path: Path, names: tuple[str, ...]) -> None:
    with torch.no_grad():
        made = net(images)
    expected = dict(zip(names, made if isinstance(made, tuple) else (made,), strict=True))
    found = outputs_of(path, images)
    assert list(found) == list(expected)
    for name, output in expected.items():
        np.testing.assert_allclose(found[name], output.numpy(), rtol=0, atol=1e-4 * output.abs().max().item())


@pytest.mark.parametrize("exporter", exporting.EXPORTERS)
def test_an_export_runs_at_any_batch_and_equals_torch(
    exporter: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert_export_equals_torch(NET, exporter, tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        pytest.param(name, exporter, marks=() if (name, exporter) in QUICK else pytest.mark.slow)
        for name in zoo.names()
        for exporter in exporting.EXPORTERS
    ],
)
def test_every_network_exports_and_equals_torch(name: str, exporter: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert_export_equals_torch(name, exporter, path)
    path.unlink()


class Twice(nn.Module):
    """A network of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.conv(image)
        return x, x.relu()


@pytest.mark.parametrize("exporter", exporting.EXPORTERS)
def test_a_network_may_have_several_outputs(exporter: str, tmp_path: Path) -> None:
    net, path, names = Twice().eval(), tmp_path / "net.onnx", ("logits", "boxes")
    exporting.write_onnx(net, (3, 8, 8), path, exporter=exporter, outputs=names)
    for batch in (1, 3):
        assert_outputs_equal(net, torch.randn(batch, 3, 8, 8), path, names)


@pytest.mark.parametrize("exporter", exporting.EXPORTERS)
def test_a_fixed_batch_is_fixed_in_the_file(exporter: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    zoo.export("vgg16_cifar", path, exporter=exporter, batch=4)
    graph = onnx.load(path).graph
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)]
    assert shapes == [[4, 3, 32, 32], [4, 10]]


def test_the_seed_reaches_the_file(tmp_path: Path) -> None:
    images = random_images(NET, 1)
    for seed in (0, 1):
        zoo.export(NET, tmp_path / f"{seed}.onnx", seed=seed)
    assert np.abs(logits_of(tmp_path / "0.onnx", images) - logits_of(tmp_path / "1.onnx", images)).max() > 0.1


def test_weights_beyond_the_limit_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_INLINE_BYTES", 0)
    assert_export_equals_torch(NET, "dynamo", tmp_path / "net.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_a_failed_export_raises_and_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("old")

    def fail(net: object, args: object, draft: Path, **_: object) -> None:
        draft.write_text("half")
        raise RuntimeError("exporter broke")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="exporter broke"):
        zoo.export(NET, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth"])
def test_a_weights_file_makes_the_round_trip(ending: str, tmp_path: Path) -> None:
    net = zoo.build(NET, seed=7)
    weights = tmp_path / f"weights{ending}"
    if ending == ".safetensors":
        save_file(net.state_dict(), weights)
    else:
        torch.save(net.state_dict(), weights)
    zoo.export(NET, tmp_path / "given.onnx", weights=weights)
    zoo.export(NET, tmp_path / "drawn.onnx", seed=7)
    assert (tmp_path / "given.onnx").read_bytes() == (tmp_path / "drawn.onnx").read_bytes()


def test_half_weights_without_step_counters_load_as_float(tmp_path: Path) -> None:
    state = {
        key: value.half()
        for key, value in zoo.build(NET).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    save_file(state, tmp_path / "half.safetensors")
    net = exporting.load_weights(zoo.blueprint(NET), tmp_path / "half.safetensors")
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(net.state_dict()["conv1.weight"], state["conv1.weight"].float())


def one_line_error(**options: object) -> str:
    path = options.pop("path")
    with pytest.raises(InputError) as caught:
        zoo.export(NET, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_requests_that_cannot_be_met_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert "there is no folder" in one_line_error(path=tmp_path / "absent" / "net.onnx")
    assert "it is a folder" in one_line_error(path=tmp_path)
    assert "choose one of: torchscript, dynamo" in one_line_error(path=path, exporter="magic")
    assert "batch 0 is not a batch size" in one_line_error(path=path, batch=0)


def test_weights_files_that_cannot_be_read_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    assert "absent.pt does not exist" in one_line_error(path=path, weights=tmp_path / "absent.pt")
    for name in ("broken.pt", "broken.safetensors", "empty.pth", "text.bin"):
        (tmp_path / name).write_bytes(b"" if name == "empty.pth" else b"no weights at all")
    # A pickle whose text is no UTF-8, and one of a protocol PyTorch warns about.
    (tmp_path / "garbled.pt").write_bytes(b"cbuilt\xffins\nprint\n.")
    (tmp_path / "truncated.pt").write_bytes(pickle.dumps({"a": 1}, protocol=4)[:-3])
    for name in ("broken.pt", "broken.safetensors", "empty.pth", "garbled.pt", "truncated.pt"):
        assert f"{name} cannot be read (" in one_line_error(path=path, weights=tmp_path / name)
    assert "unknown ending '.bin'" in one_line_error(path=path, weights=tmp_path / "text.bin")
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pt")
    assert "is not a state dict" in one_line_error(path=path, weights=tmp_path / "checkpoint.pt")
    assert not path.exists()


def test_weights_that_do_not_fit_are_refused_with_the_first_of_each_fault(tmp_path: Path) -> None:
    state = zoo.build(NET).state_dict()
    state["stem.weight"] = state.pop("conv1.weight")
    state["fc.bias"] = torch.zeros(100)
    torch.save(state, tmp_path / "other.pt")
    message = one_line_error(path=tmp_path / "net.onnx", weights=tmp_path / "other.pt")
    assert "missing 1 (first 'conv1.weight')" in message
    assert "unknown 1 (first 'stem.weight')" in message
    assert "wrong shape 1 (first 'fc.bias')" in message
