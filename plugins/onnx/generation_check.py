"""What a graph generates beside what its reference generates: how many of the first tokens are the same."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from drupe.core.config import FileRef, PassConfig
from drupe.core.context import PassContext
from drupe.core.errors import ConfigError
from drupe.core.model import Model
from drupe.core.runtimes import GenerateOptions, Session
from drupe.plugins.onnx.reference_model import open_model, reference_model

__all__ = ["GenerationOptions", "compare_generation"]


class GenerationOptions(PassConfig):
    """Whether texts are compared too, and how long the calls take."""

    genai_model_path: FileRef | None = Field(
        None,
        description="A folder for onnxruntime-genai that generates in place of the graph, which may not be able to.",
    )
    generate_prompt: str = Field("The capital of France is", min_length=1, description="What both go on from.")
    generate_max_new_tokens: int = Field(32, ge=1, description="How many tokens each adds, greedily.")
    min_longest_common_tokens: int | None = Field(
        None, ge=0, description="How many of the first new tokens must be the same; given, the two generate."
    )
    time_to_first_n_tokens: int = Field(5, ge=1, description="The seconds to so many tokens are told as well.")
    warmup_iterations: int = Field(3, ge=0, description="Calls of each before those that are timed.")
    timing_iterations: int = Field(
        0,
        ge=0,
        description="Timed calls of the graph and the reference in turn, for the report; the metric latency measures "
        "alone on the machine.",
    )

    @property
    def generates(self) -> bool:
        """Whether texts are compared."""
        return self.genai_model_path is not None or self.min_longest_common_tokens is not None


def compare_generation(
    pass_name: str, model: Model, reference: Session, config: GenerationOptions, context: PassContext
) -> tuple[dict[str, Any], list[str]]:
    """Return what is found, and what is beyond the limit. Raises ConfigError where one of the two can't generate."""
    if "generate" not in reference.capabilities:
        raise ConfigError(f"{pass_name}: the reference can't generate; leave min_longest_common_tokens out")
    subject = model
    if config.genai_model_path is not None:
        subject = reference_model(pass_name, str(config.genai_model_path), context, field="genai_model_path")
        if subject.kind != "genai":
            raise ConfigError(f"{pass_name}: genai_model_path {config.genai_model_path} has no genai_config.json")
    with open_model(subject, context.accelerator, context) as session:
        if "generate" not in session.capabilities:
            raise ConfigError(
                f"{pass_name}: the graph can't generate, since it takes no keys and values; name a folder for "
                "onnxruntime-genai as genai_model_path, or leave min_longest_common_tokens out"
            )
        options = GenerateOptions(max_new_tokens=config.generate_max_new_tokens)
        prompt = reference.tokenize(config.generate_prompt)
        ours = session.generate(prompt, options).outputs
        theirs = reference.generate(prompt, options).outputs
    common = 0
    for a, b in zip(ours["token_ids"], theirs["token_ids"], strict=False):
        if a != b:
            break
        common += 1
    found: dict[str, Any] = {"text": ours["text"], "reference_text": theirs["text"], "common_tokens": common}
    for name, made in (("graph", ours), ("reference", theirs)):
        seconds = list(made["token_seconds"])
        if seconds:
            last = min(config.time_to_first_n_tokens, len(seconds))
            found[f"{name}_seconds"] = {"first": float(seconds[0]), f"first_{last}": float(seconds[last - 1])}
    # An answer that ends early in both is the same from end to end.
    whole = common == len(ours["token_ids"]) == len(theirs["token_ids"])
    least = config.min_longest_common_tokens
    if least is not None and common < least and not whole:
        return found, [
            f"min_longest_common_tokens: {common}, at least {least} is asked; the graph goes on with "
            f"{ours['text'][:60]!r}, the reference with {theirs['text'][:60]!r}"
        ]
    return found, []
