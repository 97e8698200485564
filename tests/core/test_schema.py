"""The JSON Schema of workflows agrees with what `drupe validate` finds, and says what editors show."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from drupe.core.registry import Registry
from drupe.core.schema import workflow_schema
from drupe.core.workflow.read import examine

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.discover({"autoload": False})


@pytest.fixture(scope="module")
def validator(registry: Registry) -> jsonschema.Draft202012Validator:
    schema = workflow_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "input_model": {"type": "HfModel", "model_path": "a/model", "task": "text-generation"},
        "data_configs": [{"name": "d", "load_dataset_config": {"data_name": "json", "data_files": "d.jsonl"}}],
        "evaluators": {
            "e": {
                "metrics": [
                    {
                        "name": "acc",
                        "type": "accuracy",
                        "data_config": "d",
                        "sub_types": [
                            {"name": "accuracy_score", "priority": 1, "goal": {"type": "threshold", "value": 0.5}}
                        ],
                        "user_config": {"method": "generate", "max_new_tokens": 4},
                    }
                ]
            }
        },
        "evaluator": "e",
        "systems": {"here": {"type": "LocalSystem", "accelerators": [{"device": "cpu"}]}},
        "host": "here",
        "passes": {
            "tune": {
                "type": "lora",
                "train_data_config": "d",
                "r": {"search": [4, 8], "ordered": True},
                "training_args": {"learning_rate": {"search": {"low": 1e-5, "high": 1e-3, "log": True}}},
            }
        },
        "search_strategy": {"sampler": "tpe", "max_trials": 2},
        "plugins": {"allow": ["acme==1.*"]},
    }


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *parts, last = path.split(".")
        place: Any = document
        for part in parts:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[int(last) if isinstance(place, list) else last] = value

    return apply


RIGHT = [
    ("as it stands", lambda document: None),
    ("a type in another case", change("passes.tune.type", "LORA")),
    ("with its distribution", change("passes.tune.type", "drupe:LoRA")),
    (
        "a list of alternatives",
        change("passes.tune", [{"type": t, "train_data_config": "d"} for t in ("QLoRA", "LoRA")]),
    ),
    ("a bare list as a search", change("passes.tune.r", [4, 8])),
    ("SEARCHABLE_VALUES", change("passes.tune.r", "SEARCHABLE_VALUES")),
    ("no system type", change("systems.here", {})),
]
WRONG = [
    ("an unknown top-level key", change("pases", {})),
    ("an unknown pass", change("passes.tune.type", "LoRRA")),
    ("an unknown parameter", change("passes.tune.lora_rank", 3)),
    ("a parameter of the wrong type", change("passes.tune.r", "many")),
    ("a parameter out of range", change("passes.tune.r", 0)),
    ("an unknown parameter inside", change("passes.tune.training_args.lerning_rate", 1e-4)),
    ("a marker with an unknown key", change("passes.tune.r", {"search": {"low": 1, "hihg": 2}})),
    ("a missing required parameter", change("passes.tune", {"type": "LoRA"})),
    ("an unknown system", change("systems.here.type", "Mainframe")),
    ("an unknown device key", change("systems.here.accelerators", [{"devise": "cpu"}])),
    ("an unknown goal", change("evaluators.e.metrics.0.sub_types.0.goal.type", "at-least")),
    ("an unknown metric option", change("evaluators.e.metrics.0.user_config.metod", "x")),
    ("an unknown strategy key", change("search_strategy.max_tries", 3)),
    ("a model without a path", change("input_model", {"type": "HfModel"})),
    ("an unknown plugin rule", change("plugins.alow", [])),
    ("a data config without a name", change("data_configs.0", {"type": "HuggingfaceContainer"})),
]


def faults(registry: Registry, folder: Path, document: dict[str, Any]) -> list[str]:
    path = folder / "w.json"
    path.write_text(json.dumps(document))
    found = examine(path, registry)
    return [str(f) for f in found.faults if f.kind != "needs"]


@pytest.mark.parametrize(("name", "alter"), RIGHT)
def test_what_validate_accepts_the_schema_accepts(
    name: str,
    alter: Callable[[dict[str, Any]], None],
    document: dict[str, Any],
    validator: jsonschema.Draft202012Validator,
    registry: Registry,
    tmp_path: Path,
) -> None:
    alter(document)
    assert [e.message for e in validator.iter_errors(document)] == []
    assert faults(registry, tmp_path, document) == []


@pytest.mark.parametrize(("name", "alter"), WRONG)
def test_what_the_schema_refuses_validate_refuses(
    name: str,
    alter: Callable[[dict[str, Any]], None],
    document: dict[str, Any],
    validator: jsonschema.Draft202012Validator,
    registry: Registry,
    tmp_path: Path,
) -> None:
    alter(document)
    assert list(validator.iter_errors(document))
    assert faults(registry, tmp_path, document)


def test_the_examples_are_valid(validator: jsonschema.Draft202012Validator) -> None:
    files = [*EXAMPLES.rglob("drupe.yaml"), *EXAMPLES.rglob("workflow*.json")]
    assert files
    for path in files:
        document = yaml.safe_load(path.read_text())
        # What has an engine is of an older form, which is read and has no schema.
        if "engine" not in document:
            assert [e.message for e in validator.iter_errors(document)] == [], path


def test_it_tells_editors_what_a_parameter_means(registry: Registry) -> None:
    schema = workflow_schema(registry)
    lora = schema["$defs"]["passes: LoRA"]
    assert "rank" in lora["properties"]["r"]["description"].lower()
    assert lora["description"] == registry.get("drupe_passes", "LoRA").spec.summary
    names = schema["properties"]["passes"]["additionalProperties"]["anyOf"][0]["properties"]["type"]["anyOf"][0]["enum"]
    assert {"LoRA", "QLoRA"} <= set(names)


def test_making_it_twice_gives_the_same(registry: Registry) -> None:
    first = copy.deepcopy(workflow_schema(registry))
    assert workflow_schema(registry) == first
