"""The JSON Schema of workflow files, made of the Config classes of the installed plugins: what editors complete by.

It describes the current form of the file; older forms are upgraded when they are read. `drupe validate` checks against
the same Config classes, and tells more: what names refer to, whether the passes fit together.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import models_json_schema

from drupe.core.catalogue import get_catalogue
from drupe.core.config import references
from drupe.core.errors import PluginError
from drupe.core.registry import Registered, Registry
from drupe.core.workflow.read_evaluators import GOAL_KINDS

__all__ = ["workflow_schema"]

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_NAME: Json = {"type": "string", "minLength": 1}
_MAPPING: Json = {"type": "object"}
_SEARCH = "search marker"


def workflow_schema(registry: Registry) -> Json:
    """Return the JSON Schema (draft 2020-12) of workflow files as the installed plugins make it.

    A plugin whose Config can't be loaded, or can't be told as JSON Schema, is described by its name alone.
    """
    builder = _Builder(registry)
    passes = builder.kind("passes", "drupe_passes", {"host": _NAME, "evaluator": _NAME}, search=True)
    systems = builder.kind(
        "systems",
        "drupe_hosts",
        {"accelerators": _accelerators(registry), "runtime": _NAME, "runtime_options": _MAPPING},
    )
    data = builder.kind("data", "drupe_data_containers", {"name": _NAME, "split": _SPLIT}, required=["name"])
    models = builder.kind("models", "drupe_model_kinds", {})
    metrics = builder.kind("metrics", "drupe_metrics", _METRIC, loose=True)
    evaluator = {
        "type": "object",
        "properties": {"metrics": {"type": "array", "items": metrics}, "type": _NAME},
    }
    names = {"type": "array", "items": _NAME, "minItems": 1}
    properties = {
        "$schema": _TEXT,
        "name": _NAME,
        "input_model": models,
        "systems": {"type": "object", "additionalProperties": systems},
        "data_configs": {"type": "array", "items": data},
        "evaluators": {"type": "object", "additionalProperties": evaluator},
        "evaluator": _NAME,
        "passes": {
            "type": "object",
            "propertyNames": {"pattern": "^[^.]+$"},
            "additionalProperties": {"anyOf": [passes, {"type": "array", "items": passes, "minItems": 1}]},
        },
        "pass_flows": {"type": "array", "items": names, "minItems": 1},
        "search_strategy": _search_strategy(registry),
        "host": _NAME,
        "target": {"anyOf": [_NAME, names]},
        "baseline": _NAME,
        "cache_dir": _NAME,
        "output_dir": _NAME,
        "evaluate_input_model": {"type": "boolean"},
        "clean_cache": {"type": "boolean"},
        "log_severity_level": {"type": "integer", "minimum": 0, "maximum": 4},
        "seed": {"type": "integer", "minimum": 0},
        "plugins": _PLUGINS,
        "azureml_client": _MAPPING,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Drupe workflow",
        "type": "object",
        "required": ["input_model", "passes"],
        "properties": properties,
        "additionalProperties": False,
        "$defs": {_SEARCH: _MARKER, **builder.definitions},
    }


class _Builder:
    """Makes one schema per contributed name, and one that picks among them by `type`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.definitions: Json = {}

    def kind(
        self,
        section: str,
        hook: str,
        own: Mapping[str, Json],
        *,
        search: bool = False,
        loose: bool = False,
        required: Iterable[str] = (),
    ) -> Json:
        """Return the schema of an entry of a section. own: the keys that every entry has besides its Config's.

        search: values may be markers. loose: a Config's required keys may stand elsewhere (in user_config).
        """
        entries = self._registry.of(hook)
        default = get_catalogue().default(section)
        roots = self._roots(section, entries, search)
        cases: list[Json] = []
        for entry in entries:
            name = f"{section}: {self._registry.reference(entry)}"
            described = self._described(entry, roots.get(self._registry.reference(entry), {}), own, loose)
            self.definitions[name] = described
            cases.append({"if": _has_type(entry, default), "then": {"$ref": _pointer(name)}})
        names = sorted(self._registry.reference(entry) for entry in entries)
        return {
            "type": "object",
            "required": [*([] if default else ["type"]), *required],
            "properties": {"type": {"anyOf": [{"enum": names}, {"type": "string", "pattern": _any_name(entries)}]}},
            "allOf": cases,
        }

    def _roots(self, section: str, entries: Iterable[Registered], search: bool) -> dict[str, Json]:
        """The schema of each entry's Config; what several of them hold becomes one definition."""
        configs: dict[str, type[BaseModel]] = {}
        for entry in entries:
            try:
                config: type[BaseModel] = self._registry.resolve(entry).Config
                config.model_json_schema()
            except (PluginError, PydanticInvalidForJsonSchema, AttributeError):
                continue  # Its name alone stands in the schema.
            configs[self._registry.reference(entry)] = config
        models: list[tuple[type[BaseModel], Literal["validation"]]] = [
            (config, "validation") for config in dict.fromkeys(configs.values())
        ]
        places, generated = models_json_schema(models, ref_template=_pointer(f"{section}/") + "{model}")
        found: Json = generated.get("$defs", {})
        if search:
            found = {title: _searchable(definition) for title, definition in found.items()}
        titles = {c: str(places[c, "validation"]["$ref"]).rpartition("~1")[2] for c in configs.values()}
        own = set(titles.values())
        self.definitions |= {f"{section}/{title}": value for title, value in found.items() if title not in own}
        return {reference: copy.deepcopy(found[titles[config]]) for reference, config in configs.items()}

    def _described(self, entry: Registered, root: Json, own: Mapping[str, Json], loose: bool) -> Json:
        """An entry of one type: the Config's properties and those that every entry has."""
        properties = root.get("properties", {})
        if properties:
            for field, what in references(self._registry.resolve(entry).Config).items():
                if what == "data" and field in properties:
                    # A data config may stand where its name would.
                    properties[field] = {"anyOf": [properties[field], _MAPPING]}
        schema: Json = {"description": entry.spec.summary, "properties": {**properties, "type": _TEXT, **own}}
        closed = {"additionalProperties": False} if root.get("additionalProperties") is False else {}
        if loose and properties:
            schema["properties"]["user_config"] = {"type": "object", "properties": properties, **closed}
        elif root.get("required"):
            schema["required"] = root["required"]
        schema |= closed
        return schema


