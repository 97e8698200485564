"""The options of data configs: Olive's four groups, typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from drupe.core.config import FileRef, PluginConfig, SecretRef, tell, tell_unused
from drupe.core.data import DataConfig

__all__ = [
    "BUILDERS",
    "Component",
    "Dataloader",
    "GroupedConfig",
    "LoadDataset",
    "PostProcess",
    "PreProcess",
    "Strategy",
]

BUILDERS: Mapping[str, str] = {
    "json": "json", "jsonl": "json", "ndjson": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet", "text": "text",
    "txt": "text", "arrow": "arrow", "imagefolder": "imagefolder",
}  # fmt: skip
"""Values of data_name that are formats of files → the format."""

_UNREAD = (
    "audiofolder", "videofolder", "pdffolder", "niftifolder", "meshfolder", "webdataset", "hdf5", "xml", "pandas",
    "sql", "spark", "generator", "lance", "vortex", "iceberg", "npz", "npy",
)  # fmt: skip
"""Formats that other libraries go by the names of, and that no container here reads."""

Strategy = Literal["line-by-line", "line-by-line-random", "join", "join-random", "join-sliding-window"]


class Component(PluginConfig):
    """A group of a data config. A `type` that is not built in names a function of the user's script."""

    built_in: ClassVar[tuple[str, ...]] = ()

    type: str | None = Field(None, description="Which built-in component; another name is a function of user_script.")
    params: dict[str, Any] = Field(default_factory=dict, description="Arguments of a function of user_script.")

    @model_validator(mode="before")
    @classmethod
    def _arguments_of_functions(cls, data: Any) -> Any:
        """What a user's function takes can't be known here: all keys but the type are its arguments."""
        if not isinstance(data, Mapping) or data.get("type") is None or data["type"] in cls.built_in:
            return data
        given = {key: value for key, value in data.items() if key not in ("type", "params")}
        return {"type": data["type"], "params": {**given, **(data.get("params") or {})}}

    @property
    def function(self) -> str | None:
        """The function of the user's script, or None."""
        return self.type if self.type is not None and self.type not in self.built_in else None


