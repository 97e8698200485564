"""Importing what a plugin names, so that nothing that it does there ends the process."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import sys
from typing import Any

from drupe.core.config_classes import class_fault

__all__ = ["PluginImportError", "import_guarded", "in_words", "shortened"]


class PluginImportError(Exception):
    """A module or an attribute of it could not be imported; the message says why in one line.

    broken: it is the module's own text that is wrong, whatever is installed.
    """

    def __init__(self, message: str, *, broken: bool = False) -> None:
        super().__init__(message)
        self.broken = broken


def import_guarded(target: str) -> Any:
    """Import "module" or "module:attribute" and return it.

    Whatever it raises, sys.exit() included, becomes a PluginImportError (Ctrl-C does not). What it prints goes to
    stderr, since stdout may be read by a machine.
    """
    name, _, attribute = target.partition(":")
    with contextlib.redirect_stdout(sys.stderr):
        try:
            found: Any = importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except SystemExit as error:
            raise PluginImportError(f"importing {name} ended with sys.exit({error.code!r})") from error
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise PluginImportError(f"the module {error.name} of {target!r} does not exist") from error
            raise PluginImportError(
                f"importing {name} needs the module {error.name}, which is not installed"
            ) from error
        except BaseException as error:
            fault = class_fault(error)
            if fault is not None:
                raise PluginImportError(" ".join(fault.split()), broken=True) from error
            raise PluginImportError(f"importing {name} raised {in_words(error)}") from error
        for part in attribute.split(".") if attribute else ():
            try:
                found = getattr(found, part)
            except AttributeError as error:
                near = difflib.get_close_matches(part, dir(found), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise PluginImportError(f"the module {name} has no {attribute!r}{hint}") from error
    return found


def shortened(text: str, length: int = 120) -> str:
    """Return text, cut to a length."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def in_words(error: BaseException) -> str:
    """Return an exception as one line."""
    text = " ".join(str(error).split())
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__, 300)
