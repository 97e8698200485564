"""What every plugin must do, whatever its kind: the cases that all contracts share."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ValidationError

from drupe.core.config import Choice, Ordered, Range, search_range
from drupe.core.registry import Registered, Registry
from drupe.core.testing.imports import assert_light_import

__all__ = ["ConfigContract", "Contract"]


class Contract:
    """name: how the plugin is registered. Subclasses set `hook`."""

    hook: ClassVar[str] = ""
    name: ClassVar[str] = ""

    @pytest.fixture
    def registry(self) -> Registry:
        """The installed plugins. An author who tests without installing gives another."""
        return Registry.discover()

    @pytest.fixture
    def registered(self, registry: Registry) -> Registered:
        """The entry under test."""
        if not self.name:
            pytest.fail(f"set {type(self).__name__}.name to the name under which it is registered")
        return registry.get(self.hook, self.name)

    @pytest.fixture
    def subject(self, registry: Registry, registered: Registered) -> Any:
        """The object under test, made as Drupe makes it."""
        return registry.resolve(registered)(registered.spec)

    def test_it_says_what_it_is(self, registry: Registry, registered: Registered) -> None:
        """The spec has a summary and its target can be imported."""
        assert registered.spec.summary, f"{registered.spec.name} has no summary; `drupe passes` and its kin show it"
        assert registry.resolve(registered) is not None

    def test_its_modules_are_light(self, registered: Registered) -> None:
        """Neither the plugin's module nor the target's imports a framework: validation reads both."""
        modules = {registered.plugin.module.partition(":")[0], registered.spec.target.partition(":")[0]}
        assert_light_import(*sorted(modules))

    def test_its_requirements_can_be_read(self, registered: Registered) -> None:
        """`requires` holds PEP 508 requirements and `key_packages` plain names."""
        from packaging.requirements import Requirement

        for text in registered.spec.requires:
            Requirement(text)
        for name in getattr(registered.spec, "key_packages", ()):
            assert Requirement(name).name == name, f"{name!r} is no plain distribution name"


class ConfigContract(Contract):
    """What holds for every plugin with a Config."""

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        """The config as a workflow writes it; override it where a parameter has no default."""
        return {}

    @pytest.fixture
    def config_class(self, registry: Registry, registered: Registered) -> type[BaseModel]:
        """The Config class."""
        found: type[BaseModel] = registry.resolve(registered).Config
        return found

    @pytest.fixture
    def config(self, config_class: type[BaseModel], config_values: dict[str, Any]) -> Any:
        """The validated config."""
        return config_class.model_validate(config_values)

    def test_every_parameter_is_documented(self, config_class: type[BaseModel]) -> None:
        """`drupe passes NAME` and editors show the descriptions."""
        silent = [name for name, info in config_class.model_fields.items() if not info.description]
        assert not silent, f"parameters without a description: {', '.join(silent)}"

    def test_an_unknown_parameter_is_refused(self, config: BaseModel, config_values: dict[str, Any]) -> None:
        """Nothing that a user writes is ignored."""
        with pytest.raises(ValidationError, match="no_such_parameter"):
            type(config).model_validate({**config_values, "no_such_parameter": 1})

    def test_every_default_is_valid(self, config_class: type[BaseModel]) -> None:
        """A workflow that leaves a parameter out is not to be told that it is wrong."""
        try:
            config_class.model_validate({})
        except ValidationError as error:
            own = {name for name, info in config_class.model_fields.items() if not info.is_required()}
            wrong = [f"{e['loc'][0]}: {e['msg']}" for e in error.errors() if e["loc"] and e["loc"][0] in own]
            assert not wrong, f"these defaults are refused by their own fields: {'; '.join(wrong)}"

    def test_the_config_survives_json(self, config: BaseModel) -> None:
        """It travels to the host as JSON, and means the same there."""
        assert type(config).model_validate_json(config.model_dump_json()) == config

    def test_search_ranges_fit_their_fields(self, config: BaseModel, config_values: dict[str, Any]) -> None:
        """Every listed value and both ends of a declared range are valid for the field."""
        for name, info in type(config).model_fields.items():
            extra = info.json_schema_extra
            when: Any = extra.get("drupe_search", {}) if isinstance(extra, dict) else {}
            strange = sorted(set(when.get("when", {})) - set(type(config).model_fields))
            assert not strange, f"{name} is searched where {', '.join(strange)} has some value, which is no parameter"
            for value in _ends(search_range(type(config), name)):
                try:
                    type(config).model_validate({**config_values, name: value})
                except ValidationError as error:
                    wrong = [e["msg"] for e in error.errors() if e["loc"][:1] == (name,)]
                    assert not wrong, f"{name} declares {value!r} as worth searching, and refuses it: {wrong[0]}"


def _ends(over: Range | None) -> tuple[Any, ...]:
    if over is None:
        return ()
    return over.values if isinstance(over, (Choice, Ordered)) else (over.low, over.high)
