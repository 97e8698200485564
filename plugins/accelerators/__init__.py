"""The devices that ONNX Runtime drives: CPU, GPU, NPU."""
