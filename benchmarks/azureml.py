"""What goes up to Azure ML, and the tutorial on both kinds of compute, against the tests' small Azure on loopback.

    python benchmarks/azureml.py            a model of 32 MB
    python benchmarks/azureml.py --full     a model of 1 GB, and the tutorial's workflow on a cluster and on Arc

A model is used by two steps, each a job; then everything again from another driver. Counted is what was uploaded. Of
the tutorial the digests of every step's model are compared with those of LocalSystem. Prints what was found; exit code
1 where something was sent twice or a digest differs. --full takes about 3 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.hosts.azure.cloud import Cloud, cloud

from drupe.core.accelerators import Accelerator
from drupe.core.hosts import Host, JobOptions
from drupe.core.job import Job, write_json
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.testing.sites import install_plugin

_UPLOAD = r"^PUT labstore\.blob.*/drupe/blobs/.*(comp=block&|comp=block$)|^PUT labstore\.blob.*/drupe/blobs/[^?]*$"
_PLUGIN = """
from drupe import PassSpec, hookimpl


@hookimpl
def drupe_passes():
    return [PassSpec(name="Measure", target="drupe_size.passes:Measure", accepts={"blob"}, produces="blob")]
"""
_PASSES = """
from drupe import Model, Pass, PassConfig


class Measure(Pass):
    class Config(PassConfig):
        turn: int = 0

    def run(self, model, config, context):
        size = (model.folder / "weights.bin").stat().st_size
        (context.output_dir / "size.txt").write_text(f"{config.turn} {size}")
        return Model.from_dir("blob", context.output_dir)
"""


def _host(azure: Cloud, folder: Path, site: Path) -> Host:
    registry = Registry.discover({"autoload": False})
    entry = registry.get("drupe_hosts", "AzureML")
    factory = registry.resolve(entry)
    config = {
        "azureml_client": azure.client,
        "aml_compute": "cpu-cluster",
        "aml_docker_config": {"base_image": "drupe:benchmark"},
        "poll_seconds": 0.2,
        "environment": {"PYTHONPATH": str(site)},
    }
    host: Host = factory(entry.spec, factory.Config.model_validate(config), state_dir=folder)
    return host


def _job(folder: Path, weights: Path, turn: int) -> Path:
    role = folder / "inputs" / "model"
    role.mkdir(parents=True)
    os.link(weights, role / "weights.bin")
    import drupe

    requires = {"drupe": drupe.__version__, "drupe-size": "1.0"}
    job = Job(
        "pass",
        f"size-{turn}",
        f"measure {turn}",
        "Measure",
        {"turn": turn},
        inputs={"model": Model.from_dir("blob", role)},
        accelerator=Accelerator(),
        requires=requires,
    )
    write_json(folder / "job.json", job.to_json())
    return folder


def uploads(megabytes: int, folder: Path) -> bool:
    """Send a model to two steps, and again from a second driver; say what was uploaded."""
    files = {"drupe_size/__init__.py": "", "drupe_size/plugin.py": _PLUGIN, "drupe_size/passes.py": _PASSES}
    site = install_plugin(folder / "site", "drupe-size", files, plugins={"size": "drupe_size.plugin"})
    weights = folder / "weights.bin"
    with weights.open("wb") as handle:
        for _ in range(megabytes):
            handle.write(os.urandom(1 << 20))
    with cloud(folder / "cloud") as azure:
        os.environ.update(azure.environment)
        counts: list[int] = []
        for driver, turns in (("first", (1, 2)), ("second", (1, 2))):
            for turn in turns:
                host = _host(azure, folder / f"state-{driver}", site)
                started = time.perf_counter()
                job = _job(folder / f"{driver}-{turn}", weights, turn)
                result = host.run(job, JobOptions(), lambda event: None, lambda: False)
                host.close()
                assert result["status"] == "done", result
                kept = [path for path in (azure.container / "drupe" / "blobs").glob("*/*") if path.is_file()]
                size = sum(path.stat().st_size for path in kept)
                counts.append(azure.faults.count(_UPLOAD))
                print(
                    f"{driver} driver, step {turn}: {time.perf_counter() - started:.1f} s; requests that uploaded so "
                    f"far {counts[-1]}; {size / 1e6:.0f} MB in the datastore"
                )
        return len(set(counts)) == 1


def tutorial(folder: Path) -> bool:
    """Run the tutorial on this machine, on the cluster and on Arc, and compare the models."""
    from tests.conftest import tiny_llama_dir
    from tests.hosts.azure import tutorial as small

    class Factory:
        def mktemp(self, name: str) -> Path:
            (folder / name).mkdir()
            return folder / name

    make: Any = getattr(tiny_llama_dir, "__wrapped__", None) or tiny_llama_dir
    model = make(Factory())
    with cloud(folder / "cloud") as azure:
        os.environ.update(azure.environment)
        small.publish(azure, model, folder)
        expected, _ = small.run(small.local(azure, model, folder / "local"))
        same = True
        for host in ("aml", "arc"):
            started = time.perf_counter()
            found, _ = small.run(small.tutorial(azure, folder / host, host))
            same &= found == expected
            print(f"{host}: {time.perf_counter() - started:.0f} s; {json.dumps({k: v[:12] for k, v in found.items()})}")
        print(f"LocalSystem: {json.dumps({k: v[:12] for k, v in expected.items()})}")
        computes = {job["computeId"].rpartition("/")[2] for job in azure.submitted}
        print(f"{len(azure.submitted)} jobs on {', '.join(sorted(computes))}; the same digests: {same}")
        return same


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args().full
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / part for part in ("uploads", "tutorial")]
        for folder in folders:
            folder.mkdir()
        holds = uploads(1024 if full else 32, folders[0])
        if full:
            holds &= tutorial(folders[1])
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
