"""What can be known of a data config before its data is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from drupe.core.errors import ConfigError, Fault
from drupe.plugins.data.dataset import check_url, file_kind, is_hub_name, local_files, split_names
from drupe.plugins.data.options import GroupedConfig
from drupe.plugins.data.rows import first_columns
from drupe.plugins.data.templates import Template

__all__ = ["config_faults"]


def config_faults(config: GroupedConfig, folder: Path) -> Iterator[Fault]:
    """Yield what is wrong with a data config: functions without a script, absent files, columns that are not there.

    Consents for scripts, and scripts that are absent, are told by whoever reads the workflow.
    """
    for group, function in config.functions.items():
        where = f"{group}.type"
        if group == "post_process_data_config":
            hint = "name it as the metric's user_config.post_processing_func"
            yield Fault(where, f"{function!r} is not built in", "a built-in type", hint, "missing")
        elif config.user_script is None:
            known = ", ".join(getattr(config, group).built_in)
            yield Fault(where, f"{function!r} is not built in", known, "or a function of a user_script", "missing")
    if config.reads_rows:
        yield from _row_faults(config, folder)


def _row_faults(config: GroupedConfig, folder: Path) -> Iterator[Fault]:
    options = config.load_dataset_config
    if is_hub_name(options, folder):
        return
    try:
        files = local_files(options, folder)
        names = [name for name, _, _ in split_names(options.split)]
    except ConfigError as error:
        yield Fault("load_dataset_config", str(error))
        return
    for name in names:
        for item in files.get(name, ()):
            if isinstance(item, str) and "://" not in item and not Path(item).exists():
                where = "load_dataset_config.data_files" if options.data_files else "load_dataset_config"
                yield Fault(where, f"{item} does not exist", "a data file", "put it there or correct the path", "needs")
                return
        if name not in files:
            there = ", ".join(sorted(files))
            yield Fault("load_dataset_config.split", f"split {name!r} is not there", f"one of: {there}")
            return
    for item in (item for name in names for item in files[name]):
        if isinstance(item, str) and "://" in item:
            try:
                check_url(item, folder)
            except ConfigError as error:
                yield Fault("load_dataset_config.data_files", str(error))
                return
    first = files[names[0]][0]
    if isinstance(first, str) and "://" not in first:
        yield from _column_faults(config, Path(first))


def _has_no_rows(path: Path, kind: str | None) -> bool:
    """Whether a small text file holds nothing, or a head and nothing below it."""
    if kind not in ("json", "csv") or path.suffix not in (".json", ".jsonl", ".csv") or path.stat().st_size > 10_000:
        return False
    lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if kind == "json" and "".join("".join(lines).split()) == "[]":
        return True
    return len(lines) <= (1 if kind == "csv" else 0)


def _column_faults(config: GroupedConfig, path: Path) -> Iterator[Fault]:
    options, loading = config.pre_process_data_config, config.load_dataset_config
    if path.is_dir():
        return
    try:
        kind = file_kind(loading, path)
        columns = first_columns(path, kind, field=loading.field, delimiter=loading.separator)
    except (ConfigError, OSError) as error:
        yield Fault("load_dataset_config.data_files", str(error))
        return
    if _has_no_rows(path, kind):
        yield Fault("load_dataset_config.data_files", f"{path.name} has no rows", "a row at least")
        return
    if columns is None:
        return
    there = f"the columns of {path.name}: {', '.join(columns)}"
    for name in ("prompt_template", "answer_template", "text_template"):
        text = getattr(options, name)
        if text is not None:
            try:
                absent = Template(text, name).missing(columns)
            except ConfigError as error:
                yield Fault(f"pre_process_data_config.{name}", str(error))
                continue
            for column in absent:
                yield Fault(f"pre_process_data_config.{name}", f"names the column {column!r}", there)
    for name in ("text_cols", "input_cols", "answer_col", "label_col", "image_col"):
        value = getattr(options, name)
        if name == "text_cols" and (options.text_template or options.prompt_template or options.chat_template):
            continue
        for column in [value] if isinstance(value, str) else value or ():
            if column not in columns:
                yield Fault(f"pre_process_data_config.{name}", f"no column {column!r}", there)
