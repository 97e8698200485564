"""A plan that a class of the user's gives, for architectures that transformers has none for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drupe.core.context import PassContext
from drupe.core.errors import ConfigError, EvaluationError, PassError

__all__ = ["UserPlan", "user_plan"]


@dataclass(frozen=True)
class UserPlan:
    """styles: module or weight → style; None: transformers' own. divided: module → its numbers that ranks share."""

    styles: Mapping[str, str] | None = None
    divided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def user_plan(name: str, data: Mapping[str, Any], config: Any, context: PassContext) -> UserPlan:
    """Ask the user's class. name: the pass's; data: the model's config.json; config: has user_script, script_dir and
    class_name.

    Raises ConfigError without consent or where the class is not as expected, PassError where its code fails.
    """
    from drupe.core.user_scripts import user_function

    if config.user_script is None:
        return UserPlan()
    try:
        made = user_function(config.user_script, config.class_name, context, folder=config.script_dir)
    except ConfigError as error:
        if "olive.passes" not in str(error):
            raise
        raise ConfigError(
            f"{name}: {error}; a class on Olive's is not run: leave user_script and class_name out where transformers "
            "has a plan for the model, or name a class that has a tp_plan"
        ) from error
    where = f"{name}: {config.class_name} of {config.user_script}"
    if not callable(getattr(made, "tp_plan", None)):
        raise ConfigError(
            f"{where} has no method tp_plan(config); expected a class whose tp_plan returns module → style, or leave "
            "user_script and class_name out: transformers has plans of its own"
        )
    styles = _asked(name, made, "tp_plan", data, config)
    if not isinstance(styles, Mapping) or not all(isinstance(text, str) for pair in styles.items() for text in pair):
        raise ConfigError(
            f"{where}: tp_plan returned {styles!r}; expected modules and their styles, such as "
            "{'model.layers.*.mlp.down_proj': 'rowwise'}"
        )
    divided = _asked(name, made, "divided", data, config) if callable(getattr(made, "divided", None)) else {}
    if not isinstance(divided, Mapping) or not all(_is_names(numbers) for numbers in divided.values()):
        raise ConfigError(
            f"{where}: divided returned {divided!r}; expected modules and lists of their numbers, such as "
            "{'model.layers.*.self_attn': ['num_heads']}"
        )
    return UserPlan(dict(styles), {str(module): tuple(numbers) for module, numbers in divided.items()})


def _asked(name: str, made: Any, method: str, data: Mapping[str, Any], config: Any) -> Any:
    from drupe.core.user_scripts import blamed

    try:
        with blamed(f"{config.class_name}.{method}", config.user_script):
            return getattr(made(), method)(dict(data))
    except EvaluationError as error:
        raise PassError(f"{name}: {error}") from error


def _is_names(numbers: Any) -> bool:
    return (
        isinstance(numbers, Sequence)
        and not isinstance(numbers, str)
        and all(isinstance(number, str) for number in numbers)
    )
