"""The catalogue: data that says what public names exist, who provides them, and how older spellings read."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from drupe.core.catalogue import SECTIONS, Catalogue, get_catalogue
from drupe.core.errors import PluginError

TEXT = {
    "defaults": {"systems": "Mine"},
    "provides": {"vendor: Acme": {"passes": ["AcmeCompile"]}, "not yet": {"passes": ["Later"]}},
    "renamed": {"passes": {"AcmeBuild": "AcmeCompile"}},
    "parameters": {
        "passes": [
            {"types": ["AcmeCompile"], "renamed": {"a": "b"}, "means": {"Other": ["bits"]}},
            {"types": ["*"], "dropped": {"verbose": "told anyway"}},
            {"types": ["AcmeBuild"], "defaults": {"bits": 8}},
        ]
    },
}


def test_names_are_found_without_case() -> None:
    catalogue = Catalogue((TEXT,))
    assert catalogue.provider("passes", "ACMECOMPILE") == "vendor: Acme"
    assert catalogue.provider("passes", "Unknown") is None
    assert catalogue.provider("systems", "AcmeCompile") is None
    assert catalogue.current("passes", "acmebuild") == "AcmeCompile"
    assert catalogue.names("passes") == {"AcmeCompile": "vendor: Acme", "Later": "not yet"}
    assert catalogue.default("systems") == "Mine" and catalogue.default("data") is None


def test_rules_of_a_type_and_of_all_types() -> None:
    rules = Catalogue((TEXT,)).parameters("passes", "acmecompile")
    assert (rules.renamed, rules.means, rules.dropped) == ({"a": "b"}, {"bits": "Other"}, {"verbose": "told anyway"})
    assert Catalogue((TEXT,)).parameters("passes", "Later").renamed == {}
    assert Catalogue((TEXT,)).parameters("passes", "AcmeBuild").defaults == {"bits": 8} and not rules.defaults


def test_the_shipped_catalogue_lists_each_name_once() -> None:
    [document] = get_catalogue().documents
    for section in SECTIONS:
        names = [n.lower() for sections in document["provides"].values() for n in sections.get(section, ())]
        assert len(names) == len(set(names)), section
    assert set(document["renamed"]["passes"].values()) <= set(get_catalogue().names("passes"))


def test_no_parameter_has_two_rules() -> None:
    [document] = get_catalogue().documents
    told = [
        (section, name, kind, parameter)
        for section, rules in document["parameters"].items()
        for rule in rules
        for name in rule["types"]
        for kind, own in rule.items()
        if kind != "types"
        for parameter in own
    ]
    assert [entry for entry in told if told.count(entry) > 1] == []


def test_the_shipped_catalogue_knows_what_is_installed() -> None:
    from drupe.core.registry import get_registry

    known = {section: set(get_catalogue().names(section)) for section in SECTIONS}
    for section in ("passes", "systems", "data", "metrics"):
        ours = [e.spec.name for e in get_registry().of(SECTIONS[section]) if e.plugin.distribution == "drupe"]
        assert [name for name in ours if name not in known[section]] == []
        builtin = [name for name, provider in get_catalogue().names(section).items() if provider == "built-in"]
        assert sorted(builtin) == sorted(ours), section


def test_a_broken_catalogue_names_its_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "brokenlib"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "names.toml").write_text("[provides\n")
    info = tmp_path / "brokenlib-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brokenlib\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[drupe.catalogues]\nb = brokenlib:names.toml\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(PluginError, match=r"brokenlib:names.toml of brokenlib 1.0 can't be read"):
        Catalogue.read()
    (package / "names.toml").write_text('[provides."vendor: B"]\npasses = ["B"]\n')
    assert Catalogue.read().provider("passes", "b") == "vendor: B"
