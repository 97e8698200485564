"""Reads `systems`, `host` and `target`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from drupe.core.accelerators import Accelerator
from drupe.core.specs import AcceleratorSpec, HostSpec
from drupe.core.workflow.configs import check_config
from drupe.core.workflow.findings import join, listed, nearest, shown
from drupe.core.workflow.model import System
from drupe.core.workflow.reading import Reading

__all__ = ["read_roles", "read_systems"]

_LOCAL = "local_system"
_ACCELERATOR_KEYS = ("device", "execution_providers", "memory")


def read_systems(document: Mapping[str, Any], reading: Reading) -> dict[str, System]:
    """Return the systems by name."""
    entries = reading.findings.mapping(document.get("systems"), "systems", "a mapping of name to system") or {}
    reading.system_names = list(entries)
    named, default = _named(document), str(reading.catalogue.default("systems") or "").lower()
    found = {}
    for name, entry in entries.items():
        path = join("systems", name)
        if not isinstance(entry, dict):
            reading.findings.fault(path, shown(entry), "a mapping with a type")
            continue
        # One of the default type is where passes run without a host.
        of_default = str(entry.get("type") or default).lower() == default
        if not (reading.all_systems or of_default or name in named):
            reading.findings.notice(path, f"system {name!r}", "left out", "no host, target or pass names it")
            continue
        client = document.get("azureml_client")
        found[name] = _system(name, entry, path, client, reading)
    return found


def _named(document: Mapping[str, Any]) -> list[Any]:
    """Return what hosts, targets and passes name as the systems that they run on."""
    passes = document.get("passes")
    given = list(passes.values()) if isinstance(passes, dict) else []
    alternatives = [item for value in given for item in (value if isinstance(value, list) else [value])]
    target = document.get("target")
    hosts = [item.get("host") for item in alternatives if isinstance(item, dict)]
    return [document.get("host"), *(target if isinstance(target, list) else [target]), *hosts]


def _system(name: str, entry: dict[str, Any], path: str, client: Any, reading: Reading) -> System:
    rest = dict(entry)
    type_name = rest.pop("type", None) or reading.catalogue.default("systems")
    accelerators = _accelerators(rest.pop("accelerators", None), join(path, "accelerators"), reading)
    runtime = rest.pop("runtime", None)
    options = reading.findings.mapping(rest.pop("runtime_options", None), join(path, "runtime_options")) or {}
    if runtime is not None:
        _check_runtime(runtime, join(path, "runtime"), reading)
    found = reading.look_up("systems", type_name, join(path, "type"))
    if found is not None:
        entry_, factory = found
        type_name = reading.registry.reference(entry_)
        runtime = _own_runtime(name, cast(HostSpec, entry_.spec), runtime, path, reading)
        if client is not None and "azureml_client" in factory.Config.model_fields:
            # An empty one is what a template leaves for the reader to fill in.
            rest["azureml_client"] = rest.get("azureml_client") or client
        check_config(factory.Config, rest, path, reading.findings)
        reading.check_references(factory.Config, rest, path)
    return System(name, str(type_name), rest, accelerators, runtime, options, name in reading.measuring)


def _own_runtime(name: str, spec: HostSpec, runtime: Any, path: str, reading: Reading) -> Any:
    """Return the runtime that measures: the one that the host itself measures by, where it has one."""
    if spec.runtime is None:
        return runtime
    reading.measuring.append(name)
    if runtime is not None and str(runtime).lower() != spec.runtime.lower():
        expected = f"none, as systems of type {spec.name} measure by {spec.runtime}"
        reading.findings.fault(join(path, "runtime"), shown(runtime), expected, "leave the key out")
    return spec.runtime


def _check_runtime(name: Any, path: str, reading: Reading) -> None:
    names = [entry.spec.name for entry in reading.registry.of("drupe_runtimes")]
    if not isinstance(name, str) or reading.registry.find("drupe_runtimes", name) is None:
        reading.findings.fault(path, f"no runtime is named {name!r}", listed(names), nearest(name, names))


def _accelerators(value: Any, path: str, reading: Reading) -> tuple[Accelerator, ...]:
    if value is None:
        return (Accelerator(),)
    if not isinstance(value, list) or not value:
        reading.findings.fault(path, shown(value), "a list of devices")
        return (Accelerator(),)
    found: list[Accelerator] = []
    for index, item in enumerate(value):
        where = join(path, index)
        if not isinstance(item, dict):
            reading.findings.fault(where, shown(item), "a mapping with device and execution_providers")
            continue
        for key in item:
            if key not in _ACCELERATOR_KEYS:
                reading.findings.unknown_key(where, key, _ACCELERATOR_KEYS)
        found.extend(_accelerator(item, where, reading))
    return tuple(dict.fromkeys(found)) or (Accelerator(),)


def _accelerator(item: Mapping[str, Any], path: str, reading: Reading) -> list[Accelerator]:
    """One accelerator per execution provider, as each gives a model of its own."""
    providers = item.get("execution_providers")
    if not isinstance(providers, list):
        if providers is not None:
            reading.findings.fault(join(path, "execution_providers"), shown(providers), "a list of names")
        providers = []
    pairs = [_provider(p, join(join(path, "execution_providers"), i), reading) for i, p in enumerate(providers)]
    named = [pair for pair in pairs if pair is not None]
    specs = [cast(AcceleratorSpec, e.spec) for e in reading.registry.of("drupe_accelerators")]
    spec = _device(item.get("device"), [name for name, _ in named], join(path, "device"), specs, reading)
    device = spec.name if spec else str(item.get("device") or "cpu").lower()
    memory = {"memory": item["memory"]} if item.get("memory") is not None else {}
    if spec and spec.providers:
        for index, (name, _) in enumerate(named):
            if name not in spec.providers:
                where = join(join(path, "execution_providers"), index)
                expected = f"one of {device}'s: {', '.join(spec.providers)}"
                reading.findings.fault(where, shown(name), expected, nearest(name, spec.providers))
    if not named:
        default = spec.providers[0] if spec and spec.providers and "device" in item else None
        return [Accelerator(device, default, memory)]
    return [Accelerator(device, name, {**memory, **options}) for name, options in named]


def _provider(value: Any, path: str, reading: Reading) -> tuple[str, dict[str, Any]] | None:
    """A name, or a name with options as ONNX Runtime takes them: ["QNNExecutionProvider", {…}]."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
        return value[0], {"provider_options": value[1]}
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict):
        name, options = next(iter(value.items()))
        return name, {"provider_options": options}
    reading.findings.fault(path, shown(value), "a name, or [name, options]")
    return None