def _searchable(schema: Json) -> Json:
    """A schema whose properties may also be marked to be searched, or (Olive's form) be lists of values."""
    if "properties" not in schema:
        return schema
    marker = {"$ref": _pointer(_SEARCH)}
    wrapped = {}
    for name, value in schema["properties"].items():
        kept = {key: value[key] for key in ("description", "default", "title") if key in value}
        plain = {key: item for key, item in value.items() if key not in ("title", "drupe_search")}
        wrapped[name] = {**kept, "anyOf": [plain, marker, {"type": "array", "items": plain, "minItems": 1}]}
    return {**schema, "properties": wrapped}


def _has_type(entry: Registered, default: str | None) -> Json:
    named: Json = {"properties": {"type": {"pattern": _any_name([entry])}}, "required": ["type"]}
    names = {entry.spec.name.lower(), *(alias.lower() for alias in entry.spec.aliases)}
    return {"anyOf": [named, {"not": {"required": ["type"]}}]} if default and default.lower() in names else named


def _any_name(entries: Iterable[Registered]) -> str:
    """A pattern of the names and aliases in any case, their distribution in front or not."""
    names = sorted({name for entry in entries for name in (entry.spec.name, *entry.spec.aliases)})
    return f"^([^:]+:)?({'|'.join(map(_any_case, names))})$"


def _any_case(name: str) -> str:
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else re.escape(c) for c in name)


def _pointer(name: str) -> str:
    """A reference to a definition: its name inside a JSON pointer inside a URI."""
    return "#/$defs/" + name.replace("~", "~0").replace("/", "~1").replace("%", "%25").replace(" ", "%20")


def _accelerators(registry: Registry) -> Json:
    entries = registry.of("drupe_accelerators")
    providers = sorted({p for entry in entries for p in getattr(entry.spec, "providers", ())})
    provider = {"anyOf": [{"enum": providers}, _NAME]}
    with_options = {"type": "array", "prefixItems": [provider, _MAPPING], "minItems": 2, "maxItems": 2}
    device = {
        "type": "object",
        "properties": {
            "device": {"type": "string", "pattern": _any_name(entries)},
            "execution_providers": {
                "type": "array",
                "items": {"anyOf": [provider, with_options, {"type": "object", "maxProperties": 1}]},
            },
            "memory": {},
        },
        "additionalProperties": False,
    }
    return {"type": "array", "items": device, "minItems": 1}


