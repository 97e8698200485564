"""The base class of passes: requires → run → ensures.

A subclass has a typed `Config`, may refine `plan`, and does its work in `run`. `__call__` checks what the pass needs
before it starts and what it promised after it ran, so that a pass's body is only its idea.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from drupe.core.accelerators import Accelerator
from drupe.core.config import PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, PassError
from drupe.core.model import Model, ModelInfo
from drupe.core.requirements import installed_version, told

if TYPE_CHECKING:
    from drupe.core.specs import PassSpec

__all__ = ["Pass"]


class Pass:
    """A pure function from a model and a config to a model.

    version: raise it when the same config and input would now give another result; it is part of the step key.
    `spec` is set by the registry.
    """

    Config: ClassVar[type[PassConfig]] = PassConfig
    version: ClassVar[int] = 1

    def __init__(self, spec: PassSpec) -> None:
        self.spec = spec

    def plan(self, info: ModelInfo, config: Any, accelerator: Accelerator) -> ModelInfo:
        """Say what the pass would make of a model like `info`. Pure and light; raises ConfigError when it can't.

        The default follows the spec. Refine it to refuse what can be known before work starts (a quantization the next
        tool can't read, a precision the accelerator lacks) and to declare attributes of the result.
        """
        spec = self.spec
        if spec.accepts and info.kind not in spec.accepts:
            raise ConfigError(
                f"{spec.name} takes {' or '.join(sorted(spec.accepts))} models and would be given {info.kind}"
            )
        if spec.accelerators and accelerator.device not in spec.accelerators:
            raise ConfigError(
                f"{spec.name} is for {', '.join(sorted(spec.accelerators))}; the target's device is "
                f"{accelerator.device}"
            )
        provider = accelerator.execution_provider
        if spec.providers and provider is not None and provider not in spec.providers:
            raise ConfigError(
                f"{spec.name} is for {', '.join(sorted(spec.providers))}; the target's execution provider is {provider}"
            )
        return info.with_(kind=spec.produces or info.kind)

    def requirements(self, config: Any, accelerator: Accelerator) -> Sequence[str]:
        """Return PEP 508 requirements that this config adds to those of the spec; "a | b": one of them is enough.

        A host that lacks one is told before work starts where the config is not searched, else when the job starts.
        """
        return ()

    def check(self, config: Any, accelerator: Accelerator) -> None:
        """Check where the work will run (devices, tools), before it starts. Raises ConfigError. Light."""

    def fingerprint(self, context: PassContext) -> str:
        """Return what identifies tools that are no Python distribution; part of the step key."""
        return ""

    def rehearsal(self, config: Any) -> Any:
        """Return a config of the same kind that does the least work (few steps, few calibration rows)."""
        return config

    def run(self, model: Model, config: Any, context: PassContext) -> Model:
        """Do the work: read `model.folder`, write below `context.output_dir`, return the new model."""
        raise NotImplementedError

    def __call__(self, model: Model, config: Any, context: PassContext) -> Model:
        """Check, run, check. Raises PassError with the pass's name when it broke a promise."""
        promised = self.plan(model.info, config, context.accelerator)
        needed = self.requirements(config, context.accelerator)
        for found, command in told(f"{self.spec.name}, as it is set,", needed, installed_version).values():
            raise ConfigError(f"{found}; {command}")
        self.check(config, context.accelerator)
        result = self.run(model, config, context)
        if not isinstance(result, Model):
            raise PassError(f"{self.spec.name} returned {type(result).__name__}; run() must return a Model")
        if result.kind != promised.kind:
            raise PassError(f"{self.spec.name} promised a model of kind {promised.kind} and made {result.kind}")
        if not result.files:
            raise PassError(f"{self.spec.name} made a model without files; write them below context.output_dir")
        for name, digest in result.files.items():
            if model.files.get(name) != digest and not (context.output_dir / name).is_file():
                raise PassError(
                    f"{self.spec.name} lists the file {name}, which is neither in its output folder nor in its input"
                )
        return result
