"""HuggingfaceContainer: rows from files or the hub, prepared for text generation or for classes of texts or images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from drupe.core.context import JobContext
from drupe.core.data import DataConfig, DataContainer, Sample
from drupe.core.errors import ConfigError, Fault
from drupe.core.keys import file_identity
from drupe.core.model import Model
from drupe.core.stat_cache import cached_digest, path_identity
from drupe.plugins.data.accounting import Accounting
from drupe.plugins.data.image_folders import BUILDER
from drupe.plugins.data.options import GroupedConfig, PreProcess
from drupe.plugins.data.templates import Template

__all__ = ["HuggingfaceContainer", "HuggingfaceDataConfig", "ImageContainer", "ImageDataConfig"]

_CLASSIFYING = ("text-classification", "zero-shot-classification", "token-classification", "image-classification")


class HuggingfaceDataConfig(GroupedConfig):
    """A data config of type HuggingfaceContainer."""


class HuggingfaceContainer(DataContainer):
    """Rows of JSON, csv, Parquet, Arrow or text files, URLs, or data sets on the hub."""

    Config: ClassVar[type[DataConfig]] = HuggingfaceDataConfig
    version = 2

    def check(self, config: HuggingfaceDataConfig, workflow_dir: Path) -> Sequence[Fault]:
        """Tell absent files, columns that the first row lacks, and functions that need a script."""
        from drupe.plugins.data.checks import config_faults

        return list(config_faults(config, workflow_dir))

    def identity(self, config: HuggingfaceDataConfig, workflow_dir: Path) -> Any:
        """Return the digests of files and script, or the commit of a hub data set."""
        from drupe.plugins.data.dataset import identity

        found: dict[str, Any] = {}
        for name in (config.user_script, config.script_dir):
            if name is not None:
                path = workflow_dir / Path(name).expanduser()
                if not path.exists():
                    found[Path(name).name] = None
                    continue
                folder = path.is_dir()
                found[Path(name).name] = path_identity(path) if folder else file_identity(path, cached_digest)
        if config.reads_rows:
            found["rows"] = identity(config.load_dataset_config, workflow_dir)
        return found

    def files(self, config: HuggingfaceDataConfig, workflow_dir: Path) -> Sequence[Path]:
        """See DataContainer.files: scripts, and the files that the rows are in."""
        from drupe.plugins.data.dataset import is_hub_name, local_files, reference_files

        found = list(super().files(config, workflow_dir))
        options = config.load_dataset_config
        if config.reads_rows and not is_hub_name(options, workflow_dir):
            items = [item for files in local_files(options, workflow_dir).values() for item in files]
            found += [Path(item) for item in items if isinstance(item, str) and "://" not in item]
            for item in items:
                if not isinstance(item, str):
                    found += reference_files(item, workflow_dir)
        return found

    def count(self, config: HuggingfaceDataConfig, workflow_dir: Path) -> int | None:
        """See DataContainer.count: the rows of files on this machine, where a row is a sample."""
        from drupe.plugins.data.dataset import count_rows, is_hub_name

        options = config.pre_process_data_config
        one_each = (options.strategy or "line-by-line") == "line-by-line"
        if config.functions or not one_each or is_hub_name(config.load_dataset_config, workflow_dir):
            return None
        rows = count_rows(config.load_dataset_config, workflow_dir)
        return rows if rows is None or options.max_samples is None else min(rows, options.max_samples)

    def prompting(self, config: HuggingfaceDataConfig) -> Mapping[str, Any]:
        """See DataContainer.prompting: of a prompt_template with one column."""
        options = config.pre_process_data_config
        if options.prompt_template is None or options.chat_template is not None:
            return {}
        if len(Template(options.prompt_template, "prompt_template").fields) != 1:
            return {}
        spans = "\n" in (options.answer_template or "").strip()
        return {"prompt_template": options.prompt_template, "stop": [] if spans else ["\n"]}

    def load(self, config: HuggingfaceDataConfig, model: Model | None, context: JobContext) -> Iterable[Sample]:
        """See DataContainer.load."""
        from drupe.plugins.data.dataset import load_table
        from drupe.plugins.data.library_rows import Table

        functions = config.functions
        options = config.pre_process_data_config
        folder = context.workflow_dir or Path()
        if functions:
            from drupe.plugins.data.scripts import scripted_samples

            samples, account = scripted_samples(config, model, context)
            if samples is not None:
                return self._accounted(samples, account, context)
            table = Table(account.notes.pop("rows"), origin=account.origin)
        else:
            limit = options.max_samples if (options.strategy or "line-by-line") == "line-by-line" else None
            table = load_table(config.load_dataset_config, folder, context, limit)
        account = Accounting(len(table.rows), table.origin)
        if options.type in ("skip_pre_process", "pre_process"):
            samples = _raw(table.rows, options, account)
        elif self._classifies(config, model):
            samples = self._classified(config, model, context, table, account)
        else:
            samples = self._generating(config, model, context, table, account)
        return self._accounted(samples, account, context)

    def _accounted(self, samples: Sequence[Sample], account: Accounting, context: JobContext) -> Sequence[Sample]:
        account.check(samples)
        context.report.setdefault("accounting", {}).update(account.report(samples))
        return samples

    def _classifies(self, config: HuggingfaceDataConfig, model: Model | None) -> bool:
        told = config.pre_process_data_config.classifies
        return told if told is not None else _task(config, model) in _CLASSIFYING

    def _generating(
        self, config: HuggingfaceDataConfig, model: Model | None, context: JobContext, table: Any, account: Accounting
    ) -> list[Sample]:
        from drupe.core.user_scripts import user_function
        from drupe.plugins.data.text_generation import TextGeneration

        options = config.pre_process_data_config
        formatter = None
        if options.text_formatting_func is not None:
            if config.user_script is None:
                raise ConfigError(f"text_formatting_func {options.text_formatting_func!r} needs a user_script")
            formatter = user_function(
                config.user_script, options.text_formatting_func, context, folder=config.script_dir
            )
        tokenizer = _tokenizer(options, model, context)
        return TextGeneration(options, tokenizer, formatter, context.seed).samples(table.rows, account)

    def _classified(
        self, config: HuggingfaceDataConfig, model: Model | None, context: JobContext, table: Any, account: Accounting
    ) -> list[Sample]:
        from drupe.plugins.data.classification import Classification
        from drupe.plugins.data.images import has_images
        from drupe.plugins.data.rows import columns_of
        from drupe.plugins.huggingface.config_facts import label_numbers, places
        from drupe.plugins.huggingface.loading import load_config, read_config

        options = config.pre_process_data_config
        known = read_config(model.folder) if model is not None and model.path is not None else {}
        labels = label_numbers(known)
        if options.align_labels and not labels and model is not None:
            # transformers has names for a model that gives none.
            labels = load_config(model).label2id or {}
        imagery = options.type == "image_pre_process" or "image" in (_task(config, model) or "")
        if imagery or (options.type is None and has_images(columns_of(table.rows[:1]), options)):
            return self._pictured(config, model, context, table, account, labels)
        tags = options.type == "ner_huggingface_preprocess" or _task(config, model) == "token-classification"
        tokenizer = _tokenizer(options, model, context)
        preparing = Classification(options, tokenizer, labels, tags=tags, longest=places(known))
        return preparing.samples(table.rows, table.label_names, account)

    def _pictured(
        self,
        config: HuggingfaceDataConfig,
        model: Model | None,
        context: JobContext,
        table: Any,
        account: Accounting,
        labels: Mapping[str, int],
    ) -> list[Sample]:
        from drupe.plugins.data.images import ImageClassification
        from drupe.plugins.huggingface.loading import load_image_processor, read_config

        shape = read_config(model.folder) if model is not None and model.path is not None else {}
        processor = load_image_processor(model) if model is not None and model.path is not None else None
        if processor is None:
            account.notes["processor"] = "none came with the model; pixels are scaled to 0…1"
        folder = context.workflow_dir or Path()
        preparing = ImageClassification(config.pre_process_data_config, processor, labels, shape, folder)
        return preparing.samples(table.rows, table.label_names, account)


class ImageDataConfig(HuggingfaceDataConfig):
    """A data config of type ImageDataContainer: a folder of images, unless data_name says otherwise."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        found = dict(data)
        loading, preparing = (
            dict(found.get(name) or {}) for name in ("load_dataset_config", "pre_process_data_config")
        )
        if not any(key in {**loading, **found} for key in ("type", "data_name", "data_files")):
            loading["data_name"] = BUILDER
        if "type" not in preparing:
            preparing["type"] = "image_pre_process"
        return {**found, "load_dataset_config": loading, "pre_process_data_config": preparing}


