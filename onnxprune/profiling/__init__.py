"""What a model costs where it runs: time and memory in onnxruntime, each model in a fresh process."""
