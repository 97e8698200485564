"""Runs LLMCompressor where llmcompressor is installed, for tests where it is not: python -m …compressing JOB.json

JOB.json: {"source": folder, "out": folder, "rows": token ids, "cases": {name: config}}. Writes out/results.json: name →
{"attributes", "report"} or {"error"}, and the library's presets under "presets".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from drupe.core.data import Sample
from drupe.core.errors import DrupeError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.testing import make_context


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Run the cases one after the other."""
    source = Model.from_dir("hf", Path(job["source"]), {"task": "text-generation", "dtype": "float32"})
    text = [Sample(f"s{n}", {"input_ids": np.array(row)}, content_key=f"k{n}") for n, row in enumerate(job["rows"])]
    subject = get_registry().create("drupe_passes", "LLMCompressor")
    found: dict[str, Any] = {}
    for name, config in job["cases"].items():
        context = make_context(Path(job["out"]) / name, data={"text": text}, workflow_dir=Path(job["out"]))
        try:
            result = subject(source, type(subject).Config.model_validate(config), context)
            found[name] = {"attributes": dict(result.attributes), "report": dict(context.report)}
        except DrupeError as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    presets = {
        name: {
            "type": f"{args['weights'].type}{args['weights'].num_bits}",
            "group_size": args["weights"].group_size,
            "symmetric": args["weights"].symmetric,
            "static": "input_activations" in args and args["input_activations"] is not None
            and str(args["input_activations"].dynamic).lower() in ("false", "local"),
        }
        for name, args in PRESET_SCHEMES.items()
        if args.get("weights") is not None
    }  # fmt: skip
    return {**found, "presets": presets}


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    Path(given["out"], "results.json").write_text(json.dumps(main(given)))
