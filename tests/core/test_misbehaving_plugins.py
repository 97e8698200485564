"""Twelve plugins that misbehave: unrelated runs succeed, and where one is used the message names it and the cause."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drupe.testing import install_plugin
from tests.support.workflows import drupe, runs, toy_document, write_workflow

HOOK = """
from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes():
    return [PassSpec(name="Odd", target="odd.passes:Odd", accepts={"text"}, produces="text")]
"""
PASSES = """
from drupe import Model, Pass


class Odd(Pass):
    def run(self, model, config, context):
        (context.output_dir / "text.txt").write_text((model.folder / "text.txt").read_text() + "odd")
        return Model.from_dir("text", context.output_dir)
"""


@dataclass(frozen=True)
class Case:
    """A plugin and what is told where it is used. code: the exit code of a run that uses it."""

    plugin: str
    told: tuple[str, ...]
    passes: str = PASSES
    code: int = 2
    others: dict[str, str] = field(default_factory=dict)


CASES = {
    "raises on import": Case(f"{HOOK}\nraise RuntimeError('no licence')", ("RuntimeError: no licence",)),
    "ends Python on import": Case(f"import sys\n{HOOK}\nsys.exit(3)", ("sys.exit(3)",)),
    "imports torch at module level": Case(
        f"import torch\n{HOOK}", ("imports torch",), code=0, others={"torch/__init__.py": ""}
    ),
    "registers a hook that does not exist": Case(
        f"{HOOK}\n@hookimpl\ndef drupe_pases():\n    return []",
        ("no hook 'drupe_pases'", "did you mean 'drupe_passes'"),
    ),
    "takes wrong hook arguments": Case(
        f"{HOOK}\n@hookimpl\ndef drupe_step_started(stp):\n    pass",
        ("drupe_step_started(stp)", "no argument 'stp'", "did you mean 'step'"),
    ),
    "returns nonsense from a hook": Case(
        "from drupe import hookimpl\n\n@hookimpl\ndef drupe_passes():\n    return 'Odd'",
        ("drupe_passes returned 'Odd'", "expected a list of PassSpec"),
    ),
    "names a target that does not exist": Case(
        HOOK.replace("odd.passes:Odd", "odd.passes:Od"), ("no 'Od'", "did you mean 'Odd'")
    ),
    "needs a newer API": Case(
        HOOK.replace('name="Odd",', 'name="Odd", api=99,'), ("incompatible", "plugin API 99", "upgrade drupe")
    ),
    "misses a dependency": Case(
        HOOK.replace('name="Odd",', 'name="Odd", requires=("no-such-lib>=2",),'),
        ("no_such_lib", "pip install 'no-such-lib>=2'"),
        passes=f"import no_such_lib\n{PASSES}",
    ),
    "promises a model and writes nothing": Case(
        HOOK.replace('produces="text"', 'produces="onnx"'),
        ("promised a model of kind onnx",),
        passes='from drupe import Model, Pass\n\n\nclass Odd(Pass):\n    def run(self, model, config, context):\n'
        '        return Model("text", {})\n',
        code=1,
    ),
    "changes its input": Case(
        HOOK,
        ("changed", "input"),
        passes=PASSES.replace(
            "        (context", "        path = model.folder / 'text.txt'\n        path.chmod(0o644)\n"
            "        path.write_text('changed')\n        (context", 1
        ),
        code=1,
    ),
}  # fmt: skip
"""The twelfth, a pass name that two distributions use, has a test of its own."""


def install(folder: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"odd/__init__.py": "", "odd/plugin.py": case.plugin, "odd/passes.py": case.passes, **case.others}
    site = install_plugin(folder / "site", "odd-plugin", files, plugins={"odd": "odd.plugin"}, version="3.1")
    monkeypatch.setenv("PYTHONPATH", str(site))


def test_an_unrelated_run_succeeds_beside_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, case in enumerate(CASES.values()):
        own = f"odd{index}"
        plugin = case.plugin.replace("odd.", f"{own}.").replace('"Odd"', f'"Odd{index}"')
        files = {f"{own}/__init__.py": "", f"{own}/plugin.py": plugin, f"{own}/passes.py": case.passes, **case.others}
        site = install_plugin(tmp_path / "site", f"odd-plugin-{index}", files, plugins={own: f"{own}.plugin"})
    monkeypatch.setenv("PYTHONPATH", str(site))
    done = drupe("run", write_workflow(tmp_path, toy_document(tmp_path)), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Append ! 3" in runs(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_where_it_is_used_the_message_names_plugin_and_cause(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    install(tmp_path, case, monkeypatch)
    document = toy_document(tmp_path, passes={"odd": {"type": "Odd"}})
    if case.code != 2:
        del document["evaluators"], document["evaluator"]
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == case.code, done.stdout + done.stderr
    log = tmp_path / "out" / "logs" / "drupe.log"
    said = done.stdout + done.stderr + (log.read_text() if case.code == 0 else "")
    assert "odd-plugin 3.1" in said, said
    assert all(text in said for text in case.told), said
    assert "Traceback" not in done.stdout + done.stderr


def test_a_name_that_two_distributions_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrelated runs succeed; using it is an error that names both; the distribution in front makes it clear."""
    site = tmp_path / "site"
    for name in ("odd", "even"):
        files = {
            f"{name}/__init__.py": "",
            f"{name}/plugin.py": HOOK.replace("odd.passes", f"{name}.passes"),
            f"{name}/passes.py": PASSES.replace('+ "odd"', f'+ "{name}"'),
        }
        install_plugin(site, f"{name}-plugin", files, plugins={name: f"{name}.plugin"})
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert drupe("run", write_workflow(tmp_path, toy_document(tmp_path)), folder=tmp_path).returncode == 0

    document = toy_document(tmp_path, passes={"odd": {"type": "Odd"}}, output_dir=str(tmp_path / "out2"))
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 2
    assert "odd-plugin 1.0 and even-plugin 1.0" in done.stderr or "even-plugin 1.0 and odd-plugin 1.0" in done.stderr
    assert "'even-plugin:Odd'" in done.stderr

    document["passes"]["odd"]["type"] = "even-plugin:Odd"
    done = drupe("run", write_workflow(tmp_path, document), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    [made] = (tmp_path / "out2").rglob("text.txt")
    assert made.read_text() == "abeven"
