"""AppendPrePostProcessingOps: encoded pictures, audio and text in and out, on ONNX Runtime with the extensions."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from pydantic import ValidationError

from drupe.core.errors import ConfigError, EvaluationError, PassError
from drupe.core.model import Model
from drupe.core.registry import get_registry
from drupe.plugins.onnx.pre_post_processing import AppendPrePostProcessingOpsConfig
from drupe.testing import tiny_onnx_cnn
from tests.plugins.onnx.graphs import CPU, run_pass, saved
from tests.plugins.onnx.test_beam_search import source, step
from tests.support.vision import digits
from tests.support.whisper import LETTERS, RATE, generated, only, search, tiny_whisper, tone, wav

NAME = "AppendPrePostProcessingOps"
BYTES = [{"name": "image", "data_type": "uint8", "shape": ["num_bytes"]}]
COLOURS = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
PRE: list[dict[str, Any]] = [
    {"ConvertImageToBGR": {}},
    {"ReverseAxis": {"axis": 2, "dim_value": 3, "name": "BGR_to_RGB"}},
    {"Resize": {"resize_to": [{"type": "__model_input__", "input_index": 0, "dim_index": axis} for axis in (-2, -1)]}},
    {"CenterCrop": {"height": 8, "width": 8}},
    {"ImageBytesToFloat": {}},
    {"ChannelsLastToChannelsFirst": {}},
    {"Normalize": {"normalization_values": [list(pair) for pair in COLOURS], "layout": "CHW"}},
    {"Unsqueeze": {"axes": [0]}},
]


def extended(model: Model, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the runtime makes of a batch."""
    runtime = get_registry().create("drupe_runtimes", "onnx")
    with runtime.open(model, CPU, runtime.options(CPU, {"threads": 1})) as session:
        return dict(session.forward(batch).outputs)


def encoded(picture: Any, kind: str = "PNG") -> np.ndarray:
    file = io.BytesIO()
    picture.save(file, kind, quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def prepared(picture: Any, size: int) -> np.ndarray:
    """The same preparation in Python: the shorter side to a size, the middle of it, each colour normalized."""
    from PIL import Image

    factor = max(size / side for side in picture.size)
    picture = picture.resize([round(side * factor) for side in picture.size], Image.Resampling.BILINEAR)
    values = np.asarray(picture, np.float32) / 255
    top, left = (values.shape[0] - size) // 2, (values.shape[1] - size) // 2
    mean, deviation = np.array(COLOURS, np.float32).T
    values = (values[top : top + size, left : left + size] - mean) / deviation
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def digit_classifier(folder: Path) -> Model:
    """A graph of one layer on 3 × 8 × 8 pixels, fitted to digits that are not held out."""
    from sklearn.linear_model import LogisticRegression

    pictures, classes = digits()
    rows = np.stack([prepared(digit(picture), 8)[0, 0].ravel() for picture in pictures[:800]])
    fitted = LogisticRegression(max_iter=60).fit(rows, classes[:800])
    # Pictures are grey: the first colour tells all.
    layers = np.concatenate([fitted.coef_, np.zeros((10, 128))], axis=1)
    text = """<ir_version: 8, opset_import: ["" : 17]>
    digits (float[n, 3, 8, 8] pixels) => (float[n, 10] logits)
    { flat = Flatten (pixels)  logits = Gemm (flat, weights, bias) }"""
    weights = {"weights": layers.T.astype(np.float32), "bias": fitted.intercept_.astype(np.float32)}
    return saved(folder, text, weights, check=False)


def digit(picture: np.ndarray) -> Any:
    """A digit as a picture of colours, four times as large."""
    from PIL import Image

    levels = np.rint((picture[0] + 1.0) * 127.5).astype(np.uint8)
    return Image.fromarray(levels).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture
def extensions() -> Any:
    return pytest.importorskip("onnxruntime_extensions")


@pytest.mark.usefixtures("extensions")
def test_bytes_of_pictures_give_the_classes_of_preparing_them_in_python(tmp_path: Path) -> None:
    plain = digit_classifier(tmp_path / "model")
    made = run_pass(NAME, plain, tmp_path / "job", pre=PRE, post=[{"Softmax": {}}], tool_command_args=BYTES)
    assert made.attributes["use_ort_extensions"] is True
    reference = ort.InferenceSession(str(plain.folder / "model.onnx"))
    pictures, classes = digits()
    runtime = get_registry().create("drupe_runtimes", "onnx")
    right = 0
    with runtime.open(made, CPU, runtime.options(CPU, {"threads": 1})) as session:
        assert list(session.input_shapes()) == ["image"]
        for index in range(len(pictures) - 60, len(pictures)):
            picture = digit(pictures[index])
            kind = ("PNG", "JPEG")[index % 2]
            found = session.forward({"image": encoded(picture, kind)}).outputs["probabilities"][0]
            expected = reference.run(None, {"pixels": prepared(picture, 8)})[0][0]
            assert found.argmax() == expected.argmax()
            assert found.sum() == pytest.approx(1.0, abs=1e-5)
            if kind == "PNG":
                assert found == pytest.approx(np.exp(expected) / np.exp(expected).sum(), abs=0.05)
            right += int(found.argmax() == classes[index])
    # More than chance: the classes that agree are not all one.
    assert right > 40


@pytest.mark.usefixtures("extensions")
def test_a_whole_pipeline_of_the_tool_with_its_arguments(tmp_path: Path) -> None:
    from PIL import Image

    plain = tiny_onnx_cnn(tmp_path / "model", size=224)
    made = run_pass(
        NAME, plain, tmp_path / "job", tool_command="mobilenet", tool_command_args={"model_source": "pytorch"}
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)).resize((300, 400))
    found = extended(made, {"image": encoded(picture)})["probabilities"][0]
    # It resizes to 256 before it takes the middle.
    whole = prepared(picture.resize((256, round(400 * 256 / 300)), Image.Resampling.BILINEAR), 256)
    middle = np.ascontiguousarray(whole[:, :, 16:240, 16:240])
    logits = ort.InferenceSession(str(plain.folder / "model.onnx")).run(None, {"image": middle})[0][0]
    assert found == pytest.approx(np.exp(logits) / np.exp(logits).sum(), abs=0.02)
    with pytest.raises(ConfigError, match=r"tool_command_args.model_source: 'jax'; expected one of PYTORCH"):
        wrong = {"tool_command": "mobilenet", "tool_command_args": {"model_source": "jax"}}
        run_pass(NAME, plain, tmp_path / "wrong", **wrong)


