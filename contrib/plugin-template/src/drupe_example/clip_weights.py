"""Limits weights to a range."""

from __future__ import annotations

from drupe import FloatRange, Model, Pass, PassConfig, PassContext, searchable


class ClipWeightsConfig(PassConfig):
    """Each field is a parameter: type, default, the range worth searching over, and its doc."""

    limit: float = searchable(1.0, FloatRange(0.1, 4.0, log=True), gt=0, doc="Weights beyond ±limit become ±limit.")


class ClipWeights(Pass):
    """Limit every float32 weight to [-limit, limit], so that a few outliers don't widen a quantizer's grid."""

    Config = ClipWeightsConfig

    def run(self, model: Model, config: ClipWeightsConfig, context: PassContext) -> Model:
        """Read `model.folder`, write below `context.output_dir`, return the new model."""
        import numpy as np
        import onnx
        from onnx import numpy_helper

        name = model.attributes.get("onnx_file", "model.onnx")
        proto = onnx.load(model.folder / name)
        weights = [tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
        for index, tensor in enumerate(weights):
            context.progress(index, len(weights), tensor.name)
            values = np.clip(numpy_helper.to_array(tensor), -config.limit, config.limit)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        target = context.output_dir / name
        target.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(proto, target, save_as_external_data=True, location=f"{target.name}.data")
        context.report["clipped"] = len(weights)
        return Model.from_dir("onnx", context.output_dir, model.attributes)
