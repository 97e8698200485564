"""Functions of a user's script that a metric's config names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError
from drupe.core.user_scripts import user_function
from drupe.plugins.metrics.config import DataMetricConfig

__all__ = ["call_with_known", "script_function"]


def script_function(config: DataMetricConfig, field: str, context: JobContext) -> Callable[..., Any] | None:
    """Return the function that `field` of the config names, or None where it names none.

    Raises ConfigError without consent, or when the file or the function in it does not exist.
    """
    name = getattr(config, field)
    if name is None or config.user_script is None:
        return None
    function = user_function(config.user_script, name, context, folder=config.script_dir)
    if not callable(function):
        raise ConfigError(f"{field}: {name} of {config.user_script} is no function")
    return function  # type: ignore[no-any-return]


def call_with_known(function: Callable[..., Any], offered: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """Call a user's function with those of `offered` that its signature names, and with all of `own`.

    own wins; a key of `own` that the signature lacks is the user's error and raises TypeError.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
    known = {key: value for key, value in offered.items() if takes_any or key in names}
    return function(**{**known, **own})
