"""Rows as functions of a user's script expect them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.plugins.data.library_rows import DatasetRows, Table
from drupe.plugins.data.options import LoadDataset

__all__ = ["as_dataset"]


def as_dataset(table: Table, config: LoadDataset, folder: Path, context: JobContext) -> Any:
    """Return rows as the `datasets` library has them, for functions that are written for it: shuffle, features, info.

    The rows themselves where it is not installed, or makes nothing of them.
    """
    if isinstance(table.rows, DatasetRows):
        return table.rows.loaded
    try:
        import datasets
    except ImportError:
        return table.rows
    datasets.disable_progress_bars()
    place = folder / Path(config.data_name or "").expanduser()
    if config.subset is not None and (place / config.subset).is_dir():
        place = place / config.subset
    options: dict[str, Any] = {"split": config.split, "cache_dir": str(context.checkpoint_dir / "datasets")}
    try:
        named = config.data_files is None and config.data_dir is None and not config.col_filters
        if named and config.data_name is not None and place.is_dir():
            return datasets.load_dataset(str(place), **options)
        return datasets.Dataset.from_list([dict(row) for row in table.rows])
    except Exception as error:
        # Of many kinds (Arrow's for columns of mixed types, the library's own); the function may do without.
        context.log.info("the datasets library does not take the rows of %s as they are: %s", table.origin, error)
        return table.rows
