"""Execution providers: those that ONNX Runtime was built with, and those that come as libraries in packages.

A package with a library for ONNX Runtime (since 1.23) is called onnxruntime-… and its module has `get_library_path` and
`get_ep_name` (onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/packaging.html). The library is registered
once in a process, under the provider's name.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from drupe.plugins.onnx.provider_table import compiling_providers

__all__ = ["ProviderAbsent", "add_provider", "library_of", "make_available", "with_defaults"]


_OTHERS = frozenset(
    f"onnxruntime-{name}"
    for name in ("genai", "genai-cuda", "genai-directml", "extensions", "training", "gpu", "directml", "tools")
)
"""Packages called onnxruntime-… that are known to bring no such library."""


class ProviderAbsent(Exception):
    """A provider can't be used here; the message says why and what to do."""


def make_available(provider: str, device: str) -> Any:
    """Return the OrtEpDevice through which a library's provider drives a device; None for a provider that ONNX Runtime
    was built with.

    device: cpu, gpu or npu; where the provider shows none of that type here, as one that compiles for another machine
    does, its first. Raises ProviderAbsent.
    """
    import onnxruntime as ort

    found = _devices(provider)
    if found is None and provider in ort.get_available_providers():
        return None
    if found is None:
        library = library_of(provider)
        if library is None:
            known = compiling_providers().get(provider)
            how = f"; pip install {' or '.join(map(repr, known.packages))}" if known else ""
            raise ProviderAbsent(
                f"this onnxruntime has no {provider}; it has {', '.join(ort.get_available_providers())}{how}"
            )
        try:
            ort.register_execution_provider_library(provider, library)
        except Exception as error:
            raise ProviderAbsent(
                f"ONNX Runtime {ort.__version__} can't load the library of {provider}: {str(error).strip()}; install "
                "versions of both that go together"
            ) from error
        found = _devices(provider)
    if not found:
        shown = {f"{item.device.type.name} of {item.device.vendor}" for item in ort.get_ep_devices()}
        here = ", ".join(sorted(shown))
        raise ProviderAbsent(
            f"the library of {provider} is installed and drives none of this machine's devices ({here}); run it on a "
            "machine with such a device"
        )
    return next((item for item in found if item.device.type.name.lower() == device), found[0])


def _devices(provider: str) -> list[Any] | None:
    """Return the devices of a library's provider; None where no library brings it, or none that shows a device yet."""
    import onnxruntime as ort

    if not hasattr(ort, "get_ep_devices"):
        return None
    found = [item for item in ort.get_ep_devices() if item.ep_name == provider and "library_path" in item.ep_metadata]
    return found or None


@functools.cache
def library_of(provider: str) -> str | None:
    """Return the path of the library that an installed package brings for a provider; None where none does.

    Raises ProviderAbsent where a package that brings it, or may bring it, is installed and can't be imported, unless
    ONNX Runtime was built with the provider.
    """
    known = {name: other for other, entry in compiling_providers().items() for name in entry.names}
    found = {str(item.metadata["Name"]).lower().replace("_", "-"): item for item in importlib.metadata.distributions()}
    broken: list[str] = []
    for name in sorted(name for name in found if name.startswith("onnxruntime-") and name not in _OTHERS):
        module = name.replace("-", "_")
        if importlib.util.find_spec(module) is None:
            continue
        try:
            package = importlib.import_module(module)
            if hasattr(package, "get_library_path") and provider in _names(package):
                return str(package.get_library_path())
        except Exception as error:
            if known.get(name, provider) == provider:
                what = "brings" if name in known else "may bring"
                reason = " ".join(str(error).split()) or "without a reason"
                broken.append(
                    f"the package {name} {found[name].version}, which {what} {provider}, can't be imported "
                    f"({type(error).__name__}: {reason}); mend it (pip install --force-reinstall {name}, and what its "
                    "own documentation says that it needs), or uninstall it"
                )
    if broken and provider not in _built_in():
        raise ProviderAbsent("; ".join(broken))
    return None


def _built_in() -> Sequence[str]:
    import onnxruntime as ort

    found: Sequence[str] = ort.get_available_providers()
    return found


def _names(package: Any) -> list[str]:
    if hasattr(package, "get_ep_names"):
        return [str(name) for name in package.get_ep_names()]
    return [str(package.get_ep_name())] if hasattr(package, "get_ep_name") else []


def with_defaults(provider: str, options: Mapping[str, Any], device: str) -> dict[str, str]:
    """Return the options that a provider is opened with: those given, and what it can't do without."""
    found = {str(key): str(value) for key, value in options.items()}
    if provider == "QNNExecutionProvider" and not {"backend_path", "backend_type"} & set(found):
        found["backend_type"] = "gpu" if device == "gpu" else "htp"
    return found


def add_provider(settings: Any, provider: str, options: Mapping[str, Any], device: str) -> None:
    """Add a provider to session options, with what with_defaults returns. Raises ProviderAbsent."""
    found = make_available(provider, device)
    if found is None:
        settings.add_provider(provider, dict(options))
    else:
        settings.add_provider_for_devices([found], dict(options))
