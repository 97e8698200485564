"""What is known of the execution providers that compile graphs; providers.toml holds it. Light."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Compiling", "compiling_providers", "provider_packages"]


@dataclass(frozen=True)
class Compiling:
    """An execution provider. packages: requirements, of which one brings it; the others: see providers.toml."""

    packages: tuple[str, ...]
    genai: str | None = None
    builder: str | None = None
    unopened: str | None = None

    @property
    def requirement(self) -> str:
        """The packages as a requirement with alternatives."""
        return " | ".join(self.packages)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the distributions, of which one brings it."""
        return tuple(re.split(r"[<>=!~ ]", text, maxsplit=1)[0] for text in self.packages)


@functools.cache
def compiling_providers() -> Mapping[str, Compiling]:
    """Return ONNX Runtime's name of each provider → what is known of it."""
    data = tomllib.loads(Path(__file__).with_name("providers.toml").read_text(encoding="utf-8"))
    return {name: Compiling(**{**fields, "packages": tuple(fields["packages"])}) for name, fields in data.items()}


def provider_packages() -> tuple[str, ...]:
    """Return the names of the distributions that bring such providers."""
    return tuple(dict.fromkeys(name for provider in compiling_providers().values() for name in provider.names))
