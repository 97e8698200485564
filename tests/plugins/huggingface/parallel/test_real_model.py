"""SmolLM2-135M on three ranks, run by torchrun with PyTorch's own tensor parallelism; and put together again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.testing import make_context
from tests.plugins.onnx.graphs import CPU, run_pass
from tests.plugins.real_models import by_transformers, perplexity

RANK = '''
"""One rank: what a user with PyTorch and transformers writes."""
import json, sys
import numpy as np, torch, torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoConfig, AutoModelForCausalLM

folder, ids, out = sys.argv[1:]
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
mesh = dist.init_device_mesh("cpu", (world_size,))
config = AutoConfig.from_pretrained(folder)
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config).eval()
columns, rows = ColwiseParallel, RowwiseParallel
parallelize_module(model, mesh, {
    "model.embed_tokens": rows(input_layouts=Replicate()),
    **{f"model.layers.*.self_attn.{name}_proj": columns() for name in "qkv"},
    "model.layers.*.self_attn.o_proj": rows(),
    "model.layers.*.mlp.gate_proj": columns(), "model.layers.*.mlp.up_proj": columns(),
    "model.layers.*.mlp.down_proj": rows(),
    "lm_head": columns(output_layouts=Replicate()),
}, src_data_rank=None)
held = 0
for name, tensor in load_file(f"{folder}/model_{rank:02d}/model.safetensors").items():
    place, _, leaf = name.rpartition(".")
    empty = model.get_parameter(name)
    held += tensor.nbytes
    if isinstance(empty, DTensor):
        assert empty.to_local().shape == tensor.shape, name
        tensor = DTensor.from_local(tensor, mesh, empty.placements, shape=empty.shape, stride=empty.stride())
    setattr(model.get_submodule(place), leaf, torch.nn.Parameter(tensor, requires_grad=False))
model.lm_head.weight = model.model.embed_tokens.weight
model.model.rotary_emb = type(model.model.rotary_emb)(config)
with torch.inference_mode():
    logits = model(torch.from_numpy(np.load(ids))[None]).logits[0]
with open(f"{out}/{rank}.json", "w") as file:
    json.dump({"held": held, "argmax": logits.argmax(-1).tolist()}, file)
if rank == 0:
    np.save(f"{out}/said.npy", torch.log_softmax(logits.double(), -1).numpy())
dist.destroy_process_group()
'''


@pytest.fixture(scope="module")
def thirds(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """SmolLM2 split over three ranks: nine heads, three of keys and values."""
    return run_pass("PyTorchTensorParallel", smollm2, tmp_path_factory.mktemp("thirds"), world_size=3)


@pytest.mark.slow
@pytest.mark.full
def test_three_ranks_under_torchrun_say_what_smollm2_says(
    thirds: Model, prose: np.ndarray, smollm2_says: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    np.save(tmp_path / "ids.npy", prose)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    arguments = [str(tmp_path / "rank.py"), str(thirds.folder), str(tmp_path / "ids.npy"), str(tmp_path)]
    done = subprocess.run(
        [*launcher, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = np.load(tmp_path / "said.npy")
    assert np.abs(said - smollm2_says).max() < 1e-3
    assert perplexity(said, prose) == pytest.approx(perplexity(smollm2_says, prose), rel=1e-5)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(rank["argmax"] == told[0]["argmax"] for rank in told)
    # 61 norms of 576 numbers are on every rank; all else is cut in three.
    assert {rank["held"] for rank in told} == {(134515008 - 61 * 576) // 3 * 4 + 61 * 576 * 4}


@pytest.mark.slow
@pytest.mark.real_run("PyTorchTensorParallel", "MergeTensorParallel")
def test_ranks_are_measured_and_become_the_source_again(
    thirds: Model, smollm2_dir: Path, prose: np.ndarray, smollm2_says: np.ndarray, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    runtime = get_registry().create("drupe_runtimes", "distributed_hf")
    with runtime.open(thirds, CPU, {"threads": 3}) as session:
        scored = session.score(prose, prose).outputs["logprobs"]
    np.testing.assert_allclose(scored[1:], smollm2_says[np.arange(len(prose) - 1), prose[1:]], atol=1e-3)
    whole = run_pass("MergeTensorParallel", thirds, tmp_path, context=make_context(tmp_path, accelerator=CPU))
    after = AutoModelForCausalLM.from_pretrained(whole.folder, dtype=torch.float32).eval()
    before = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    for (name, ours), theirs in zip(after.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    np.testing.assert_array_equal(by_transformers(after, prose), smollm2_says)
