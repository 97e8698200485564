"""A model: its kind, its files by digest, its attributes. Immutable.

`files` maps a relative POSIX path to the sha256 of the file's bytes. An adapter shares its base's files: `derive` adds
and removes files without touching what stays. A model that lies in a folder of this machine has a `path`; the folder
takes no part in equality or digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from drupe.core.digests import digest_of, file_digest

__all__ = ["Model", "ModelInfo"]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it exists: kind and attributes. `Pass.plan` maps one to the next.

    Attributes of `hf`: task, dtype, adapter, quantization, architecture. Unknown attributes are absent, not None.
    """

    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, kind: str | None = None, **attributes: Any) -> ModelInfo:
        """Return a copy of another kind or with attributes changed; an attribute set to None is removed."""
        merged = {k: v for k, v in {**self.attributes, **attributes}.items() if v is not None}
        return ModelInfo(kind or self.kind, merged)


@dataclass(frozen=True)
class Model:
    """An immutable model artifact."""

    kind: str
    files: Mapping[str, str]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", MappingProxyType(dict(self.files)))
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of kind, files and attributes."""
        return digest_of({"kind": self.kind, "files": dict(self.files), "attributes": dict(self.attributes)})

    @property
    def info(self) -> ModelInfo:
        """Kind and attributes, as `Pass.plan` takes them."""
        return ModelInfo(self.kind, dict(self.attributes))

    @property
    def folder(self) -> Path:
        """The local folder that holds the files. Raises ValueError when the model was not staged."""
        if self.path is None:
            raise ValueError(f"model {self.digest[:12]} is not staged in a folder")
        return self.path

    @classmethod
    def from_dir(cls, kind: str, folder: Path, attributes: Mapping[str, Any] | None = None) -> Model:
        """Hash every file below folder and return the model that they make. Raises OSError."""
        folder = Path(folder)
        files = {p.relative_to(folder).as_posix(): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        return cls(kind, files, dict(attributes or {}), path=folder)

    def derive(
        self,
        *,
        kind: str | None = None,
        add_dir: Path | None = None,
        prefix: str = "",
        remove: Iterable[str] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> Model:
        """Return a model that keeps this one's files, less `remove`, plus those below `add_dir` under `prefix`.

        attributes are merged over this model's; one set to None is removed. The new files must lie in
        `context.output_dir / prefix` (so `add_dir = output_dir / prefix`); kept files are not copied.
        """
        gone = set(remove)
        files = {name: digest for name, digest in self.files.items() if name not in gone}
        if add_dir is not None:
            for name, digest in Model.from_dir(self.kind, add_dir).files.items():
                files[f"{prefix}/{name}" if prefix else name] = digest
        merged = {k: v for k, v in {**self.attributes, **(attributes or {})}.items() if v is not None}
        return Model(kind or self.kind, files, merged)

    def at(self, path: Path) -> Model:
        """Return the same model, staged at path."""
        return replace(self, path=path, files=dict(self.files), attributes=dict(self.attributes))

    def to_json(self) -> dict[str, Any]:
        """Return kind, files and attributes as JSON data."""
        return {"kind": self.kind, "files": dict(self.files), "attributes": dict(self.attributes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], path: Path | None = None) -> Model:
        """Build a model from what `to_json` gave."""
        return cls(data["kind"], data["files"], data.get("attributes", {}), path)
