"""The tutorial's workflow made small: a tiny model behind the registry's name, a few rows, a few steps, no GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from drupe.core.cli import main
from tests.hosts.azure.cloud import Cloud

__all__ = ["HUB_TOKEN", "command", "local", "publish", "run", "tutorial"]

EXAMPLE = Path(__file__).parents[3] / "examples" / "phi3-azure"
HUB_TOKEN = "hf_of_the_key_vault_that_nobody_may_see"
_ROWS = [{"phrase": f"phrase number {n}", "tone": "glad" if n % 2 else "sad"} for n in range(24)]


def publish(azure: Cloud, model: Path, folder: Path) -> None:
    """Put the model and the rows where the tutorial looks for them, and the hub's token into the key vault."""
    flavored = folder / "mlflow"
    shutil.copytree(model, flavored / "data" / "model")
    (flavored / "data" / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (flavored / "data" / "model" / name).exists():
            (flavored / "data" / "model" / name).rename(flavored / "data" / "tokenizer" / name)
    (flavored / "MLmodel").write_text("flavors:\n  hftransformersv2:\n    task_type: text-generation\n")
    azure.put_model(flavored, "Phi-3-mini-4k-instruct", "7", registry="azureml", kind="mlflow_model")
    rows = azure.container / "datasets" / "phrases.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    azure.secrets["hf-token"] = HUB_TOKEN


def tutorial(azure: Cloud, folder: Path, host: str = "aml", **builder: Any) -> Path:
    """Write the example into a folder, as it is but for its size and its devices. builder: changes to the last pass."""
    folder.mkdir()
    document = json.loads((EXAMPLE / "workflow.json").read_text())
    client = dict(azure.client)
    document["azureml_client"]["operation_retry_interval"] = client.pop("operation_retry_interval")
    (folder / "config.json").write_text(json.dumps(client))
    shutil.copy(EXAMPLE / "conda.yaml", folder)
    places = {"aml": "cpu-cluster", "arc": "arc"}
    for name, system in document["systems"].items():
        config = system["config"]
        config |= {"accelerators": ["cpu"], "aml_compute": places[name], "poll_seconds": 0.1, "threads": 1}
        config["resources"] = {"cpus": 1}
    document["systems"]["arc"]["config"] |= {"instance_type": "gpu", "namespace": "ml"}
    passes = document["passes"]
    passes["qlora"]["config"]["training_args"] |= {"max_steps": 2, "eval_steps": 2}
    passes["qlora"]["config"] |= {"lora_r": 4, "compute_dtype": "float32", "target_modules": "all-linear"}
    passes["builder"] |= builder
    loading = document["data_configs"][0]["params_config"]["component_kwargs"]["pre_process_data"]
    loading["source_max_len"] = 64
    document["engine"] |= {"host": host, "target": host, "execution_providers": ["CPUExecutionProvider"]}
    return _write(folder, document)


def local(azure: Cloud, model: Path, folder: Path) -> Path:
    """Write the same workflow on this machine's files."""
    path = tutorial(azure, folder)
    document = json.loads(path.read_text())
    system = {
        "type": "LocalSystem",
        "accelerators": ["cpu"],
        "threads": 1,
        "resources": {"cpus": 1},
        "in_process": True,
    }
    document["systems"] = {"aml": system}
    document["input_model"]["config"]["model_path"] = str(model)
    document["data_configs"][0]["params_config"]["data_files"] = "rows.jsonl"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _ROWS))
    return _write(folder, document)


def command(*arguments: str) -> int:
    """Run the command line in this process, which has the libraries already, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(arguments))
    return int(ended.value.code or 0)


def run(path: Path, patch: pytest.MonkeyPatch, **env: str) -> dict[str, str]:
    """Run a workflow as a user would; return each step's model."""
    with patch.context() as here:
        here.chdir(path.parent)
        for name, value in {"DRUPE_HOME": str(path.parent / "home"), **env}.items():
            here.setenv(name, value)
        assert command("run", path.name) == 0
    manifest = json.loads((path.parent / "outputs" / "drupe.json").read_text())
    (target,) = manifest["targets"].values()
    (candidate,) = target["candidates"]
    return {step["pass"]: step["model"] for step in candidate["chain"]}


def _write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "workflow.json"
    path.write_text(json.dumps(document, indent=1))
    return path
