"""The contracts find what is wrong: plugins with one defect each, and the case that must fail for it."""

# ruff: noqa: E501  (each defect is a line of code in a string)

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import random
import time

import numpy as np
import pytest

from drupe import (
    ConfigError, DataConfig, DataContainer, DataSpec, EvaluationError, Host, HostConfig, HostDescription, HostSpec,
    Metric, MetricConfig, MetricSpec, Model, Pass, PassConfig, PassSpec, Result, Runtime, RuntimeSpec, Sample,
    Session, SubType, IntRange, searchable,
)
from drupe.core.registry import Plugin, Registry
from drupe.testing import DataContract, HostContract, MetricContract, PassContract, RuntimeContract
from pydantic import Field


def registry_with(hook, spec, target):
    registry = Registry()
    registry.add(hook, [spec], Plugin("mine", "drupe.core.errors", "mine", "1"))
    registry._classes[hook, spec.target] = target
    return registry
"""
PASS = """
class GoodPass(Pass):
    '''A pass.'''

    class Config(PassConfig):
        size: int = searchable(2, IntRange(1, 4), doc="Size.", ge=1)

    def run(self, model, config, context):
        (context.output_dir / "w").write_bytes((model.folder / "w").read_bytes() + b"!")
        return Model.from_dir("onnx", context.output_dir, model.attributes)


class TestIt(PassContract):
    name = "It"

    @pytest.fixture
    def registry(self):
        spec = PassSpec(name="It", target="drupe.core.errors:Fault", summary="It.", accepts={"onnx"}, produces="onnx")
        return registry_with("drupe_passes", spec, TheClass)

    @pytest.fixture
    def model(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "w").write_text("w")
        return Model.from_dir("onnx", tmp_path / "model", {"task": "t"})
"""
DATA = """
class GoodData(DataContainer):
    class Config(DataConfig):
        count: int = Field(3, description="How many.")

    def identity(self, config, workflow_dir):
        return {"count": config.count}

    def load(self, config, model, context):
        for i in range(config.count):
            yield Sample(f"s{i}", {"x": np.array([i % 2])}, content_key=f"k{i % 2}")


class TestIt(DataContract):
    name = "It"

    @pytest.fixture
    def registry(self):
        spec = DataSpec(name="It", target="drupe.core.errors:Fault", summary="It.")
        return registry_with("drupe_data_containers", spec, TheClass)

    @pytest.fixture
    def changed(self):
        return {"count": 5}
"""
METRIC = """
class GoodMetric(Metric):
    Config = MetricConfig
    sub_types = {"share": SubType("", "higher", proportion=True)}

    def measure(self, model, session, samples, config, context):
        return {s.id: (float(i % 2),) for i, s in enumerate(samples)}

    def aggregate(self, rows, sub_type, config):
        return sum(row[0] for row in rows) / len(rows)


class TestIt(MetricContract):
    name = "It"

    @pytest.fixture
    def registry(self):
        spec = MetricSpec(name="It", target="drupe.core.errors:Fault", summary="It.")
        return registry_with("drupe_metrics", spec, TheClass)

    @pytest.fixture
    def samples(self):
        return [Sample(f"s{i}", {"x": np.zeros(1)}, content_key=f"k{i}") for i in range(5)]
"""
RUNTIME = """
class GoodSession(Session):
    def forward(self, batch):
        if set(batch) != {"x"}:
            raise EvaluationError(f"unknown inputs {sorted(set(batch) - {'x'})}")
        return Result({"y": batch["x"] * 2})

    def input_shapes(self):
        return {"x": (("batch", 3), "float32")}

    def tokenize(self, text, *, special_tokens=True):
        return np.array([ord(c) for c in text], dtype=np.int64)

    def generate(self, prompt, options):
        ids = np.arange(options.max_new_tokens, dtype=np.int64)
        return Result({"text": "x", "token_ids": ids, "token_seconds": np.arange(len(ids)) * 0.1})

    def score(self, input_ids, labels):
        logprobs = np.where(labels == -100, np.nan, -1.0)
        logprobs[0] = np.nan
        return Result({"logprobs": logprobs})


class GoodRuntime(Runtime):
    session = GoodSession

    def options(self, accelerator, options):
        for name in options:
            if name != "threads":
                raise ConfigError(f"unknown option {name}")
        return dict(options)

    def open(self, model, accelerator, options):
        if (model.folder / "w").read_bytes() == b"nonsense":
            raise EvaluationError("damaged")
        return self.session()


