"""The table of what was tried on which architecture, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

__all__ = ["markdown"]

PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "peft", "auto-round")
Rows = Mapping[tuple[str, str], Mapping[str, Any]]

COLUMNS: Mapping[str, Sequence[str]] = {
    "export": ("HfModel", "OnnxConversion"),
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
    lines = [", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".", ""]
    for title, wanted in (("Decoders", True), ("Encoders, encoder-decoders, vision, audio", False)):
        there = [name for name in names if (kinds[name] == "decoder") is wanted and any(key[0] == name for key in rows)]
        columns = [label for label, cases in COLUMNS.items() if any((n, c) in rows for n in there for c in cases)]
        lines += [f"## {title}", "", "| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name in there:
            lines.append(f"| {name} | " + " | ".join(_sign(rows, name, COLUMNS[label]) for label in columns) + " |")
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


def _sign(rows: Rows, name: str, cases: Sequence[str]) -> str:
    outcomes = [rows[name, case]["outcome"] for case in cases if (name, case) in rows]
    if not outcomes:
        return ""
    if any(outcome not in ("works", "refused") for outcome in outcomes):
        return "✗"
    worked = outcomes.count("works")
    return "✓" if worked == len(outcomes) else "–" if not worked else "(✓)"


def _plain(message: str, name: str) -> str:
    """Return a message's beginning, without what differs between architectures."""
    text = re.sub(r"/tmp/\S+", "…", message.splitlines()[0].replace(name, "it")).replace("|", "/")
    text = re.sub(r"'/[^']*'", "a node", text)
    return text if len(text) <= 200 else text[:200].rsplit(" ", 1)[0] + " …"
