"""What the library torchao is given: its configurations, made from Drupe's parameters."""

from __future__ import annotations

from typing import Any

from drupe.plugins.quantization.ao.config import Grid, TorchAOConfig

__all__ = ["library_config"]


def library_config(config: TorchAOConfig, grid: Grid) -> Any:
    """Return the library's configuration (an AOBaseConfig) for a layer."""
    import torch
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8DynamicActivationIntxWeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
    )
    from torchao.quantization.granularity import PerAxis, PerGroup, PerRow, PerTensor

    whole = PerTensor() if config.granularity == "tensor" else PerRow()
    mapping = MappingType.SYMMETRIC if grid.sym else MappingType.ASYMMETRIC
    by_rows = PerAxis(0) if grid.group_size == -1 else PerGroup(grid.group_size)
    hqq = config.ranges == "hqq"
    match config.scheme:
        case "int8_weight_only":
            return Int8WeightOnlyConfig(
                granularity=whole if grid.group_size == -1 else PerGroup(grid.group_size), set_inductor_config=False
            )
        case "int8_dynamic_activation_int8_weight":
            return Int8DynamicActivationInt8WeightConfig(
                act_mapping_type=MappingType.SYMMETRIC if config.activation_sym else MappingType.ASYMMETRIC,
                granularity=whole,
                set_inductor_config=False,
            )
        case "intx_weight_only":
            return IntxWeightOnlyConfig(
                weight_dtype=getattr(torch, f"int{grid.bits}"),
                granularity=by_rows,
                mapping_type=mapping,
                intx_choose_qparams_algorithm="hqq_scale_only" if hqq else "affine",
            )
        case "int8_dynamic_activation_intx_weight":
            return Int8DynamicActivationIntxWeightConfig(
                weight_dtype=getattr(torch, f"int{grid.bits}"),
                weight_granularity=by_rows,
                weight_mapping_type=mapping,
                intx_choose_qparams_algorithm="hqq_scale_only" if hqq else "affine",
            )
        case "float8_weight_only":
            return Float8WeightOnlyConfig(granularity=whole, set_inductor_config=False)
        case "float8_dynamic_activation_float8_weight":
            return Float8DynamicActivationFloat8WeightConfig(granularity=whole, set_inductor_config=False)
        case _:
            return Int4WeightOnlyConfig(
                group_size=grid.group_size,
                int4_packing_format="tile_packed_to_4d",
                int4_choose_qparams_algorithm="hqq" if hqq else "tinygemm",
                set_inductor_config=False,
            )