class ImageContainer(HuggingfaceContainer):
    """Pictures in folders, a folder per class, or in the rows of a table."""

    Config: ClassVar[type[DataConfig]] = ImageDataConfig


def _task(config: HuggingfaceDataConfig, model: Model | None) -> str | None:
    told = config.task or config.pre_process_data_config.task or config.dataloader_config.task
    return told or (model.attributes.get("task") if model is not None else None)


def _tokenizer(options: PreProcess, model: Model | None, context: JobContext) -> Any:
    """Return the model's tokenizer, else that of model_name, else None."""
    from drupe.plugins.huggingface.loading import load_tokenizer

    if model is not None and any(name.startswith(("tokenizer", "vocab", "spiece")) for name in model.files):
        return load_tokenizer(model)
    if options.model_name is None:
        return None
    if options.trust_remote_code:
        context.require_consent("remote-code", f"the tokenizer of {options.model_name}")
    from drupe.core.registry import get_registry
    from drupe.core.sources import find_source

    folder = context.workflow_dir or Path()
    into = context.checkpoint_dir / "tokenizer"
    into.mkdir(parents=True, exist_ok=True)
    source = find_source(get_registry(), options.model_name, folder)
    path = source.fetch(options.model_name, {"remote_code": options.trust_remote_code}, into, context)
    return load_tokenizer(Model("hf", {}, {"remote_code": options.trust_remote_code}, path=path))


def _raw(rows: Sequence[Mapping[str, Any]], options: PreProcess, account: Accounting) -> list[Sample]:
    """Take the columns as they are: strings and numbers; a column named label is the target."""
    import json

    from drupe.plugins.data.templates import content_key

    kept = list(rows[: options.max_samples]) if options.max_samples is not None else list(rows)
    account.drop("beyond max_samples", len(rows) - len(kept))
    label = options.label_col or "label"
    found = []
    for index, row in enumerate(kept):
        inputs = {
            name: value if isinstance(value, str) else _plain_array(value, name, index)
            for name, value in row.items()
            if name != label and value is not None
        }
        plain = json.dumps({k: v for k, v in row.items() if k != label}, sort_keys=True, default=str)
        found.append(Sample(f"{index:07}", inputs, row.get(label), content_key(plain)))
    return found


def _plain_array(value: Any, name: str, row: int) -> Any:
    import numpy as np

    try:
        found = np.asarray(value)
    except ValueError:
        # Lists of unequal lengths.
        found = np.asarray(None)
    if found.dtype.kind not in "biufUSM":
        raise ConfigError(f"row {row}: {name} is {value!r:.60}; expected a number, a text or lists of equal length")
    return found
