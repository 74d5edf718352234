"""Train an ONNX model in PyTorch: its own graph is run, and its weights go back by name."""