def _device(
    device: Any, providers: list[str], path: str, specs: list[AcceleratorSpec], reading: Reading
) -> AcceleratorSpec | None:
    if device is None:
        # The first device whose own default it is, else the first that knows it.
        for provider in providers:
            for spec in sorted(specs, key=lambda s: 0 if provider in s.providers[:1] else 1):
                if provider in spec.providers:
                    return spec
        return next((spec for spec in specs if spec.name == "cpu"), None)
    if not specs:
        return None
    found = reading.find("accelerators", device, path)
    return cast(AcceleratorSpec, found.spec) if found else None


def read_roles(
    document: Mapping[str, Any], systems: dict[str, System], reading: Reading
) -> tuple[str, tuple[str, ...]]:
    """Return host and targets; adds a local system where none is named, and splits a target of several accelerators."""
    host = document.get("host")
    if host is not None and not _known(host, "host", reading):
        host = None
    if host in reading.measuring:
        reading.tell_measuring(host, "host")
        host = None
    if host is None:
        host = _own_machine(systems, reading)
    value = document.get("target")
    listed = value if isinstance(value, list) else [value] if value is not None else [document.get("host") or host]
    if not listed:
        reading.findings.fault("target", "an empty list", "the name of a system, or a list of names")
    targets: list[str] = []
    for index, name in enumerate(listed):
        path = join("target", index) if isinstance(value, list) else "target"
        if name in targets:
            reading.findings.fault(path, f"{name!r} is listed twice", "each target once")
        elif (isinstance(name, str) and name in systems and name == host) or _known(name, path, reading):
            targets.extend(_split(systems, name) if name in systems else ())
    return host, tuple(targets)


def _known(name: Any, path: str, reading: Reading) -> bool:
    if isinstance(name, str) and name in reading.system_names:
        return True
    names = reading.system_names
    expected = listed(names) or "an entry of systems"
    if isinstance(name, str):
        reading.findings.fault(path, f"no system is named {name!r}", expected, nearest(name, names))
    else:
        reading.findings.fault(path, shown(name), expected)
    return False


def _own_machine(systems: dict[str, System], reading: Reading) -> str:
    """The system of the default type that steps run on where the workflow names no host."""
    default = reading.catalogue.default("systems")
    entry = reading.registry.find("drupe_hosts", default) if default else None
    if entry is None:
        entry = next(iter(reading.registry.of("drupe_hosts")), None)
    type_name = entry.spec.name if entry else default or ""
    for name, system in systems.items():
        if system.type.lower() == type_name.lower():
            return name
    name = _LOCAL if _LOCAL not in systems else "this_machine"
    systems[name] = System(name, type_name)
    return name


def _split(systems: dict[str, System], name: str) -> list[str]:
    """A target is one accelerator; a system of several is a target for each."""
    system = systems[name]
    if len(system.accelerators) == 1:
        return [name]
    names = []
    for accelerator in system.accelerators:
        provider = (accelerator.execution_provider or "").removesuffix("ExecutionProvider").lower()
        part = "-".join(filter(None, [name, accelerator.device, provider]))
        systems[part] = replace(system, name=part, accelerators=(accelerator,))
        names.append(part)
    return names
