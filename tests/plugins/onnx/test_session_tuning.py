"""OrtSessionParamsTuning: options that help are found and read by the runtime; without a gain the defaults stay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from drupe.core.accelerators import Accelerator
from drupe.core.context import Resources
from drupe.core.data import Sample
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.onnx import session_tuning
from drupe.plugins.onnx.session_tuning import OrtSessionParamsTuningConfig
from drupe.testing import PassContract, make_context, tiny_causal_lm, tiny_onnx_mlp
from tests.plugins.onnx.graphs import CPU, run_pass


class TestOrtSessionParamsTuning(PassContract):
    name = "OrtSessionParamsTuning"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_mlp(tmp_path / "model")

    @pytest.fixture
    def config_values(self) -> dict[str, Any]:
        return {"trials": 2, "repeats": 3}


def tune(model: Model, folder: Path, cpus: int = 2, **config: Any) -> tuple[Model, Any]:
    context = make_context(folder, accelerator=CPU, resources=Resources(cpus=cpus))
    return run_pass("OrtSessionParamsTuning", model, folder, context=context, **config), context


def test_all_sets_are_tried_and_the_default_stays_without_a_gain(tmp_path: Path) -> None:
    source = tiny_onnx_mlp(tmp_path / "m")
    result, context = tune(source, tmp_path / "job", repeats=3, least_gain=0.99)
    tried = context.report["session_options"]["tried"]
    # Threads 1 and 2, two modes, the arena on and off.
    assert len({json.dumps(entry["options"], sort_keys=True) for entry in tried}) == 8
    assert result.attributes == source.attributes and result.files == source.files


def test_what_helps_is_noted_and_read_by_the_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_up(ours: Any, theirs: Any, *_: Any) -> tuple[list[float], list[float]]:
        threads = ours.get_session_options().intra_op_num_threads
        return [0.5 if threads == 1 else 1.0] * 3, [1.0] * 3

    monkeypatch.setattr(session_tuning, "_interleaved", made_up)
    source = tiny_onnx_mlp(tmp_path / "m")
    result, _ = tune(
        source, tmp_path / "job", io_bind=True, extra_session_config={"session.intra_op.allow_spinning": "0"}
    )
    settings = result.attributes["inference_settings"]
    assert settings["session_options"]["intra_op_num_threads"] == 1 and settings["io_bind"] is True
    runtime = get_registry().create("drupe_runtimes", "onnx")
    with runtime.open(result, CPU, runtime.options(CPU, {"threads": 2})) as session:
        opened = session._session.get_session_options()
        assert opened.intra_op_num_threads == 1
        assert opened.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        x = np.ones((2, 8), np.float32)
        bound = session.forward({"x": x}).outputs["logits"]
    with runtime.open(source, CPU, runtime.options(CPU, {})) as plain:
        np.testing.assert_allclose(bound, plain.forward({"x": x}).outputs["logits"], atol=1e-6)


def test_many_sets_are_searched_within_the_budget(tmp_path: Path) -> None:
    _, context = tune(
        tiny_onnx_mlp(tmp_path / "m"),
        tmp_path / "job",
        trials=5,
        repeats=3,
        intra_thread_num_list=[1, 2, 3, 4],
        opt_level_list=[0, 1, 2, 99],
    )
    assert 1 <= len(context.report["session_options"]["tried"]) <= 5


def test_null_is_the_runtimes_own_number_of_threads_and_one_provider_may_stand_alone(tmp_path: Path) -> None:
    own = {"intra_thread_num_list": [None], "inter_thread_num_list": [None], "providers_list": "CPUExecutionProvider"}
    _, context = tune(tiny_onnx_mlp(tmp_path / "m"), tmp_path / "job", repeats=3, **own)
    tried = [entry["options"] for entry in context.report["session_options"]["tried"]]
    assert tried and all(options["intra_op_num_threads"] == 0 for options in tried)


def test_data_are_used_where_there_are_some(tmp_path: Path) -> None:
    data = {"rows": [Sample("r", {"x": np.ones(8, np.float32)})]}
    context = make_context(tmp_path / "job", accelerator=CPU, data=data)
    model = tiny_onnx_mlp(tmp_path / "m")
    run_pass("OrtSessionParamsTuning", model, tmp_path, context=context, data_config="rows", trials=1, repeats=3)
    assert context.report["calibration"] == {"batches": 1}


def test_a_decoder_for_genai_gets_them_in_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime_genai as og

    monkeypatch.setattr(session_tuning, "_interleaved", lambda *_: ([0.5] * 3, [1.0] * 3))
    source = tiny_causal_lm(tmp_path / "m", hidden_size=128, intermediate_size=256)
    built = run_pass("ModelBuilder", source, tmp_path / "a", precision="fp32")
    result, _ = tune(built, tmp_path / "b", intra_thread_num_list=[1], arena_list=[True])
    data = json.loads((result.folder / "genai_config.json").read_text())
    options = data["model"]["decoder"]["session_options"]
    assert options["intra_op_num_threads"] == 1 and options["enable_cpu_mem_arena"] is True
    og.Model(str(result.folder))


def test_providers_that_are_not_the_targets_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tune(tiny_onnx_mlp(tmp_path / "m"), tmp_path / "job", providers_list=["DmlExecutionProvider"], trials=1, repeats=3)
    assert "DmlExecutionProvider of providers_list are not tried" in caplog.text


def test_modes_have_two_spellings_and_others_are_refused() -> None:
    config = OrtSessionParamsTuningConfig(execution_mode_list=["ORT_PARALLEL", 0])
    assert config.execution_mode_list == [1, 0]
    with pytest.raises(ValidationError, match="unknown execution mode 'fast'"):
        OrtSessionParamsTuningConfig(execution_mode_list=["fast"])


def test_the_contract_of_a_target_without_a_provider_holds(tmp_path: Path) -> None:
    context = make_context(tmp_path / "job", accelerator=Accelerator("cpu"))
    run_pass("OrtSessionParamsTuning", tiny_onnx_mlp(tmp_path / "m"), tmp_path, context=context, trials=1, repeats=3)
    assert context.report["session_options"]["default_seconds"] > 0
