"""`drupe passes` and `drupe plugins`: what is told of what is installed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from drupe.testing import install_plugin
from tests.support.commands import run_command

FILES = {
    "acme/__init__.py": "",
    "acme/plugin.py": """
        from drupe import MetricSpec, PassSpec, hookimpl

        @hookimpl
        def drupe_passes():
            return [
                PassSpec(name="Squeeze", target="acme.passes:Squeeze", accepts={"onnx"}, produces="acme",
                         summary="Squeeze it.", requires=("numpy>=1",), accelerators={"npu"}),
                PassSpec(name="Silent", target="acme.passes:Silent", accepts={"onnx"}),
            ]

        @hookimpl
        def drupe_step_started(step):
            pass
    """,
    "acme/passes.py": '''
        from typing import Literal

        from pydantic import BaseModel, Field

        from drupe import DataRef, IntRange, Model, Ordered, Pass, PassConfig, searchable


        class Inner(BaseModel):
            depth: int = Field(2, description="How deep.")


        class Squeeze(Pass):
            """Squeeze a model (A. Author 2020)."""

            class Config(PassConfig):
                data_config: DataRef | None = None
                bits: int = searchable(4, Ordered(2, 4, 8), doc="Bits of a weight.", ge=1, le=8)
                size: int = searchable(16, IntRange(4, 64, log=True), doc="Size.", when={"mode": ["fast"]})
                mode: Literal["fast", "slow"] = Field("fast", description="How.")
                needed: list[str] = Field(description="What is needed.")
                inner: Inner = Field(default_factory=Inner, description="More.")


        class Silent(Pass):
            def run(self, model, config, context):
                path = model.folder / "model.onnx"
                path.write_bytes(path.read_bytes() + b"0")
                (context.output_dir / "model.onnx").write_text(str(context.output_dir))
                return Model.from_dir("onnx", context.output_dir)
    ''',
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return install_plugin(tmp_path / "site", "acme-drupe", FILES, plugins={"acme": "acme.plugin"}, version="1.2")


def drupe(site: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site), "DRUPE_HOME": str(site.parent / "home"), **variables}
    return run_command(arguments, env=env, cwd=site.parent)


def as_json(site: Path, *arguments: str, **variables: str) -> Any:
    done = drupe(site, *arguments, "--json", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_passes_are_listed_with_what_they_take_and_who_provides_them(site: Path) -> None:
    line = next(line for line in drupe(site, "passes").stdout.splitlines() if line.startswith("Squeeze"))
    assert line.split("  ")[0] == "Squeeze"
    assert "onnx → acme" in line and "acme-drupe" in line and "Squeeze it." in line
    [entry] = [e for e in as_json(site, "passes") if e["name"] == "Squeeze"]
    assert (entry["distribution"], entry["version"], entry["plugin"]) == ("acme-drupe", "1.2", "acme")
    assert (entry["accepts"], entry["produces"]) == (["onnx"], "acme")


def test_a_pass_is_shown_with_its_parameters(site: Path) -> None:
    shown = drupe(site, "passes", "squeeze").stdout
    for text in (
        "Squeeze a model (A. Author 2020).",
        "onnx → acme",
        "for:       npu",
        "requires:  numpy>=1",
        "plugin acme (acme-drupe 1.2), acme.passes:Squeeze",
        "data_config: name of a data config | null = null",
        "bits: whole number (≥ 1, ≤ 8) = 4\n      Bits of a weight.\n      search: 2 < 4 < 8",
        'search: 4 to 64, log, where mode is "fast"',
        'mode: "fast" | "slow" = "fast"',
        "needed: list of text (required)",
        "inner: mapping\n      More.\n  inner.depth: whole number = 2",
    ):
        assert text in shown, text


def test_a_pass_as_json(site: Path) -> None:
    shown = as_json(site, "passes", "Squeeze")
    parameters = {p["name"]: p for p in shown["parameters"]}
    assert parameters["bits"]["search"] == {"values": [2, 4, 8], "ordered": True}
    assert parameters["size"]["search"] == {"low": 4, "high": 64, "log": True, "step": 1, "when": {"mode": ["fast"]}}
    assert parameters["needed"]["required"] and "default" not in parameters["needed"]
    assert parameters["inner"]["default"] == {"depth": 2}


def test_plugins_are_listed_with_what_they_contribute(site: Path) -> None:
    line = next(line for line in drupe(site, "plugins").stdout.splitlines() if line.startswith("acme "))
    assert line.split() == ["acme", "acme-drupe", "1.2", "active", "passes", "(2),", "observes", "step", "started"]
    [entry] = [e for e in as_json(site, "plugins") if e["name"] == "acme"]
    assert entry["contributes"] == {"drupe_passes": ["Squeeze", "Silent"]}
    assert entry["observes"] == ["drupe_step_started"]


@pytest.mark.parametrize("hook", ["passes", "drupe_passes", "step_started"])
def test_plugins_of_one_hook(site: Path, hook: str) -> None:
    names = [entry["name"] for entry in as_json(site, "plugins", "--hook", hook)]
    assert "acme" in names
    assert "hosts" not in names


def test_an_unknown_hook_is_told(site: Path) -> None:
    done = drupe(site, "plugins", "--hook", "pases")
    assert done.returncode == 2
    assert "no hook 'pases'; hooks: drupe_accelerators" in done.stderr


def test_what_the_policy_keeps_out_is_shown_on_request(site: Path) -> None:
    blocked = {"DRUPE_PLUGINS_BLOCK": "acme-drupe"}
    listed = drupe(site, "plugins", **blocked).stdout
    assert "acme-drupe" not in listed
    assert "more that the policy keeps out; drupe plugins --all shows them" in listed
    everything = drupe(site, "plugins", "--all", **blocked).stdout
    assert "is blocked: DRUPE_PLUGINS_BLOCK blocks acme-drupe" in everything


def test_a_faulty_plugin_is_shown_with_its_fault(site: Path) -> None:
    (site / "acme" / "plugin.py").write_text("raise RuntimeError('no licence')\n")
    listed = drupe(site, "plugins")
    assert listed.returncode == 0
    assert "plugin acme (acme-drupe 1.2) is broken: importing acme.plugin raised RuntimeError: no licence" in (
        listed.stdout
    )
    assert "1 of the plugins can't be used" in drupe(site, "passes").stderr
    checked = drupe(site, "plugins", "check", "acme")
    assert checked.returncode == 1
    assert "no licence" in checked.stdout


def test_check_finds_what_breaks_the_contract(site: Path) -> None:
    """A pass that changes its input, drops attributes, leaves its folder's name behind and says nothing of itself."""
    pytest.importorskip("onnx")
    findings = as_json_check(site, "acme")
    failed = {(f["subject"], f["what"]) for f in findings if f["outcome"] == "FAIL"}
    assert failed == {
        ("passes Squeeze", "every parameter is documented"),
        ("passes Silent", "it says what it is"),
        ("passes Silent", "it is a pass"),
        ("passes Silent", "it keeps its promise"),
        ("passes Silent", "its input stays as it was"),
        ("passes Silent", "equal work gives equal models"),
        ("passes Silent", "the result knows nothing of its place"),
    }
    reasons = {f["text"] for f in findings if f["outcome"] == "not checked" and f["subject"] == "passes Squeeze"}
    assert "its defaults alone are no valid config: needed: Field required" in reasons
    quick = as_json_check(site, "acme", "--quick")
    assert {f["what"] for f in quick if f["outcome"] == "FAIL"} == {
        "every parameter is documented", "it says what it is", "it is a pass",
    }  # fmt: skip


def as_json_check(site: Path, *arguments: str) -> list[dict[str, str]]:
    done = drupe(site, "plugins", "check", *arguments, "--json")
    assert done.returncode == 1, done.stderr
    findings: list[dict[str, str]] = json.loads(done.stdout)
    return findings


def test_check_of_an_unknown_plugin(site: Path) -> None:
    done = drupe(site, "plugins", "check", "acmee")
    assert done.returncode == 2
    assert "did you mean 'acme'?" in done.stderr


def test_check_tells_of_a_heavy_import(site: Path) -> None:
    (site / "torch.py").write_text("")
    source = site / "acme" / "plugin.py"
    source.write_text(f"import torch\n{source.read_text()}")
    findings = as_json_check(site, "acme", "--quick")
    texts = [f["text"] for f in findings if f["outcome"] == "FAIL"]
    assert any("imports torch when it is discovered" in text for text in texts)
    assert any("acme/plugin.py:1 imports torch" in text for text in texts)
