"""A workflow that measures what passes make of a decoder by its perplexity on a few sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.workflows import write_workflow


def measured_workflow(folder: Path, model: Path, **passes: Any) -> Path:
    """Write the workflow and its data, and return its path."""
    document = {
        "input_model": {"type": "HfModel", "model_path": str(model)},
        "systems": {"here": {"type": "LocalSystem", "in_process": True}},
        "data_configs": [{"name": "words", "type": "HuggingfaceContainer", "load_dataset_config": {
            "data_name": "json", "data_files": str(folder / "words.jsonl"), "split": "train"},
            "pre_process_data_config": {"type": "text_generation_huggingface_pre_process", "text_cols": ["text"],
                                        "max_seq_len": 32}}],
        "evaluators": {"quality": {"metrics": [{"name": "ppl", "type": "perplexity", "data_config": "words",
                                                "sub_types": [{"name": "perplexity"}]}]}},
        "evaluator": "quality",
        "passes": passes,
        "host": "here",
        "target": "here",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }  # fmt: skip
    rows = [{"text": f"the quick brown fox number {n} jumps over the lazy dog"} for n in range(12)]
    (folder / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return write_workflow(folder, document)
