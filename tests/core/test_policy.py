"""Which plugins may be loaded: rules of four places, each of which can only narrow the others."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drupe.core import policy as policy_module
from drupe.core.errors import ConfigError
from drupe.core.policy import Item, Policy, Rules, check_rules, workflow_rules


@pytest.fixture(autouse=True)
def no_admin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(policy_module, "ADMIN_FILE", tmp_path / "absent.yaml")
    for name in ("DRUPE_POLICY", "DRUPE_NO_PLUGINS", "DRUPE_PLUGINS_ALLOW", "DRUPE_PLUGINS_BLOCK"):
        monkeypatch.delenv(name, raising=False)


def status(policy: Policy, distribution: str, version: str = "1.2.3", plugin: str = "main") -> str:
    return policy.decide(distribution, version, plugin)[0]


def test_without_rules_everything_is_loaded() -> None:
    assert status(Policy.current(), "acme-drupe") == "active"


@pytest.mark.parametrize(
    ("allow", "expected"),
    [
        (["acme-drupe"], "active"),
        (["Acme_Drupe"], "active"),
        (["acme-drupe==1.2.*"], "active"),
        (["acme-drupe>=1,<1.2"], "not allowed"),
        (["acme-*"], "active"),
        (["acme-drupe:main"], "active"),
        (["acme-drupe:other"], "not allowed"),
        (["other"], "not allowed"),
        ([], "not allowed"),
    ],
)
def test_allow_names_all_that_may_be_loaded(allow: list[str], expected: str) -> None:
    assert status(Policy.current({"allow": allow}), "acme-drupe") == expected


def test_a_version_that_no_specifier_can_judge_is_not_allowed_and_is_blocked() -> None:
    assert status(Policy.current({"allow": ["acme>=1"]}), "acme", "not-a-version") == "not allowed"
    assert status(Policy.current({"block": ["acme>=1"]}), "acme", "not-a-version") == "blocked"


def test_block_goes_before_allow() -> None:
    policy = Policy.current({"allow": ["acme"], "block": ["acme==1.*"]})
    assert status(policy, "acme", "1.5") == "blocked"
    assert status(policy, "acme", "2.0") == "active"


def test_without_autoload_only_what_is_named_is_loaded() -> None:
    policy = Policy.current({"autoload": False, "require": ["acme"]})
    assert status(policy, "acme") == "active"
    assert status(policy, "other") == "not allowed"


def test_the_built_ins_are_allowed_unless_blocked_by_name() -> None:
    assert status(Policy.current({"autoload": False, "allow": []}), "drupe", "0.1.0", "onnx") == "active"
    assert status(Policy.current({"block": ["drupe:onnx"]}), "drupe", "0.1.0", "onnx") == "blocked"
    assert status(Policy.current({"block": ["drupe:onnx"]}), "drupe", "0.1.0", "metrics") == "active"
    assert status(Policy.current({"block": ["onnx"]}), "drupe", "0.1.0", "onnx") == "active"


def test_a_workflow_cannot_widen_what_the_administrator_allows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("allow: ['acme-drupe==1.*']\n")
    monkeypatch.setattr(policy_module, "ADMIN_FILE", file)
    policy = Policy.current({"allow": ["other", "acme-drupe"]})
    assert status(policy, "other") == "not allowed"
    assert status(policy, "acme-drupe", "2.0") == "not allowed"
    assert status(policy, "acme-drupe", "1.0") == "active"
    assert str(file) in policy.decide("other", "1", "main")[1]


def test_the_policy_that_the_environment_names_does_not_replace_the_machines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine, own = tmp_path / "machine.yaml", tmp_path / "own.yaml"
    machine.write_text("block: [evil]\n")
    own.write_text("{}\n")
    monkeypatch.setattr(policy_module, "ADMIN_FILE", machine)
    monkeypatch.setenv("DRUPE_POLICY", str(own))
    assert status(Policy.current(), "evil") == "blocked"


@pytest.mark.parametrize("text", ["allow: [", "[]", "alow: [x]", "allow: acme", "block: ['acme=1']"])
def test_an_administrators_file_that_cannot_be_read_stops_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    monkeypatch.setenv("DRUPE_POLICY", str(file))
    with pytest.raises(ConfigError, match=r"policy\.yaml"):
        Policy.current()


def test_an_absent_policy_that_the_environment_names_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUPE_POLICY", "/nowhere/policy.yaml")
    with pytest.raises(ConfigError, match="nothing is loaded"):
        Policy.current()


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUPE_PLUGINS_BLOCK", "acme>=1,<2, other; third")
    policy = Policy.current()
    assert status(policy, "acme", "1.5") == "blocked"
    assert status(policy, "acme", "2.5") == "active"
    assert [status(policy, name) for name in ("other", "third")] == ["blocked", "blocked"]
    monkeypatch.setenv("DRUPE_PLUGINS_ALLOW", "acme")
    assert status(Policy.current(), "fourth") == "not allowed"


@pytest.mark.parametrize(("value", "expected"), [("1", "not allowed"), ("0", "active"), ("", "active")])
def test_no_plugins(monkeypatch: pytest.MonkeyPatch, value: str, expected: str) -> None:
    monkeypatch.setenv("DRUPE_NO_PLUGINS", value)
    assert status(Policy.current(), "acme") == expected
    assert status(Policy.current(), "drupe") == "active"


def test_a_workflow_cannot_undo_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRUPE_NO_PLUGINS", "1")
    assert status(Policy.current({"autoload": True, "allow": ["acme"]}), "acme") == "not allowed"


def test_every_fault_of_a_section_is_told_with_its_path() -> None:
    faults = check_rules({"alow": [], "autoload": "yes", "block": "acme", "allow": ["ok", 3, "acme=1"]})
    assert {fault.path for fault in faults} == {
        "plugins.alow", "plugins.autoload", "plugins.block", "plugins.allow.1", "plugins.allow.2",
    }  # fmt: skip
    assert next(f for f in faults if f.path == "plugins.alow").hint == "did you mean 'allow'?"


def test_a_workflow_that_cannot_be_read_loads_no_plugin(tmp_path: Path) -> None:
    broken, faulty, fine, none = (tmp_path / name for name in ("broken.json", "faulty.json", "fine.json", "none.json"))
    broken.write_text("{")
    faulty.write_text('{"plugins": {"alow": ["acme"]}}')
    fine.write_text('{"plugins": {"allow": ["acme"]}}')
    none.write_text("{}")
    assert workflow_rules(broken) == {"autoload": False}
    assert workflow_rules(tmp_path / "absent.json") == {"autoload": False}
    assert workflow_rules(faulty) == {"autoload": False}
    assert workflow_rules(fine) == {"allow": ["acme"]}
    assert workflow_rules(none) == {}


names = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=6)
rules = st.fixed_dictionaries(
    {},
    optional={
        "autoload": st.booleans(),
        "allow": st.lists(names, max_size=3),
        "block": st.lists(names, max_size=3),
    },
)


@given(rules, rules, names)
def test_more_rules_never_allow_more(first: dict[str, object], second: dict[str, object], name: str) -> None:
    both = Policy((Rules.of(first, "a"), Rules.of(second, "b")))
    alone = [Policy((Rules.of(data, "c"),)) for data in (first, second)]
    expected = all(status(policy, name) == "active" for policy in alone)
    assert (status(both, name) == "active") == expected


@given(st.text(max_size=20))
def test_any_text_is_an_item_or_a_value_error(text: str) -> None:
    try:
        item = Item.parse(text)
    except ValueError:
        return
    assert item.text == text