class TestIt(RuntimeContract):
    name = "It"

    @pytest.fixture
    def registry(self):
        spec = RuntimeSpec(name="It", target="drupe.core.errors:Fault", summary="It.", kinds={"onnx"},
                           capabilities={"forward", "generate", "score"})
        return registry_with("drupe_runtimes", spec, TheClass)

    @pytest.fixture
    def model(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "w").write_text("w")
        return Model.from_dir("onnx", tmp_path / "model")
"""
HOST = """
from drupe.hosts.local import LocalConfig, LocalSystem


class GoodHost(LocalSystem):
    pass


class TestIt(HostContract):
    artifact_bytes = 1 << 20
    patience = 10.0

    @pytest.fixture
    def host(self, site, tmp_path):
        config = LocalConfig(environment={"PYTHONPATH": str(site)})
        host = TheClass(HostSpec(name="It", target="drupe.core.errors:Fault"), config, state_dir=tmp_path)
        yield host
        host.close()
"""
GOOD = {"Pass": PASS, "Data": DATA, "Metric": METRIC, "Runtime": RUNTIME, "Host": HOST}
DEFECTS = {
    "Pass": [
        ("    class Config(PassConfig):\n        size: int = 2\n", "every_parameter_is_documented"),
        ("    class Config(PassConfig):\n        size: int = searchable(2, IntRange(0, 4), doc='S.', ge=1)\n",
         "search_ranges_fit_their_fields"),
        ("    class Config(PassConfig, extra='ignore'):\n        size: int = Field(2, description='S.')\n",
         "an_unknown_parameter_is_refused"),
        ("    def plan(self, info, config, accelerator):\n        return info\n", "plan_refuses_other_kinds"),
        ("    def plan(self, info, config, accelerator):\n        info.attributes['x'] = 1\n"
         "        return super().plan(info, config, accelerator)\n", "plan_is_pure"),
        ("    def plan(self, info, config, accelerator):\n"
         "        return super().plan(info, config, accelerator).with_(dtype='int8')\n", "it_keeps_its_promise"),
        ("    def run(self, model, config, context):\n        (context.output_dir / 'stray').write_text('')\n"
         "        made = super().run(model, config, context)\n"
         "        return Model('onnx', {'w': made.files['w']}, model.attributes)\n", "it_keeps_its_promise"),
        ("    def run(self, model, config, context):\n        (model.folder / 'w').write_text('changed')\n"
         "        return super().run(model, config, context)\n", "its_input_stays_as_it_was"),
        ("    def run(self, model, config, context):\n        (context.output_dir / 'v').write_text(str(time.time_ns()))\n"
         "        return super().run(model, config, context)\n", "equal_work_gives_equal_models"),
        ("    def run(self, model, config, context):\n"
         "        (context.output_dir / 'v').write_text(str(context.output_dir))\n"
         "        return super().run(model, config, context)\n", "the_result_knows_nothing_of_its_place"),
        ("    def run(self, model, config, context):\n        open('stray', 'w').close()\n"
         "        return super().run(model, config, context)\n", "it_writes_nowhere_else"),
    ],
    "Data": [
        ("    def identity(self, config, workflow_dir):\n        return {'now': time.time_ns()}\n",
         "identity_is_stable_json"),
        ("    def identity(self, config, workflow_dir):\n        return {}\n", "identity_follows_the_data"),
        ("    def load(self, config, model, context):\n        return []\n", "it_gives_samples"),
        ("    def load(self, config, model, context):\n"
         "        return [Sample('s', {'x': np.zeros(1)}, content_key='k')] * 2\n", "ids_are_unique_and_stable"),
        ("    def load(self, config, model, context):\n"
         "        return [Sample(str(random.random()), {'x': np.zeros(1)}, content_key='k')]\n",
         "ids_are_unique_and_stable"),
        ("    def load(self, config, model, context):\n"
         "        return [Sample(n, {'x': np.zeros(1)}, content_key=n) for n in 'ab']\n",
         "content_keys_follow_the_content"),
        ("    def load(self, config, model, context):\n        return [Sample('s', {'x': [1]}, content_key='k')]\n",
         "it_gives_samples"),
    ],
    "Metric": [
        ("    def measure(self, model, session, samples, config, context):\n        return {'other': (1.0,)}\n",
         "rows_belong_to_samples"),
        ("    def measure(self, model, session, samples, config, context):\n"
         "        return {s.id: (0.5,) for s in samples}\n", "proportions_are_means_of_zeros_and_ones"),
        ("    def aggregate(self, rows, sub_type, config):\n        return random.random()\n",
         "values_are_finite_and_pure"),
        ("    def aggregate(self, rows, sub_type, config):\n        return float('nan')\n", "values_are_finite_and_pure"),
        ("    def aggregate(self, rows, sub_type, config):\n"
         "        return sum(i * row[0] for i, row in enumerate(rows))\n    sub_types = {'s': SubType('', 'lower')}\n"
         "    def measure(self, model, session, samples, config, context):\n"
         "        return {s.id: (float(i),) for i, s in enumerate(samples)}\n", "order_does_not_matter"),
        ("    sub_types = {}\n", "it_is_a_metric"),
    ],
    "Runtime": [
        ("    def options(self, accelerator, options):\n        return dict(options)\n", "an_unknown_option_is_refused"),
        ("    def open(self, model, accelerator, options):\n        return self.session()\n",
         "a_damaged_model_is_one_clear_error"),
        ("    def capabilities(self, model):\n        return ('fly',)\n", "capabilities_are_those_of_the_spec"),
        ("    class session(GoodSession):\n        def forward(self, batch):\n"
         "            return Result({'y': batch['x'].tolist()})\n", "forward_gives_arrays"),
        ("    class session(GoodSession):\n        def forward(self, batch):\n"
         "            return Result({'y': batch['x'] + random.random()})\n", "forward_gives_arrays"),
        ("    class session(GoodSession):\n        def forward(self, batch):\n"
         "            return Result({'y': batch['x']})\n", "forward_refuses_an_unknown_input"),
        ("    class session(GoodSession):\n        def generate(self, prompt, options):\n"
         "            ids = np.arange(9)\n            return Result({'text': '', 'token_ids': ids, 'token_seconds': ids})\n",
         "generate_keeps_to_its_options"),
        ("    class session(GoodSession):\n        def score(self, input_ids, labels):\n"
         "            return Result({'logprobs': np.full(len(labels), -1.0)})\n", "score_gives_log_probabilities"),
        ("    class session(GoodSession):\n        def score(self, input_ids, labels):\n"
         "            out = np.where(labels == -100, np.nan, -1.0 * len(labels))\n            out[0] = np.nan\n"
         "            return Result({'logprobs': out})\n", "scores_are_of_the_tokens_before"),
        ("    class session(GoodSession):\n        def score_batch(self, sequences):\n"
         "            longest = max(len(ids) for ids, _ in sequences)\n"
         "            return [Result({'logprobs': np.full(longest, -1.0)}) for _ in sequences]\n",
         "a_batch_is_scored_as_each_sequence_alone"),
    ],
    "Host": [
        ("    def run(self, job, options, events, cancelled):\n"
         "        result = super().run(job, options, events, cancelled)\n"
         "        if result['status'] == 'failed':\n            raise EvaluationError('x')\n        return result\n",
         "a_failing_pass_is_the_jobs_result"),
        ("    def run(self, job, options, events, cancelled):\n"
         "        return super().run(job, options, lambda event: None, cancelled)\n", "progress_and_log_are_streamed"),
        ("    def describe(self):\n        return HostDescription(versions={})\n", "it_describes_itself"),
        ("    def check(self):\n        from drupe import Fault\n        return [Fault('', 'x')]\n",
         "a_working_host_has_no_faults"),
    ],
}  # fmt: skip


def run(source: str, folder: Path, *select: str) -> subprocess.CompletedProcess[str]:
    test = folder / "test_it.py"
    test.write_text(source)
    env = {**os.environ, "DRUPE_HOME": str(folder / "home"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-rf", *select]
    return subprocess.run([*command, str(test)], cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kind", ["Pass", "Data", "Metric", "Runtime"])
def test_what_keeps_the_contract_passes(kind: str, tmp_path: Path) -> None:
    done = run(HEAD + GOOD[kind].replace("TheClass", f"Good{kind}"), tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", DEFECTS)
def test_each_defect_is_found_by_its_case(kind: str, tmp_path: Path) -> None:
    source = HEAD + GOOD[kind].replace("class TestIt", "class Base").replace("TheClass", "self.the_class")
    for index, (body, _) in enumerate(DEFECTS[kind]):
        source += f"\n\nclass Bad{index}(Good{kind}):\n    '''Bad.'''\n{body}\n\n"
        source += f"class TestBad{index}(Base):\n    the_class = Bad{index}\n"
    cases = {case for _, case in DEFECTS[kind]}
    done = run(source, tmp_path, "-k", " or ".join(f"test_{case}" for case in cases))
    for index, (body, case) in enumerate(DEFECTS[kind]):
        assert f"TestBad{index}::test_{case}" in done.stdout.partition("short test summary")[2], (
            f"{body}\n{done.stdout}"
        )
