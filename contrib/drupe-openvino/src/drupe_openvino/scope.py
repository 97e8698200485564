"""Which operations NNCF leaves alone."""

from __future__ import annotations

from typing import Any

from drupe import PassConfig
from pydantic import Field

from drupe_openvino.libraries import nncf

__all__ = ["ScopedConfig"]


class ScopedConfig(PassConfig):
    """Base of configs with an ignored scope, in the two spellings that workflows use."""

    ignored_scope: list[str] | dict[str, list[str]] | None = Field(
        None, description="What to leave alone: names, or {names, patterns, types} with lists."
    )
    ignored_scope_type: str | None = Field(
        None, pattern="^(names|patterns|types)$", description="What a plain list of ignored_scope holds; names."
    )

    def nncf_scope(self) -> Any:
        """Return nncf.IgnoredScope, or None. Raises nncf's own error when a name matches nothing."""
        if self.ignored_scope is None:
            return None
        given = self.ignored_scope
        kinds = given if isinstance(given, dict) else {self.ignored_scope_type or "names": given}
        return nncf().IgnoredScope(**kinds)
