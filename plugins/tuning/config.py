"""What the tuning passes can be told."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from drupe.core.config import DataRef, IntRange, Ordered, PassConfig, searchable
from drupe.plugins.tuning.arguments import TrainingArgs

__all__ = [
    "DoRAConfig",
    "ElasticLoRAConfig",
    "LoHaConfig",
    "LoKrConfig",
    "LoRAConfig",
    "LoftQConfig",
    "QLoRAConfig",
    "TuningConfig",
]

Dtype = Literal["auto", "float32", "bfloat16"]


class TuningConfig(PassConfig):
    """What every tuning pass can be told: data, where the adapter sits, how it is trained."""

    train_data_config: DataRef = Field(description="Data to train on: samples with input_ids and labels.")
    eval_data_config: DataRef | None = Field(None, description="Data whose loss is watched while training.")
    eval_dataset_size: float | int | None = Field(
        None,
        gt=0,
        description="Without eval_data_config: share (below 1) or number of training rows to hold out, by unique text.",
    )
    training_args: TrainingArgs = Field(
        default_factory=lambda: TrainingArgs(), description="How to train: names of transformers.TrainingArguments."
    )
    r: int = searchable(16, IntRange(4, 128, log=True), doc="Rank of the update matrices.", ge=1)
    alpha: float = searchable(16, Ordered(8, 16, 32, 64, 128), doc="Scale of the update; it is divided by r.", gt=0)
    target_modules: str | list[str] = Field(
        "all-linear",
        description="Modules that get an adapter: 'all-linear', names (o_proj), or one regular expression.",
    )
    adapter_name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Name of this adapter where a model gets several: each is trained on the bare base and lies in "
        "adapters/NAME; the last one is in use. Not given: the only adapter, in adapter/.",
    )
    exclude_modules: str | list[str] | None = Field(None, description="Modules that get none although they match.")
    modules_to_save: list[str] | None = Field(None, description="Modules that are trained in full and saved.")
    torch_dtype: Dtype = Field(
        "auto", description="Compute type of the base model; auto: bfloat16 on a GPU, otherwise float32."
    )
    allow_tf32: bool = Field(True, description="Allow TF32 matrix products on a GPU.")
    packing: bool | Literal["auto"] = Field(
        "auto",
        description="Lay rows end to end instead of padding them; no row sees another. auto: where the model can.",
    )
    max_length: int | None = Field(
        None,
        ge=2,
        description="Longest row in tokens; longer ones are cut and counted. Not given: the model's context.",
    )
    memory: Literal["auto", "smallest"] | float = Field(
        "auto",
        description="auto: the fastest plan that fits the device; smallest: least memory; a number: a limit in GiB.",
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a lower loss."
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="What counts as lower, for early stopping.")

    @field_validator("eval_dataset_size")
    @classmethod
    def _share(cls, value: float | int | None) -> float | int | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError(f"{value} is neither a share below 1 nor a whole number of rows")
        return value

    @field_validator("memory")
    @classmethod
    def _limit(cls, value: Any) -> Any:
        if not isinstance(value, str) and value <= 0:
            raise ValueError("a memory limit in GiB must be above 0")
        return value

    @model_validator(mode="after")
    def _together(self) -> TuningConfig:
        args = self.training_args
        if self.eval_data_config is not None and self.eval_dataset_size is not None:
            raise ValueError("eval_data_config and eval_dataset_size are both given; keep one")
        has_eval = self.eval_data_config is not None or self.eval_dataset_size is not None
        if not has_eval:
            if args.eval_strategy not in (None, "no"):
                raise ValueError(
                    f"training_args.eval_strategy is {args.eval_strategy}, but there is nothing to evaluate on; "
                    "give eval_data_config, or eval_dataset_size to hold out a share"
                )
            for name, wanted in (
                ("early_stopping_patience", self.early_stopping_patience),
                ("training_args.load_best_model_at_end", args.load_best_model_at_end),
                ("training_args.eval_on_start", args.eval_on_start),
            ):
                if wanted:
                    raise ValueError(f"{name} needs evaluation data: give eval_data_config or eval_dataset_size")
        elif args.eval_strategy == "no" and (self.early_stopping_patience or args.load_best_model_at_end):
            raise ValueError("early stopping and the best checkpoint need training_args.eval_strategy steps or epoch")
        if args.bf16 and self.torch_dtype == "float32":
            raise ValueError("training_args.bf16 is true and torch_dtype is float32; keep one")
        return self


class LoRAConfig(TuningConfig):
    """Low-rank adapters."""

    lora_dropout: float = searchable(
        0.0, Ordered(0.0, 0.05, 0.1), doc="Dropout before the adapter; 0 is markedly faster.", ge=0, lt=1
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).")
    use_dora: bool = Field(False, description="Train magnitude and direction apart (DoRA, arXiv 2402.09353).")
    init_lora_weights: bool | str = Field(
        True,
        description="Initial values: true, gaussian, pissa, pissa_niter_N, olora, orthogonal or loftq. What changes "
        "the base (pissa, olora, loftq) is handed out as an adapter of twice the rank for the unchanged base.",
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases are trained.")
    rank_pattern: dict[str, int] | None = Field(None, description="Ranks of single modules: {pattern: r}.")
    alpha_pattern: dict[str, float] | None = Field(None, description="Alphas of single modules: {pattern: alpha}.")
    save_embedding_layers: bool | Literal["auto"] = Field(
        "auto", description="Save the embedding beside the adapter; auto: where it is trained."
    )
    ephemeral_gpu_offload: bool = Field(False, description="Initialise on the GPU what is kept on the CPU (DoRA).")

    @field_validator("init_lora_weights")
    @classmethod
    def _init(cls, value: bool | str) -> bool | str:
        known = ("gaussian", "pissa", "olora", "orthogonal", "loftq")
        if isinstance(value, bool) or value in known:
            return value
        if value.startswith("pissa_niter_") and value.removeprefix("pissa_niter_").isdigit():
            return value
        raise ValueError(
            f"init_lora_weights {value!r}: expected true, false, pissa_niter_N or one of {', '.join(known)}"
        )

    @model_validator(mode="after")
    def _fits(self) -> LoRAConfig:
        if self.use_dora and (str(self.init_lora_weights).startswith(("pissa", "olora", "loftq"))):
            raise ValueError(f"use_dora and init_lora_weights {self.init_lora_weights} don't go together; keep one")
        return self


class DoRAConfig(LoRAConfig):
    """LoRA with magnitude and direction trained apart."""

    use_dora: bool = Field(True, description="Train magnitude and direction apart (DoRA, arXiv 2402.09353).")


class LoftQConfig(LoRAConfig):
    """LoRA whose initial values make up for the error of a quantized base."""

    init_lora_weights: bool | str = Field("loftq", description="Initial values: loftq.")
    loftq_iter: int = Field(1, ge=1, description="Alternating steps of LoftQ.")


class QLoRAConfig(LoRAConfig):
    """Low-rank adapters on a base held in four bits."""

    quant_type: Literal["nf4", "fp4"] = searchable("nf4", Ordered("nf4", "fp4"), doc="Four-bit data type of the base.")
    double_quant: bool = Field(False, description="Quantize the quantization constants too.")
    compute_dtype: Dtype = Field("auto", description="Compute type; auto: bfloat16 on a GPU, otherwise float32.")


class ElasticLoRAConfig(LoRAConfig):
    """Low-rank adapters whose ranks are ordered: the first k ranks are a model of rank k."""

    r: int = Field(32, ge=2, description="The largest rank; `SelectRank` cuts to one of `ranks`.")
    alpha: float = Field(32, gt=0, description="Scale of the update; it is divided by r, at every rank.")
    ranks: list[int] = Field(
        default_factory=lambda: [4, 8, 16, 32], min_length=1, description="Ranks that shall be good models, ascending."
    )

    @model_validator(mode="after")
    def _ranks(self) -> ElasticLoRAConfig:
        if sorted(set(self.ranks)) != self.ranks or self.ranks[0] < 1:
            raise ValueError(f"ranks {self.ranks} must be ascending, each once, from 1 up")
        if self.r != self.ranks[-1]:
            raise ValueError(f"r {self.r} must be the largest of ranks {self.ranks}")
        for name, plain in (
            ("use_dora", False),
            ("init_lora_weights", True),
            ("lora_dropout", 0),
            ("rank_pattern", None),
        ):
            if getattr(self, name) != plain:
                raise ValueError(f"ranks can be ordered only in plain LoRA; leave {name} out")
        return self


class _LycorisConfig(TuningConfig):
    rank_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of ranks.")
    module_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of whole modules.")
    use_effective_conv2d: bool = Field(False, description="Decompose convolutions as such.")
    rank_pattern: dict[str, int] | None = Field(None, description="Ranks of single modules: {pattern: r}.")
    alpha_pattern: dict[str, float] | None = Field(None, description="Alphas of single modules: {pattern: alpha}.")


class LoHaConfig(_LycorisConfig):
    """Adapters as Hadamard products of low-rank matrices (arXiv 2108.06098)."""


class LoKrConfig(_LycorisConfig):
    """Adapters as Kronecker products (arXiv 2309.14859)."""

    decompose_both: bool = Field(False, description="Decompose the left matrix as well.")
    decompose_factor: int = Field(-1, ge=-1, description="Size of the left matrix; -1: as square as can be.")
