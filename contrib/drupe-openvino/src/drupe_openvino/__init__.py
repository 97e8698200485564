"""OpenVINO for Drupe: accelerator, runtime, model kind and passes."""

__version__ = "0.1.0"
