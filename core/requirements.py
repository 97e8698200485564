"""Which requirements (PEP 508) an environment does not meet."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable

__all__ = ["installed_version", "unmet"]


def unmet(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> dict[str, str]:
    """Return requirement → the version that is there instead, or "none".

    version_of: an environment's version of a distribution by its name in lower case with hyphens, None where it is
    absent. What is no requirement, and what is for other platforms, counts as met.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    found = {}
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        there = version_of(requirement.name.lower().replace("_", "-"))
        if there is None or not requirement.specifier.contains(there, prereleases=True):
            found[text] = there or "none"
    return found


def installed_version(name: str) -> str | None:
    """Return the version of a distribution in this environment, None where it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
