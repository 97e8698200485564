"""The parameters of TorchAO, and which of them go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from drupe.core.config import Choice, Ordered, PassConfig, searchable

__all__ = ["FLOAT8", "GROUPS", "INT4", "INTX", "ON_GPUS", "Grid", "TorchAOConfig"]

INTX = ("intx_weight_only", "int8_dynamic_activation_intx_weight")
INT4 = "int4_weight_only"
FLOAT8 = "float8_dynamic_activation_float8_weight"
ON_GPUS = (FLOAT8, INT4)
"""Schemes whose kernels are for GPUs only."""
_GROUPED = (*INTX, INT4)
"""Schemes that have groups where nothing else is said."""
_EMBEDDINGS = ("int8_weight_only", "intx_weight_only")
GROUPS: Mapping[str, tuple[int, ...]] = {
    "int8_weight_only": (-1, 16, 32, 64, 128, 256),
    **dict.fromkeys(INTX, (-1, 16, 32, 64, 128, 256)),
    INT4: (32, 64, 128, 256),
}
"""Scheme → sizes of groups that it may have; -1: the whole row."""
_OWN_GROUP: Mapping[str, int] = {"int8_weight_only": -1, **dict.fromkeys(INTX, 32), INT4: 128}
_OVERRIDDEN = ("bits", "group_size", "sym")


@dataclass(frozen=True)
class Grid:
    """How a layer is quantized. bits: of intx schemes. group_size: columns that share a scale; -1: the whole row."""

    bits: int
    group_size: int
    sym: bool


def _known_overrides(values: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
    for name, own in values.items():
        if wrong := [key for key in own if key not in _OVERRIDDEN]:
            raise ValueError(f"{name} has {wrong[0]!r}; expected {', '.join(_OVERRIDDEN)}")
        if not own:
            raise ValueError(f"{name} says nothing; expected {', '.join(_OVERRIDDEN)}")
        bits, group, sym = own.get("bits", 4), own.get("group_size", -1), own.get("sym", True)
        if isinstance(bits, bool) or bits not in range(1, 9):
            raise ValueError(f"{name}.bits is {bits!r}; expected a whole number from 1 to 8")
        if isinstance(group, bool) or group not in GROUPS["intx_weight_only"]:
            raise ValueError(f"{name}.group_size is {group!r}; expected -1, 16, 32, 64, 128 or 256")
        if not isinstance(sym, bool):
            raise ValueError(f"{name}.sym is {sym!r}; expected true or false")
    return values


class TorchAOConfig(PassConfig):
    """A configuration of the library and the layers that it is for."""

    scheme: Literal[
        "int8_weight_only",
        "int8_dynamic_activation_int8_weight",
        "intx_weight_only",
        "int8_dynamic_activation_intx_weight",
        "float8_weight_only",
        "float8_dynamic_activation_float8_weight",
        "int4_weight_only",
    ] = searchable(
        "int8_weight_only",
        Choice("int8_weight_only", "int8_dynamic_activation_int8_weight", "intx_weight_only"),
        doc="The library's configuration. dynamic_activation: what a layer is given is rounded as well, by each row's "
        "own range. The last two are for GPUs.",
    )
    bits: int = searchable(
        4, Ordered(2, 3, 4, 5, 6, 8), doc="Bits of a weight, of the intx schemes.", when={"scheme": INTX}, ge=1, le=8
    )
    group_size: Literal[-1, 16, 32, 64, 128, 256] | None = searchable(
        None,
        Ordered(32, 64, 128),
        doc="Columns that share a scale; it must divide the layers' widths. -1: the whole row. Not given: -1 for "
        "int8_weight_only, 32 for intx, 128 for int4; the other schemes have no groups.",
        when={"scheme": ["int8_weight_only", *INTX, INT4]},
    )
    sym: bool = searchable(
        True,
        Choice(True, False),
        doc="Weights without a zero point. false: of the intx schemes.",
        when={"scheme": INTX},
    )
    activation_sym: bool = searchable(
        True,
        Choice(True, False),
        doc="Rounded activations without a zero point. false: of int8_dynamic_activation_int8_weight.",
        when={"scheme": ["int8_dynamic_activation_int8_weight"]},
    )
    granularity: Literal["row", "tensor"] | None = Field(
        None,
        description="What shares a scale where there are no groups: a row, or the whole tensor. Not given: row.",
    )
    ranges: Literal["minmax", "hqq"] = Field(
        "minmax",
        description="How a group's scale is found: by its smallest and largest weight, or by half-quadratic "
        "optimization (hqq: of the intx schemes with sym, and int4).",
    )
    include: list[str] = Field(
        ["*"], min_length=1, description="Patterns of the linear layers that are quantized (* and ?)."
    )
    exclude: list[str] = Field(default_factory=list, description="Patterns of those of them that are not.")
    lm_head: bool = Field(False, description="Quantize the head of a language model as well.")
    embeddings: bool = Field(
        False, description="Quantize the table of input embeddings as well, of int8_weight_only and intx_weight_only."
    )
    overrides: Annotated[Mapping[str, Mapping[str, Any]], AfterValidator(_known_overrides)] = Field(
        default_factory=dict,
        description="Pattern of layers to their own bits, group_size and sym, of the intx schemes; the first that "
        "matches holds.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None,
        description="Of what is not quantized and of what layers calculate. Not given: as the model is stored; "
        "bfloat16 for the schemes that are for GPUs.",
    )
    device: str | None = Field(None, description="Where the model is quantized: cpu, cuda; default: as the target has.")

    @model_validator(mode="after")
    def _together(self) -> TorchAOConfig:
        for fault in self._faults():
            raise ValueError(fault)
        return self

    def _faults(self) -> list[str]:
        scheme, found = self.scheme, []
        if self.group_size is not None and self.group_size not in GROUPS.get(scheme, ()):
            sizes = ", ".join(map(str, GROUPS.get(scheme, ())))
            found.append(
                f"group_size is {self.group_size}; {scheme} has " + (f"groups of {sizes}" if sizes else "none")
            )
        elsewhere = self._of_intx() if scheme not in INTX else []
        found += [f"{asked} is for {' and '.join(INTX)}; the scheme is {scheme}" for asked in elsewhere]
        if not self.activation_sym and scheme != "int8_dynamic_activation_int8_weight":
            found.append(f"activation_sym: false is for int8_dynamic_activation_int8_weight; the scheme is {scheme}")
        if self.granularity is not None and self.group_size not in (None, -1):
            found.append(f"granularity {self.granularity} and group_size {self.group_size} contradict each other")
        elif self.granularity is not None and scheme in _GROUPED and (self.granularity, self.group_size) != ("row", -1):
            found.append(f"granularity: {self.granularity} is not for {scheme}, which has groups"
                         + (" or, by group_size: -1, whole rows" if scheme in INTX else ""))  # fmt: skip
        symmetric = self.sym and all(own.get("sym", True) for own in self.overrides.values())
        if self.ranges == "hqq" and not (scheme == INT4 or (scheme in INTX and symmetric)):
            found.append(f"ranges: hqq is for int4_weight_only and, with sym, the intx schemes; the scheme is {scheme}"
                         + ("" if symmetric else " with sym: false"))  # fmt: skip
        if self.embeddings and scheme not in _EMBEDDINGS:
            found.append(f"embeddings: true is for {' and '.join(_EMBEDDINGS)}; the scheme is {scheme}")
        if scheme in ON_GPUS and str(self.device or "cuda").startswith("cpu"):
            found.append(f"device is {self.device}; the kernels of {scheme} are for GPUs only")
        if scheme in ON_GPUS and self.dtype not in (None, "bfloat16"):
            found.append(f"dtype is {self.dtype}; the kernels of {scheme} calculate in bfloat16")
        return found

    def _of_intx(self) -> list[str]:
        """What is asked for that only the intx schemes have."""
        asked = {
            f"bits: {self.bits}": self.bits != TorchAOConfig.model_fields["bits"].default,
            "sym: false": not self.sym,
            "overrides": bool(self.overrides),
        }
        return [name for name, there in asked.items() if there]

    @property
    def common(self) -> Grid:
        """The grid of layers that have none of their own."""
        group = _OWN_GROUP.get(self.scheme, -1) if self.group_size is None else self.group_size
        return Grid(self.bits, group, self.sym)
