"""What the readers of a workflow's sections share: the plugins, the findings, and looking up a name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drupe.core.catalogue import SECTIONS, Catalogue
from drupe.core.config import inner_configs, references
from drupe.core.errors import PluginError
from drupe.core.registry import Registered, Registry
from drupe.core.workflow.findings import Findings, join, listed, nearest, shown

__all__ = ["FILL_IN", "WHAT", "Reading", "take_placeholders", "walk"]

WHAT = {
    "passes": "pass",
    "systems": "system",
    "data": "data container",
    "metrics": "metric",
    "models": "model kind",
    "sources": "model source",
    "accelerators": "device",
}
FILL_IN = "fill it in"
"""The hint of a value that is still to be filled in."""
_PLACEHOLDER = re.compile(
    r"^<\s*(place[ _-]?holder|subscription[ _-]?id|resource[ _-]?group|workspace[ _-]?name)\s*>$", re.IGNORECASE
)


@dataclass
class Reading:
    """One workflow being read."""

    registry: Registry
    catalogue: Catalogue
    findings: Findings
    folder: Path
    allow: frozenset[str] = frozenset()
    all_systems: bool = False
    """Whether systems that nothing runs on are read as well."""
    system_names: list[str] = field(default_factory=list)
    measuring: list[str] = field(default_factory=list)
    """Names of systems that only measure."""
    data_names: list[str] = field(default_factory=list)

    def look_up(self, section: str, name: Any, path: str) -> tuple[Registered, Any] | None:
        """Return the registered entry and its class; None with the fault, or what is missing, recorded at `path`."""
        entry = self.find(section, name, path)
        if entry is None:
            return None
        try:
            return entry, self.registry.resolve(entry)
        except PluginError as error:
            self.findings.fault(path, str(error))
            return None

    def find(self, section: str, name: Any, path: str) -> Registered | None:
        """Return the registered entry without importing its class; None with what was found recorded at `path`."""
        if not isinstance(name, str) or not name:
            self.findings.fault(path, "not given" if name is None else shown(name), f"the name of a {WHAT[section]}")
            return None
        try:
            entry = self.registry.find(SECTIONS[section], name)
            if entry is not None:
                return entry
        except PluginError as error:
            self.findings.fault(path, str(error))
            return None
        self._tell_absent(section, name, path)
        return None

    def _tell_absent(self, section: str, name: str, path: str) -> None:
        provider = self.catalogue.provider(section, name)
        what = WHAT[section]
        if provider is not None:
            self.findings.fault(
                path,
                f"the {what} {name!r} is not installed",
                "a plugin that provides it",
                f"known as: {provider}",
                kind="missing",
            )
            return
        installed = [e.spec.name for e in self.registry.of(SECTIONS[section])]
        known = [*installed, *self.catalogue.names(section)]
        bound = self.catalogue.evaluator(name) if section == "metrics" else None
        if bound is not None:
            hint = f"{bound[0]} is a type of evaluator, and stands beside its metrics"
            self.findings.fault(path, f"no metric is named {name!r}", "a metric", hint)
            return
        hint = nearest(name, known) or (f"installed: {', '.join(sorted(installed))}" if installed else "")
        # A plugin that can't be loaded may be the one that has it.
        hint = "; ".join(filter(None, [hint, self.registry.unusable()]))
        unusable = self.registry.unusable()
        hint = "; ".join(filter(None, [hint, unusable]))
        self.findings.fault(path, f"no {what} is named {name!r}", f"a {what} that is installed or known", hint)

    def tell_measuring(self, name: str, path: str) -> None:
        """Record that passes do not run on a system that only measures."""
        self.findings.notice(path, repr(name), "this machine, for passes", f"{name} only measures")

    def check_references(self, config: Any, values: Mapping[str, Any], path: str) -> None:
        """Record what the reference fields of a Config name and isn't there: data configs, files, secrets."""
        for name, what in references(config).items():
            value = values.get(name)
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, str):
                    where = join(path, name)
                    self.check_reference(what, item, join(where, index) if isinstance(value, list) else where)
        for name, inner in inner_configs(config).items():
            if isinstance(values.get(name), Mapping):
                self.check_references(inner, values[name], join(path, name))

    def check_reference(self, what: str, item: str, path: str) -> None:
        """Record a reference of one kind that leads nowhere."""
        if what == "data" and item not in self.data_names:
            expected = listed(self.data_names) or "an entry of data_configs"
            self.findings.fault(path, f"no data config is named {item!r}", expected, nearest(item, self.data_names))
        elif what == "file":
            self.need_file(item, path)
        elif what == "secret":
            import os

            if item not in os.environ:
                self.findings.fault(
                    path, f"the environment variable {item} is not set", "a secret in it", f"set {item}", kind="needs"
                )

    def need_file(self, item: str, path: str) -> None:
        """Record a file or folder that is not there as needed."""
        location = self.folder / Path(item).expanduser()
        try:
            absent = not location.exists()
        except OSError:
            absent = True
        if absent and not self._told(f"{item} is not there"):
            self.findings.fault(
                path, f"{item} is not there", "a file or folder", f"looked for {location.absolute()}", kind="needs"
            )

    def _told(self, found: str) -> bool:
        """Whether the same was needed elsewhere in the file: one script serves many places."""
        return any(fault.kind == "needs" and fault.found == found for fault in self.findings.faults)

    def need_consent(self, what: str, path: str, found: str) -> None:
        """Record a consent that the user has not given as needed."""
        if what not in self.allow and not self._told(found):
            self.findings.fault(path, found, "the user's consent", f"add --allow {what} if you trust it", kind="needs")


def walk(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (path, key, value) for every key of every mapping inside a value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield join(path, key), key, item
            yield from walk(item, join(path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from walk(item, join(path, index))


def take_placeholders(value: Any, path: str, findings: Findings, places: set[str]) -> Any:
    """Return a document without values that are still to be filled in; each is recorded as needed."""
    if isinstance(value, dict):
        kept = {}
        for key, item in value.items():
            where = join(path, key)
            if _is_placeholder(item):
                places.add(where)
                findings.fault(where, str(item if isinstance(item, str) else item[0]), "a value", FILL_IN, "needs")
                continue
            taken = take_placeholders(item, where, findings, places)
            # A list of nothing but such values is one that is to be filled in.
            if not (isinstance(item, list) and item and taken == []):
                kept[key] = taken
        return kept
    if isinstance(value, list):
        left = []
        for index, item in enumerate(value):
            if isinstance(item, list) and _is_placeholder(item):
                findings.fault(join(path, index), str(item[0]), "a value", FILL_IN, "needs")
                places.add(join(path, index))
            else:
                left.append(take_placeholders(item, join(path, index), findings, places))
        return left
    return value


def _is_placeholder(value: Any) -> bool:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return isinstance(value, str) and _PLACEHOLDER.match(value) is not None
