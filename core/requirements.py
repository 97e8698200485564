"""Which requirements (PEP 508) an environment does not meet."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable

__all__ = ["alternatives", "installed_builds", "installed_version", "told", "unmet"]

_BUILDS = {
    "onnxruntime": ("gpu", "openvino", "directml", "migraphx", "rocm"),
    "onnxruntime-genai": ("cuda", "directml"),
}
"""Distributions whose modules come under other names as well, built for other devices: name → what the names end in."""


def alternatives(text: str) -> list[str]:
    """Return the requirements of which one is enough: "a>=1 | b" is met by either."""
    return [part.strip() for part in text.split("|")]


def unmet(requirements: Iterable[str], version_of: Callable[[str], str | None]) -> dict[str, str]:
    """Return requirement → the version that is there instead, or "none".

    version_of: an environment's version of a distribution by its name in lower case with hyphens, None where it is
    absent. What is no requirement, and what is for other platforms, counts as met; of alternatives one is enough, and
    so is a build for another device (onnxruntime-gpu for onnxruntime).
    """
    found = {}
    for text in requirements:
        there = [_lacking(part, version_of) for part in alternatives(text)]
        if all(version is not None for version in there):
            found[text] = next((str(version) for version in there if version != "none"), "none")
    return found


def told(who: str, requirements: Iterable[str], version_of: Callable[[str], str | None]) -> dict[str, tuple[str, str]]:
    """Return requirement → what is to be said of one that is not met: what was found, and the command that helps."""
    found = {}
    for text, there in unmet(requirements, version_of).items():
        any_of = alternatives(text)
        command = f"pip install {' or '.join(map(repr, any_of))}"
        found[text] = (f"{who} needs {' or '.join(any_of)}; there is {there}", command)
    return found


def _lacking(text: str, version_of: Callable[[str], str | None]) -> str | None:
    """Return the version that is there in place of a requirement, or "none"; None where it is met."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    if requirement.marker is not None and not requirement.marker.evaluate():
        return None
    there = next(iter(_builds_there(requirement.name.lower().replace("_", "-"), version_of).values()), None)
    if there is not None and requirement.specifier.contains(there, prereleases=True):
        return None
    return there or "none"


def _builds_there(name: str, version_of: Callable[[str], str | None]) -> dict[str, str]:
    """Return distribution → version of what is there of a distribution, under its own name or that of a build of it."""
    names = (name, *(f"{name}-{end}" for end in _BUILDS.get(name, ())))
    return {one: version for one in names if (version := version_of(one)) is not None}


def installed_builds(name: str) -> dict[str, str]:
    """Return distribution → version of what is in this environment of one, builds for other devices among it."""
    return _builds_there(name, installed_version)


def installed_version(name: str) -> str | None:
    """Return the version of a distribution in this environment, None where it is absent."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