def _search_strategy(registry: Registry) -> Json:
    samplers = sorted(entry.spec.name for entry in registry.of("drupe_samplers"))
    settings = {
        "type": "object",
        "properties": {
            "sampler": {"anyOf": [{"enum": ["auto", *samplers]}, _NAME]},
            "max_trials": {"type": ["integer", "null"], "minimum": 1},
            "max_time": {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "Seconds."},
            "seed": {"type": "integer", "minimum": 0},
            "stop_when_goals_met": {"type": "boolean"},
            "workers": {"type": "integer", "minimum": 1},
            "finalists": {"type": "integer", "minimum": 1, "description": "How many candidates may be certified."},
            "multi_fidelity": {"anyOf": [{"type": ["boolean", "null"]}, _MULTI_FIDELITY]},
            "storage": {"type": ["string", "null"], "description": "The URL of a storage that several machines share."},
            "options": _MAPPING,
        },
        "additionalProperties": False,
    }
    return {"anyOf": [{"type": ["boolean", "null"]}, settings]}


_MULTI_FIDELITY: Json = {
    "description": "Measure accuracy on a growing part of the samples, and drop what can't win.",
    "type": "object",
    "properties": {
        "first": {"type": "integer", "minimum": 2, "description": "Samples of the first look."},
        "growth": {
            "type": "number",
            "exclusiveMinimum": 1,
            "description": "How many times as many each further look has.",
        },
        "risk": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "description": "Of dropping the winner.",
        },
        "keep": {
            "enum": ["winner", "front"],
            "description": "front: only what another candidate beats in everything goes.",
        },
    },
    "additionalProperties": False,
}

_MARKER: Json = {
    "description": "Values to search over.",
    "anyOf": [
        {"enum": ["SEARCHABLE_VALUES", "DEFAULT_VALUE"]},
        {
            "type": "object",
            "required": ["search"],
            "properties": {
                "search": {
                    "anyOf": [
                        {"const": True, "description": "The range that the pass declares."},
                        {"type": "array", "minItems": 1},
                        {
                            "type": "object",
                            "required": ["low", "high"],
                            "properties": {
                                "low": {"type": "number"},
                                "high": {"type": "number"},
                                "log": {"type": "boolean"},
                                "step": {"type": ["number", "null"]},
                            },
                            "additionalProperties": False,
                        },
                    ]
                },
                "ordered": {"type": "boolean"},
                "when": _MAPPING,
            },
            "additionalProperties": False,
        },
    ],
}
_GOAL: Json = {
    "type": "object",
    "required": ["type", "value"],
    "properties": {
        "type": {"enum": list(GOAL_KINDS)},
        "value": {"type": "number"},
        "confidence": {"type": ["number", "null"], "minimum": 0.5, "exclusiveMaximum": 1},
    },
    "additionalProperties": False,
}
_SUB_TYPE: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": _NAME,
        "priority": {"type": "integer"},
        "goal": {"anyOf": [_GOAL, {"type": "null"}]},
        "higher_is_better": {"type": "boolean"},
        "metric_config": {},
    },
    "additionalProperties": False,
}
_METRIC: Json = {
    "name": _NAME,
    "data_config": _NAME,
    "sub_types": {"type": "array", "items": {"anyOf": [_NAME, _SUB_TYPE]}, "minItems": 1},
    "user_config": _MAPPING,
    "backend": {"type": ["string", "null"]},
}
_AMOUNT: Json = {"anyOf": [{"type": "number", "minimum": 0}, {"const": "rest"}]}
_SPLIT: Json = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "train": _AMOUNT,
                "selection": _AMOUNT,
                "certification": _AMOUNT,
                "seed": {"type": "integer", "minimum": 0},
            },
            "additionalProperties": False,
        },
        {"type": ["string", "null"]},
    ]
}
_ITEMS: Json = {"type": ["array", "null"], "items": _NAME}
_PLUGINS: Json = {
    "type": "object",
    "properties": {"autoload": {"type": "boolean"}, "allow": _ITEMS, "block": _ITEMS, "require": _ITEMS},
    "additionalProperties": False,
}