@pytest.mark.usefixtures("extensions")
def test_a_small_picture_becomes_a_large_one(tmp_path: Path) -> None:
    from PIL import Image

    text = """<ir_version: 8, opset_import: ["" : 17]>
    larger (float[1, 1, 16, 16] y) => (float[1, 1, 32, 32] up)
    { up = Resize <mode = "linear"> (y, , scales) }"""
    plain = saved(tmp_path / "model", text, {"scales": np.array([1, 1, 2, 2], np.float32)}, check=False)
    made = run_pass(
        NAME, plain, tmp_path / "job", tool_command="superresolution", tool_command_args={"output_format": "png"}
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)).resize((16, 16))
    found = next(iter(extended(made, {"image": encoded(picture)}).values()))
    large = Image.open(io.BytesIO(found.tobytes()))
    assert large.format == "PNG" and large.size == (32, 32)
    difference = np.asarray(large, np.float32) - np.asarray(picture.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(difference).mean() < 4


@pytest.mark.usefixtures("extensions")
def test_whisper_from_the_bytes_of_a_file_to_text(tmp_path: Path) -> None:
    from transformers import WhisperProcessor

    weights = tiny_whisper(tmp_path / "model")
    parts = step("OnnxConversion", source(tmp_path / "import", weights), tmp_path, target_opset=17)
    beams = step("InsertBeamSearch", parts, tmp_path, use_vocab_mask=True, no_repeat_ngram_size=2)
    arguments = {"tool_command": "whisper", "tool_command_args": {"use_audio_decoder": True}, "target_opset": 17}
    made = step(NAME, beams, tmp_path, **arguments)
    samples = tone()
    found = extended(made, {"audio_stream": wav(samples), **search(2, vocab_mask=only(LETTERS))})["str"]
    processor = WhisperProcessor.from_pretrained(weights)
    floats = samples.astype(np.float32) / 32768
    features = processor.feature_extractor(floats, sampling_rate=RATE, return_tensors="np").input_features
    kept = [token for token in range(264) if token not in LETTERS]
    ids = generated(weights, features, 2, suppress_tokens=kept, no_repeat_ngram_size=2)
    expected = processor.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert len(set(expected)) > 3
    assert found.tolist() == [[expected]]
    # Bytes that are no text, as a model with random weights writes them.
    broken = extended(made, {"audio_stream": wav(samples), **search(2, vocab_mask=only(range(200, 250)))})["str"]
    assert broken.tolist() == [["\ufffd"]]
    samples_in = step(
        NAME, beams, tmp_path / "pcm", tool_command="whisper", tool_command_args={"use_audio_decoder": False}
    )
    heard = extended(samples_in, {"audio_pcm": floats[None], **search(2, vocab_mask=only(LETTERS))})["str"]
    assert heard.tolist() == [[expected]]
    with pytest.raises(ConfigError, match=r"the graph is of operator set 17; give"):
        step(NAME, beams, tmp_path / "newer", tool_command="whisper", target_opset=18)


@pytest.mark.usefixtures("extensions")
def test_what_does_not_fit_the_graph_is_one_message(tmp_path: Path) -> None:
    plain = tiny_onnx_cnn(tmp_path / "model")
    with pytest.raises(ConfigError, match="Put InsertBeamSearch before it"):
        run_pass(NAME, plain, tmp_path / "a", tool_command="whisper")
    with pytest.raises(ConfigError, match="operator set 17, newer than target_opset 16"):
        run_pass(NAME, plain, tmp_path / "b", post=[{"Softmax": {}}], target_opset=16)
    with pytest.raises(PassError, match="can't join its steps to the graph"):
        run_pass(NAME, plain, tmp_path / "c", post=[{"Squeeze": {}}])
    open_axis = [{"Resize": {"resize_to": {"type": "__model_input__", "dim_index": 0}}}]
    with pytest.raises(ConfigError, match=r"axis 0 of image is open \(batch\)"):
        run_pass(NAME, plain, tmp_path / "d", pre=open_axis, tool_command_args=BYTES)
    vocabulary = {"type": "TokenizerParam", "params": {"vocab_or_file": "vocab.txt"}}
    with pytest.raises(ConfigError, match=r"vocab_or_file: vocab\.txt does not lie beside the model's graph"):
        run_pass(
            NAME, plain, tmp_path / "e", pre=[{"BertTokenizer": {"tokenizer_param": vocabulary}}],
            tool_command_args=[{"name": "text", "data_type": "string", "shape": [1]}],
        )  # fmt: skip
    (plain.folder / "vocab.json").write_text('{"a": "first"}')
    broken = {"type": "TokenizerParam", "params": {"vocab_or_file": "vocab.json"}}
    with pytest.raises(
        ConfigError, match=r"vocab\.json holds no vocabulary; expected a \.txt file with a token a line"
    ):
        run_pass(
            NAME, plain, tmp_path / "f", pre=[{"BertTokenizer": {"tokenizer_param": broken}}],
            tool_command_args=[{"name": "text", "data_type": "string", "shape": [1]}],
        )  # fmt: skip


@pytest.mark.usefixtures("extensions")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"post": [{"SoftMax": {}}]}, "no step 'SoftMax'; did you mean 'Softmax'?"),
        ({"post": [{"ArgMax": {"axes": 1}}]}, "ArgMax has no parameter 'axes'; did you mean 'axis'?"),
        ({"pre": [{"CenterCrop": {"height": 8}}], "tool_command_args": BYTES}, "CenterCrop lacks width"),
        ({"tool_command": "super"}, "'super' is no pipeline of onnxruntime-extensions; expected one of whisper, "),
        ({"tool_command": "superresolution"}, "superresolution lacks output_format"),
        ({"tool_command": "mobilenet", "tool_command_args": {"size": 3}}, "mobilenet takes no 'size'"),
    ],
)
def test_names_that_the_library_lacks_are_told_before_work(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AppendPrePostProcessingOpsConfig.model_validate(config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "give tool_command, or steps in pre or post"),
        ({"tool_command": "whisper", "post": [{"Softmax": {}}]}, "tool_command and post: give one of them"),
        ({"pre": PRE}, "pre needs the inputs in front of it as tool_command_args"),
        ({"post": [{"Softmax": {}, "ArgMax": {}}]}, "post.0: 2 keys; expected one, the step's name"),
        ({"post": [{"Softmax": {"params": {}, "io": []}}]}, "Softmax has io beside params and io_map"),
        ({"pre": PRE, "tool_command_args": [{**BYTES[0], "data_type": "bytes"}]}, "unknown type 'bytes'"),
        ({"tool_command": "whisper", "tool_command_args": {"use_audio": True}}, "whisper takes no 'use_audio'"),
        ({"tool_command": "whisper", "tool_command_args": {"use_onnx_stft": "x"}}, "'x'; expected true or false"),
    ],
)
def test_what_can_be_known_without_the_library_is_told_without_it(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AppendPrePostProcessingOpsConfig.model_validate(config)
    assert message in str(caught.value)


def test_opening_a_graph_without_the_library_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    plain = tiny_onnx_cnn(tmp_path / "model")
    needing = Model("onnx", plain.files, {**plain.attributes, "use_ort_extensions": True}, path=plain.folder)
    with pytest.raises(EvaluationError, match=r"not installed: pip install 'drupe\[extensions\]'"):
        extended(needing, {})
