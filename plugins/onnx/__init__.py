"""ONNX graphs: exporting, changing, quantizing and running them with ONNX Runtime."""
