# Everything sets itself up: a virtual environment in .venv with the tested versions, then the job.
PYTHON ?= python3
BIN := .venv/bin
BUILD := build/demo

.PHONY: demo test test-slow lint format clean

# The marker is newer than what it was made from, so a changed dependency list installs again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "onnxprune needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed ## train a small ResNet on handwritten digits, compress it, compare both on test images
	$(BIN)/python -m onnxprune.models.digits $(BUILD)
	$(BIN)/onnxprune compress $(BUILD)/digits_resnet.onnx --flops 0.5 -o $(BUILD)/digits_small.onnx \
		--data $(BUILD)/digits_calibration.npz --force
	$(BIN)/onnxprune evaluate $(BUILD)/digits_resnet.onnx --data $(BUILD)/digits_test.npz
	$(BIN)/onnxprune evaluate $(BUILD)/digits_small.onnx --data $(BUILD)/digits_test.npz

test: .venv/installed ## the default suite
	$(BIN)/pytest -n 2 -q --durations=20

test-slow: .venv/installed ## what takes minutes or gigabytes
	$(BIN)/pytest -q -m slow

lint: .venv/installed ## ruff and mypy, nothing may be found
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy onnxprune cli models benchmarks

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
