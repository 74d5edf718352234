"""The oracle over models from the wild, and over the whole zoo."""

from __future__ import annotations

from pathlib import Path

import onnx
import oracle
import pytest

from onnxprune import channels, model, models, runtime
from onnxprune.errors import InputError

CORPUS = Path(__file__).parents[1].parent / "shared"
FILES = sorted(file for folder in ("models", "imagenet", "onnx") for file in (CORPUS / folder).glob("*.onnx"))
ASKED = {"tract_byte_sb_bidi_lstm.onnx": {"input": (1, 16)}}
NO_MODEL = "qonnx_TFC_2W2A.onnx"
NOTHING_TO_PRUNE = {"sklearn_rf_actedge.onnx"}
NO_NUMBERS = {"light_resnet50.onnx", "light_shufflenet.onnx"}
HEAVY = {"winml_candy.onnx", "light_resnet50.onnx"}  # 20 billion multiply-accumulates, and 100 MB of random weights

needs_corpus = pytest.mark.skipif(not FILES, reason="the model corpus is not beside the checkout")
from_the_wild = [
    pytest.param(file, marks=(pytest.mark.shared, *((pytest.mark.slow,) if file.name in HEAVY else ())), id=file.stem)
    for file in FILES
    if file.name != NO_MODEL
]
zoo = [(name, exporter) for name in models.names() for exporter in ("torchscript", "dynamo")]


def usable(file: Path) -> Path | onnx.ModelProto:
    """Give a model as it is; one that has only its structure gets random weights."""
    return oracle.with_random_weights(onnx.load(file)) if file.name in NO_NUMBERS else file


def found_in(source: Path | onnx.ModelProto, name: str) -> channels.Channels:
    asked = ASKED.get(name, {})
    if isinstance(source, Path):
        return channels.find_channels(model.load(source, runtime.evaluate, asked))
    return channels.find_channels(model.analyse(source, Path(), runtime.evaluate, asked))


@needs_corpus
@pytest.mark.parametrize("file", from_the_wild)
def test_a_model_from_the_wild_passes_the_oracle(file: Path) -> None:
    source = usable(file)
    for seed in range(2):
        checked = oracle.check(source, seed=seed, asked=ASKED.get(file.name))
    assert bool(checked.found.groups) == (file.name not in NOTHING_TO_PRUNE)


@needs_corpus
@pytest.mark.slow
@pytest.mark.parametrize("file", [p for p in from_the_wild if p.values[0].name not in NOTHING_TO_PRUNE | NO_NUMBERS])
def test_an_error_in_any_cut_layer_of_a_model_from_the_wild_would_show(file: Path) -> None:
    source = usable(file)
    kept = oracle.even_plan(found_in(source, file.name), 0.9)
    assert oracle.blind_layers(oracle.check(source, kept=kept, asked=ASKED.get(file.name))) == []


@needs_corpus
@pytest.mark.shared
@pytest.mark.parametrize("name", sorted(NO_NUMBERS))
def test_a_model_without_numbers_is_cut_in_structure(name: str) -> None:
    for seed in range(2):
        oracle.check(CORPUS / "onnx" / name, seed=seed, run=False)


@needs_corpus
@pytest.mark.shared
def test_a_file_that_is_not_valid_onnx_is_refused() -> None:
    with pytest.raises(InputError, match=r"No opset import for domain 'onnx\.brevitas'"):
        model.load(CORPUS / "onnx" / NO_MODEL, runtime.evaluate)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), zoo)
def test_every_net_of_the_zoo_passes_the_oracle_through_both_exporters(
    name: str, exporter: str, tmp_path: Path
) -> None:
    models.export(name, tmp_path / "net.onnx", exporter=exporter)
    for seed in range(2):
        oracle.check(tmp_path / "net.onnx", seed=seed)
    for file in tmp_path.iterdir():  # some are half a gigabyte, and pytest keeps them
        file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar_resnet20", "vgg16_bn_cifar", "mobilenet_v2_cifar", "resnet18_cifar"])
def test_an_error_in_any_cut_layer_of_the_zoo_would_show(name: str, tmp_path: Path) -> None:
    models.export(name, tmp_path / "net.onnx")
    kept = oracle.even_plan(found_in(tmp_path / "net.onnx", name), 0.9)
    assert oracle.blind_layers(oracle.check(tmp_path / "net.onnx", kept=kept)) == []
