"""What the public names of the field are, who provides each, and how older spellings read today.

The knowledge is data that plugins ship: an entry point in the group `drupe.catalogues` names a TOML file as
"package:file". Reading it imports nothing. A file holds:

```toml
[defaults]                       # what an entry without a type is
systems = "LocalSystem"

[provides."vendor: Theirs"]
passes = ["CompileProgram"]      # also systems, data, metrics, models, accelerators

[evaluators]                     # types of evaluators that list metrics, and the model kinds that each measures
TheirEvaluator = ["theirkind"]

[renamed.passes]                 # older type → today's
BuildProgram = "CompileProgram"

[commands.instead]               # commands of another tool, and what takes the place of each
build = "a workflow with CompileProgram"
[commands.written]               # those that write the workflow that they would run
names = ["build"]

[sub_types.accuracy]             # values of a metric that are a metric of their own
surprise = "surprise"

[components]                     # functions that data configs may name without a script
post_process_data_config = ["skip_post_process"]

[[parameters.passes]]            # how older parameters of some types read today
types = ["CompileProgram"]
renamed = {"opts.lvl" = "options.level"}
means = {QuantizeProgram = ["bits"]}   # a parameter that says another type was meant
dropped = {"verbose" = "the log always holds everything"}
noted = {"share" = "a share of the training data that is held out"}
unprovided = {"opts.exotic" = "what nothing provides yet"}
moved = {"shape" = "input_model.io_config.shape"}   # what belongs to another section of the workflow

[[parameters.passes]]            # rules of an older type hold before today's
types = ["BuildProgram"]
defaults = {bits = 8}            # what the older type meant where the file says nothing
```
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from drupe.core.errors import PluginError
from drupe.core.plugin_index import CATALOGUE_GROUP, EntryPoint, PluginIndex

__all__ = ["CATALOGUE_GROUP", "SECTIONS", "Catalogue", "ParameterUpgrades", "get_catalogue"]

SECTIONS = {
    "passes": "drupe_passes",
    "systems": "drupe_hosts",
    "data": "drupe_data_containers",
    "metrics": "drupe_metrics",
    "models": "drupe_model_kinds",
    "sources": "drupe_model_sources",
    "accelerators": "drupe_accelerators",
}
"""Section of a catalogue → the hook whose names it lists."""


@dataclass(frozen=True)
class ParameterUpgrades:
    """How the older parameters of a type read today. Keys are dotted paths inside the entry; the values of `moved` are
    dotted paths in the workflow."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    means: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    noted: Mapping[str, str] = field(default_factory=dict)
    unprovided: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalogue:
    """The merged catalogues of the installed distributions."""

    documents: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def read(cls) -> Catalogue:
        """Read every installed catalogue. Raises PluginError naming the distribution whose file is broken."""
        return cls(tuple(_load(point) for point in PluginIndex().group(CATALOGUE_GROUP)))

    @cached_property
    def _providers(self) -> Mapping[tuple[str, str], tuple[str, str]]:
        found: dict[tuple[str, str], tuple[str, str]] = {}
        for document in self.documents:
            for provider, sections in document.get("provides", {}).items():
                for section, names in sections.items():
                    found.update({(section, name.lower()): (name, provider) for name in names})
        return found

    def provider(self, section: str, name: str) -> str | None:
        """Return who provides a public name ("built-in", "vendor: …", "not yet"), or None when it is not listed."""
        entry = self._providers.get((section, name.lower()))
        return entry[1] if entry else None

    def names(self, section: str) -> Mapping[str, str]:
        """Return name → provider of a section, in order of name."""
        return dict(sorted(entry for (where, _), entry in self._providers.items() if where == section))

    def current(self, section: str, name: str) -> str | None:
        """Return today's name of an older type name, or None when it was not renamed."""
        for document in self.documents:
            for old, new in document.get("renamed", {}).get(section, {}).items():
                if old.lower() == name.lower():
                    return str(new)
        return None

    def default(self, section: str) -> str | None:
        """Return the type of an entry that names none."""
        for document in self.documents:
            if section in document.get("defaults", {}):
                return str(document["defaults"][section])
        return None

    def evaluator(self, name: str) -> tuple[str, tuple[str, ...]] | None:
        """Return the name of an evaluator type that lists metrics, and the model kinds that it measures; or None."""
        for document in self.documents:
            for known, kinds in document.get("evaluators", {}).items():
                if known.lower() == name.lower():
                    return known, tuple(kinds)
        return None

    def instead(self, command: str) -> tuple[str, bool] | None:
        """Return what takes the place of another tool's command, and whether that writes the workflow it would run."""
        for document in self.documents:
            commands = document.get("commands", {})
            if command in commands.get("instead", {}):
                return str(commands["instead"][command]), command in commands.get("written", {}).get("names", ())
        return None

    def own_metric(self, metric: str, sub_type: str) -> str | None:
        """Return the metric that a sub-type of another is today, or None."""
        for document in self.documents:
            for known, names in document.get("sub_types", {}).items():
                if known.lower() == metric.lower() and sub_type in names:
                    return str(names[sub_type])
        return None

    def components(self, group: str) -> frozenset[str]:
        """Return the functions that a group of a data config may name without a script of the user's."""
        lists = (document.get("components", {}).get(group, ()) for document in self.documents)
        return frozenset(name for names in lists for name in names)

    def parameters(self, section: str, type_name: str) -> ParameterUpgrades:
        """Return how the older parameters of a type read today; rules of type "*" hold for all of a section.

        section: one of SECTIONS, or "sub_types": what a metric of that type says of its values.
        """
        lists = ("renamed", "dropped", "noted", "unprovided", "defaults", "moved")
        merged: dict[str, dict[str, Any]] = {name: {} for name in (*lists, "means")}
        for document in self.documents:
            for rules in document.get("parameters", {}).get(section, ()):
                if not _named(type_name, rules.get("types", ())):
                    continue
                for name in lists:
                    merged[name].update(rules.get(name, {}))
                for other, keys in rules.get("means", {}).items():
                    merged["means"].update(dict.fromkeys(keys, other))
        return ParameterUpgrades(**merged)


def _named(name: str, types: Iterable[str]) -> bool:
    return any(candidate in ("*", name) or candidate.lower() == name.lower() for candidate in types)


def _load(point: EntryPoint) -> Mapping[str, Any]:
    from drupe.core.introspect import module_source

    owner = f"{point.distribution} {point.version}"
    module, _, file = point.value.partition(":")
    try:
        text = module_source(module).with_name(file).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except (LookupError, OSError, tomllib.TOMLDecodeError) as error:
        raise PluginError(f"the catalogue {point.value} of {owner} can't be read: {error}") from error


_catalogue: Catalogue | None = None


def get_catalogue() -> Catalogue:
    """Return the process's catalogue, read on first use."""
    global _catalogue
    if _catalogue is None:
        _catalogue = Catalogue.read()
    return _catalogue
