"""The built-in metrics."""

from __future__ import annotations

from collections.abc import Sequence

from drupe.core.hookspecs import hookimpl
from drupe.core.specs import MetricSpec


@hookimpl
def drupe_metrics() -> Sequence[MetricSpec]:
    """Contribute the metrics; `needs` names the capability that each wants first."""
    return [
        MetricSpec(
            name="accuracy",
            target="drupe.plugins.metrics.accuracy:Accuracy",
            summary="Right answers: generated, chosen by log-likelihood, or classified.",
            needs="forward",
        ),
        MetricSpec(
            name="perplexity",
            target="drupe.plugins.metrics.perplexity:Perplexity",
            summary="exp of the mean negative log-likelihood per token.",
            needs="score",
        ),
        MetricSpec(
            name="latency",
            target="drupe.plugins.metrics.latency:Latency",
            summary="Milliseconds per call, and to the first token.",
            needs="forward",
            timed=True,
        ),
        MetricSpec(
            name="throughput",
            target="drupe.plugins.metrics.throughput:Throughput",
            summary="Tokens or samples per second.",
            needs="forward",
            timed=True,
        ),
        MetricSpec(
            name="size_on_disk",
            target="drupe.plugins.metrics.size:SizeOnDisk",
            summary="Bytes of the model's files.",
        ),
        MetricSpec(
            name="peak_memory",
            target="drupe.plugins.metrics.memory:PeakMemory",
            summary="Bytes that opening and running the model adds to the process.",
            needs="forward",
            timed=True,
        ),
        MetricSpec(
            name="discrepancy",
            target="drupe.plugins.metrics.discrepancy:Discrepancy",
            summary="How far the outputs are from the source model's.",
            needs="forward",
        ),
        MetricSpec(
            name="embedding_similarity",
            target="drupe.plugins.metrics.embeddings:EmbeddingSimilarity",
            summary="Cosine between the embeddings of the model and of the source model.",
            needs="forward",
        ),
        MetricSpec(
            name="wer",
            target="drupe.plugins.metrics.word_errors:WordErrors",
            summary="Wrong words and characters of generated or recognised text.",
            needs="generate",
            aliases=("word_error_rate",),
        ),
        MetricSpec(
            name="LMEvaluator",
            target="drupe.plugins.metrics.lm_evaluator:LMEvaluator",
            summary="Tasks of EleutherAI's lm-evaluation-harness, with its prompts and scores.",
            needs="score",
            requires=("lm-eval>=0.4.9",),
            key_packages=("lm-eval",),
        ),
        MetricSpec(
            name="MTEBEvaluator",
            target="drupe.plugins.metrics.mteb_evaluator:MTEBEvaluator",
            summary="Tasks of the Massive Text Embedding Benchmark, with its data and scores.",
            needs="forward",
            requires=("mteb>=2.26",),
            key_packages=("mteb",),
        ),
        MetricSpec(
            name="custom",
            target="drupe.plugins.metrics.custom:Custom",
            summary="A function of the user's own script.",
            needs="forward",
        ),
    ]
