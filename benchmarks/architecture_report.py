"""The table of what was tried on which architecture, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

__all__ = ["markdown"]

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "peft", "auto-round")
_HEAD = """# Passes on architectures

<!-- Written by benchmarks/architectures.py --report. -->

Tiny models with random weights (two layers, widths of 32 to 128) of architectures that people use, with the passes
run on each. A result is compared with its source by plain onnxruntime, onnxruntime-genai or transformers, on batches
of several sizes and lengths whose rows are padded; decoders with past step through rows that are padded on the left.
Real models are larger, not built otherwise; what a number format costs them is not measured here.

✓ works; – refused with a message, listed below; (✓) works in some ways, the others were refused or not tried; ✗ goes
wrong; empty: not tried. `fusions` are OrtTransformersOptimization after both exporters, `half` is float16 as a whole
and in parts, `int4 graphs` are the four schemes by blocks, `builder` is ModelBuilder in float32 and int4; `Rtn,
Gptq`, `AWQ` and `AutoRound` are taken through ModelBuilder as well where it knows the architecture, `LoRA, DoRA,
QLoRA` through MergeAdapterWeights. Tuning passes are for decoders; `QAT` trains on a class for each row, which models
of other targets refuse.

`python benchmarks/architectures.py --out FOLDER` tries them; `--report` prints this page.
Tried with """
Rows = Mapping[tuple[str, str], Mapping[str, Any]]

COLUMNS: Mapping[str, Sequence[str]] = {
    "export": ("OnnxConversion",),
    "traced": ("OnnxConversion, traced",),
    "with past": ("OnnxConversion, past", "OnnxConversion, past, traced"),
    "fusions": (
        "OrtTransformersOptimization", "OrtTransformersOptimization, traced", "OrtTransformersOptimization, float16",
        "OrtTransformersOptimization, past", "OrtTransformersOptimization, past, traced",
    ),
    "tidy": ("OnnxPeepholeOptimizer",),
    "int8, dynamic": ("OnnxDynamicQuantization", "OnnxDynamicQuantization, past"),
    "int8, static": ("OnnxStaticQuantization",),
    "half": ("OnnxFloatToFloat16", "OnnxFloatToFloat16, traced", "OrtMixedPrecision"),
    "shape, opset": ("DynamicToFixedShape", "OnnxOpVersionConversion", "OnnxOpVersionConversion, older"),
    "int4 graphs": (
        "OnnxBlockWiseRtnQuantization", "OnnxKQuantQuantization", "OnnxHqqQuantization", "OnnxBnb4Quantization",
        "OnnxBlockWiseRtnQuantization, past",
    ),
    "split": ("SplitModel",),
    "builder": ("ModelBuilder", "ModelBuilder, int4"),
    "Rtn, Gptq": ("Rtn", "Gptq", "SelectiveMixedPrecision"),
    "AWQ": ("AutoAWQQuantizer",),
    "AutoRound": ("AutoRound",),
    "QuaRot": ("QuaRot",),
    "SliceGPT": ("SliceGPT",),
    "LoRA, DoRA, QLoRA": ("LoRA", "DoRA", "QLoRA"),
    "ExtractAdapters": ("ExtractAdapters",),
    "QAT": ("QuantizationAwareTraining",),
}  # fmt: skip
"""What a column of the table stands for."""


def markdown(rows: Rows, names: Sequence[str], kinds: Mapping[str, str]) -> str:
    """Return two tables, of decoders and of others, and what was refused and why.

    rows: the outcome of each architecture and case; names: the architectures in order; kinds: what each is.
    """
    lines = [_HEAD + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".", ""]
    for title, wanted in (("Decoders", True), ("Encoders, encoder-decoders, vision, audio", False)):
        there = [name for name in names if (kinds[name] == "decoder") is wanted and any(key[0] == name for key in rows)]
        columns = [label for label, cases in COLUMNS.items() if any((n, c) in rows for n in there for c in cases)]
        lines += [f"## {title}", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name in there:
            lines.append(
                f"| {name} | " + " | ".join(_sign(rows, name, COLUMNS[label], wanted) for label in columns) + " |"
            )
        lines.append("")
    lines += ["## What was refused, or is wrong", ""]
    told: dict[tuple[str, str], list[str]] = {}
    for (name, case), row in rows.items():
        if row["outcome"] != "works":
            key = ("" if row["outcome"] == "refused" else f"{row['outcome']}: ") + _plain(row["message"], name)
            told.setdefault((case, key), []).append(name)
    said: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (case, key), where in told.items():
        said.setdefault((key, tuple(where)), []).append(case)
    for (key, where), cases in sorted(said.items(), key=lambda item: item[1][0]):
        lines.append(f"- {'; '.join(cases)} ({', '.join(where)}): {key}")
    return "\n".join(lines) + "\n"


def _sign(rows: Rows, name: str, cases: Sequence[str], decoder: bool) -> str:
    count = sum(decoder or ", past" not in case for case in cases)
    outcomes = [rows[name, case]["outcome"] for case in cases if (name, case) in rows]
    if not outcomes:
        return ""
    if any(outcome not in ("works", "refused") for outcome in outcomes):
        return "✗"
    worked = outcomes.count("works")
    return "✓" if worked == count else "–" if not worked else "(✓)"


def _plain(message: str, name: str) -> str:
    """Return a message's beginning, without what differs between architectures."""
    text = re.sub(r"/tmp/\S+", "…", message.splitlines()[0]).replace("|", "/").replace(f" ({name})", "")
    text = re.sub(rf"\bno {name}\b", "no such architecture", text)
    text = re.sub(rf"\bthis (\w+ )?{name}\b", lambda found: f"this {found[1] or ''}architecture", text)
    text = text.replace(name, "this architecture")
    text = re.sub(r"'/[^']*'", "a node", text)
    return text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " …"