class LoadDataset(Component):
    """Which rows."""

    built_in = ("huggingface_dataset", "local_dataset")

    data_name: str | None = Field(
        None, description="json, csv, tsv, parquet, arrow, text, imagefolder; a local path; a name on the hub."
    )
    subset: str | None = Field(
        None, description="The configuration of a data set on the hub; in a folder, the sub-folder."
    )
    data_files: str | list[str] | dict[str, Any] | None = Field(
        None, description="Files, relative to the workflow; patterns and URLs work; or a mapping from split to files."
    )
    data_dir: str | None = Field(None, description="The folder that data_files are relative to.")
    split: str = Field("train", description="Which split; parts as in train[:10%] and sums as in train+test work.")
    col_filters: dict[str, str | int | float | bool] = Field(
        default_factory=dict, description="Only rows whose columns have these values; it is looked at after split."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    streaming: bool = Field(False, description="Fetch no more of a hub data set than max_samples needs.")
    token: SecretRef | bool | None = Field(None, description="The environment variable with the hub's token.")
    trust_remote_code: bool = Field(False, description="Data sets that run code are not read; see the error there.")
    field: str | None = Field(None, description="In a JSON file that holds one object: where its rows are.")
    delimiter: str | None = Field(None, description="Between the columns of a csv file; default: comma (tsv: tab).")
    builder_kwargs: dict[str, Any] = Field(default_factory=dict, description="More arguments of a hub data set.")

    @field_validator("data_name")
    @classmethod
    def _read_here(cls, value: str | None) -> str | None:
        if value is not None and value.lower() in _UNREAD:
            known = ", ".join(sorted(BUILDERS))
            raise ValueError(
                f"{value} is no format that is read here; expected {known}, a path or a name on the hub; or have a "
                "function of a user_script load the data"
            )
        return value

    @field_validator("data_files")
    @classmethod
    def _files_are_named(cls, value: Any) -> Any:
        typed = isinstance(value, dict) and isinstance(value.get("type"), str)
        named = [value] if not isinstance(value, dict) or typed else list(value.values())
        if value is not None and (not named or not all(_names_files(part) for part in named)):
            raise ValueError(f"data_files {value!r:.80}: expected a file or more, or a mapping of split to such")
        return value

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError(f'delimiter {value!r}: expected one character; a tab is written "\\t" in JSON')
        return value

    @model_validator(mode="after")
    def _has_effect(self, info: ValidationInfo) -> LoadDataset:
        kind = self.format
        if kind is not None or (self.data_name is None and self.data_files is not None):
            names = ["revision", "streaming", "token", "builder_kwargs", *(["subset"] if self.data_files else [])]
            tell_unused(info, self, names, "the rows come from files, not from a data set on the hub")
        if kind not in (None, "json"):
            tell_unused(info, self, ["field"], f"it tells where rows are in a JSON file; data_name is {self.data_name}")
        if kind not in (None, "csv"):
            tell_unused(info, self, ["delimiter"], f"it is for csv files; data_name is {self.data_name}")
        return self

    @property
    def format(self) -> str | None:
        """The format of files that data_name tells, or None where it is a path, a name on the hub, or not there."""
        return BUILDERS.get((self.data_name or "").lower())

    @property
    def separator(self) -> str | None:
        """What stands between the columns of a csv file, where the config tells it."""
        return self.delimiter or ("\t" if (self.data_name or "").lower() == "tsv" else None)


def _names_files(value: Any) -> bool:
    """Whether a value names files: a path or a pattern, a typed reference, or a list of such."""
    if isinstance(value, list):
        return bool(value) and all(not isinstance(part, list) and _names_files(part) for part in value)
    return isinstance(value, Mapping) or (isinstance(value, str) and bool(value.strip()))


class PreProcess(Component):
    """How rows become samples: text generation, or classification where input_cols say so."""

    built_in = (
        "text_generation_huggingface_pre_process",
        "huggingface_pre_process",
        "ner_huggingface_preprocess",
        "image_pre_process",
        "skip_pre_process",
        "pre_process",
    )

    # Both
    max_samples: int | None = Field(None, ge=1, description="Use no more samples than that.")
    padding: bool | Literal["max_length", "longest", "do_not_pad"] = Field(
        False, description='True or "max_length": every sample gets the same length; batches are padded anyway.'
    )
    add_special_tokens: bool | None = Field(None, description="The tokenizer's own, and end-of-text after each text.")
    model_name: str | None = Field(None, description="Whose tokenizer, for models that bring none.")
    task: str | None = Field(None, description="What the samples are for; by default, the model's task.")
    trust_remote_code: bool = Field(False, description="The tokenizer of model_name brings code (a consent).")
    # Text generation
    text_cols: str | list[str] | None = Field(None, description="Columns of text, joined by a space.")
    text_template: str | None = Field(None, description="The text, with {column} where a column's value goes.")
    text_formatting_func: str | None = Field(None, description="A function of user_script: row to text.")
    prompt_template: str | None = Field(None, description="What comes before the answer, with {column}.")
    answer_template: str | None = Field(None, description="The answer, with {column}; loss is taken here only.")
    answer_col: str | None = Field(None, description="The column with the answer, instead of a template.")
    chat_template: bool | str | None = Field(None, description="True: the tokenizer's; else the template itself.")
    message_col: str = Field("messages", description="The column with chat messages.")
    strategy: Strategy | None = Field(
        None, description="line-by-line (a sample per row; default for prompts and chats) or join (default for text)."
    )
    max_seq_len: int = Field(1024, ge=2, description="Longest sample, in tokens.")
    stride: int | None = Field(None, ge=1, description="Step of join-sliding-window, in tokens.")
    padding_side: Literal["left", "right"] = Field("right", description="Where padding goes.")
    use_attention_mask: bool = Field(True, description="Samples carry an attention mask.")
    drop_short_sequences: bool = Field(False, description="Leave out samples shorter than max_seq_len.")
    drop_last: bool = Field(False, description="join: leave out the last block where it is shorter.")
    joiner: str | None = Field("\n\n", description="Between the rows of join.")
    random_seed: int | None = Field(None, description="Of the -random strategies; default: the workflow's seed.")
    random_retries: int = Field(10, ge=1, description="Tries for a long enough block in the -random strategies.")
    processing_batch_size: int = Field(1024, ge=1, description="Rows that are tokenized at once.")
    # Classification
    input_cols: str | list[str] | None = Field(None, description="One column of text, or two of a pair.")
    label_col: str | None = Field(None, description='The column with the label; default: "label".')
    max_length: int | None = Field(None, ge=1, description="Longest sample, in tokens.")
    truncation: bool = Field(True, description="Cut what is longer than max_length.")
    is_split_into_words: bool | None = Field(None, description="input_cols hold lists of words.")
    # Images
    image_col: str | None = Field(None, description='The column with the picture; default: "image" or "img".')
    image_size: tuple[int, int] | None = Field(
        None, description="Height and width; default: the processor's, else what the model's config says."
    )
    image_mean: list[float] | None = Field(
        None, description="Per channel, of values from 0 to 1; default: the processor's."
    )
    image_std: list[float] | None = Field(None, description="Per channel; goes with image_mean.")
    align_labels: bool | None = Field(
        None,
        description="Map the data's label names to the model's; default: where the data tells names, and the model has "
        "all of them.",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> PreProcess:
        asks = self.prompt_template is not None
        answers = self.answer_template is not None or self.answer_col is not None
        if asks != answers:
            missing = "answer_template or answer_col" if asks else "prompt_template"
            raise ValueError(f"prompt and answer go together; {missing} is missing")
        if self.answer_template is not None and self.answer_col is not None:
            raise ValueError("answer_template and answer_col exclude each other")
        if self.prompt_template is not None and self.text_template is not None:
            raise ValueError("prompt_template and text_template exclude each other")
        if asks and self.strategy is not None and self.strategy.startswith("join"):
            raise ValueError(f"strategy {self.strategy}: prompts with answers are not joined; use line-by-line")
        if self.strategy == "join-sliding-window" and self.stride is None:
            raise ValueError("strategy join-sliding-window needs a stride")
        if self.stride is not None and self.stride > self.max_seq_len:
            raise ValueError(f"stride {self.stride} is above max_seq_len {self.max_seq_len}: text would be left out")
        if self.strategy is not None and self.strategy.endswith("random") and self.max_samples is None:
            raise ValueError(f"strategy {self.strategy} needs max_samples: how many to draw")
        if isinstance(self.input_cols, list) and len(self.input_cols) not in (1, 2):
            raise ValueError(f"input_cols {self.input_cols}: {len(self.input_cols)} columns; expected one text, or two")
        if (self.image_mean is None) != (self.image_std is None):
            raise ValueError("image_mean and image_std go together")
        if self.image_std is not None and not all(value > 0 for value in self.image_std):
            raise ValueError(f"image_std {self.image_std}: expected numbers above 0, as pixels are divided by them")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size {list(self.image_size)}: expected a height and a width above 0")
        if self.pads and self.drop_short_sequences:
            raise ValueError("padding and drop_short_sequences exclude each other")
        if self.pads and not self.use_attention_mask and not (self.strategy or "").startswith("join"):
            raise ValueError("padding needs use_attention_mask: the model could not tell padding from text")
        return self

    @property
    def pads(self) -> bool:
        """Whether every sample gets the same length."""
        return self.padding in (True, "max_length")

    @property
    def classifies(self) -> bool | None:
        """Whether the options are of classification (True), of text generation (False), or could be either (None)."""
        if self.type in ("huggingface_pre_process", "ner_huggingface_preprocess", "image_pre_process"):
            return True
        if self.type == "text_generation_huggingface_pre_process":
            return False
        classifying = (self.input_cols, self.label_col, self.max_length, self.is_split_into_words, self.image_col)
        if self.align_labels or any(value is not None for value in classifying):
            return True
        generating = (self.text_cols, self.text_template, self.text_formatting_func, self.prompt_template)
        chat = self.chat_template is not None or self.strategy is not None
        return False if chat or any(value is not None for value in generating) else None


class PostProcess(Component):
    """What is done with a model's outputs. Metrics do what the built-in ones did; another is the metric's business."""

    built_in = (
        "text_classification_post_process",
        "ner_post_process",
        "text_generation_post_process",
        "skip_post_process",
        "post_process",
        "mnist_post_process",
    )


class Dataloader(Component):
    """How samples become batches. Whoever uses the samples makes the batches; these are its wishes."""

    built_in = (
        "default_dataloader",
        "no_auto_batch_dataloader",
        "skip_dataloader",
        "dataloader",
        "default_calibration_dataloader",
    )

    batch_size: int | None = Field(None, ge=1, description="Samples a batch, for a user's own loader.")
    shuffle: bool = Field(False, description="Samples come in their stable order; training shuffles by its own seed.")
    drop_last: bool = Field(False, description="Leave out the last batch where it is shorter.")
    num_workers: int = Field(0, ge=0, description="Samples are made before they are used; no workers are needed.")
    task: str | None = Field(None, description="What the samples are for; by default, the model's task.")


class GroupedConfig(DataConfig):
    """A data config in Olive's four groups; keys of a group may also stand beside them."""

    task: str | None = Field(None, description="What the samples are for; by default, the model's task.")
    user_script: FileRef | None = Field(None, description="A Python file with own components (a consent).")
    script_dir: FileRef | None = Field(None, description="The folder with what user_script imports.")
    load_dataset_config: LoadDataset = Field(default_factory=LoadDataset, description="Where the rows come from.")
    pre_process_data_config: PreProcess = Field(default_factory=PreProcess, description="How rows become samples.")
    post_process_data_config: PostProcess = Field(
        default_factory=PostProcess, description="What metrics do with a model's outputs."
    )
    dataloader_config: Dataloader = Field(default_factory=Dataloader, description="How samples become batches.")

    @model_validator(mode="before")
    @classmethod
    def _flat_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        result = {key: value for key, value in data.items() if not (value is None and key in _GROUPS)}
        for key in list(result):
            if key in cls.model_fields:
                continue
            for group, model in _GROUPS.items():
                if key in model.model_fields and key not in ("type", "params"):
                    inner = result.get(group) or {}
                    if isinstance(inner, Mapping) and key not in inner:
                        result[group] = {**inner, key: result.pop(key)}
                    break
        return result

    @model_validator(mode="after")
    def _tell_wishes(self, info: ValidationInfo) -> GroupedConfig:
        wishes, scripted = self.dataloader_config, bool(self.functions)
        if wishes.batch_size not in (None, 1) and not scripted:
            tell(info, f"dataloader_config.batch_size has no effect: {_BATCHES}")
        for name, reason in _FIXED.items():
            if getattr(wishes, name):
                tell(info, f"dataloader_config.{name} has no effect: {reason}")
        return self

    @property
    def functions(self) -> Mapping[str, str]:
        """Group → the function of the user's script that it names."""
        found = {name: getattr(self, name).function for name in _GROUPS}
        return {name: function for name, function in found.items() if function is not None}

    @property
    def reads_rows(self) -> bool:
        """Whether rows are read from files or the hub: not by the script, and not left to its other functions."""
        loading = self.load_dataset_config
        if loading.function is not None:
            return False
        named = (loading.data_name, loading.data_files, loading.data_dir)
        return not (loading.type == "local_dataset" and self.functions and all(name is None for name in named))


_BATCHES = "a metric's user_config and a pass's own options say how many samples it takes at once"
_FIXED: Mapping[str, str] = {
    "shuffle": "samples come in their order; training shuffles by its own seed",
    "drop_last": "every sample is measured",
    "num_workers": "samples are made before they are used",
}
"""Wishes of a dataloader_config that change nothing → why."""

_GROUPS: Mapping[str, type[Component]] = {
    "load_dataset_config": LoadDataset,
    "pre_process_data_config": PreProcess,
    "post_process_data_config": PostProcess,
    "dataloader_config": Dataloader,
}
