"""ONNX Runtime GenAI: building models for it, and running them."""
