"""Models on the Hugging Face hub: `owner/name` (or `name`), at a revision."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.errors import ConfigError, HostError
from drupe.core.sources import ModelSource
from drupe.plugins.huggingface.files import OTHER_FORMS

__all__ = ["HubSource", "hub_name", "hub_token", "resolve_revision"]

_NAME = re.compile(r"(?:[\w.-]+/)?[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 10
_WANTED = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "*.tiktoken", "*.spm", "*.vocab"]
_UNWANTED = [*(f"{folder}/*" for folder in OTHER_FORMS), "checkpoint-*/*"]


def hub_name(reference: str | Mapping[str, Any]) -> str:
    """Return the repository name that a reference gives."""
    if isinstance(reference, Mapping):
        return str(reference.get("repo_id") or reference.get("name") or "")
    return reference.removeprefix("hf://").removeprefix("https://huggingface.co/")


class HubSource(ModelSource):
    """Fetches with huggingface_hub into its own cache; $HF_ENDPOINT, $HF_HOME, $HF_TOKEN, $HF_HUB_OFFLINE hold."""

    def serves(self, reference: str | Mapping[str, Any], workflow_dir: Path) -> bool:
        """Say yes to what reads like a repository name."""
        return bool(_NAME.fullmatch(hub_name(reference)))

    def identity(
        self, reference: str | Mapping[str, Any], options: Mapping[str, Any], workflow_dir: Path
    ) -> dict[str, Any]:
        """Return the commit that the revision names now; asks the hub, or its cache where it can't be reached."""
        name = hub_name(reference)
        token = hub_token(options.get("token"))
        return {"hub": name, "commit": resolve_revision("models", name, options.get("revision"), token)}

    def fetch(
        self, reference: str | Mapping[str, Any], options: Mapping[str, Any], into: Path, context: JobContext
    ) -> Path:
        """Download the snapshot and return its folder in the hub's cache."""
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
        name = hub_name(reference)
        token = hub_token(options.get("token"))
        commit = resolve_revision("models", name, options.get("revision"), token)
        patterns = [*_WANTED, *(["*.py"] if options.get("remote_code") else [])]
        if options.get("file"):
            patterns = [str(options["file"])]
        context.progress(0, 1, f"downloading {name}")
        try:
            place = {"repo_id": name, "revision": commit, "token": token}
            if not _offline():
                files = HfApi().list_repo_files(**place)
                if options.get("pickle") and not any(file.endswith(".safetensors") for file in files):
                    patterns += ["*.bin", "*.pt", "*.pth"]
            folder = snapshot_download(
                **place, allow_patterns=patterns, ignore_patterns=_UNWANTED, library_name="drupe", max_workers=4
            )
        except LocalEntryNotFoundError as error:
            raise HostError(f"{name} is not in the hub's cache and the hub can't be reached: {error}") from error
        except HfHubHTTPError as error:
            raise _http_error(name, error.response.status_code, str(error)) from error
        except OSError as error:
            raise HostError(f"downloading {name} failed: {error}") from error
        context.report.setdefault("sources", {})[name] = {"commit": commit}
        return Path(folder)


def resolve_revision(kind: str, name: str, revision: str | None, token: str | None) -> str:
    """Return the commit (40 hex digits) of a revision of a "models" or "datasets" repository. No download.

    Raises ConfigError when there is no such repository or revision, HostError when the hub can't be reached and its
    cache does not know the revision.
    """
    revision = revision or "main"
    if _COMMIT.fullmatch(revision):
        return revision
    if not _offline():
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        url = f"{endpoint}/api/{kind}/{name}/revision/{urllib.parse.quote(revision, safe='')}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as answer:
                return str(json.load(answer)["sha"])
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise _http_error(name, error.code, f"revision {revision}") from error
        except (OSError, ValueError, KeyError):
            pass  # Unreachable: the cache may know.
    cached = _cache() / f"{kind}--{name.replace('/', '--')}" / "refs" / revision
    if cached.is_file():
        return cached.read_text().strip()
    raise HostError(
        f"{name} (revision {revision}) is not in the hub's cache and the hub can't be reached; "
        "if a local folder was meant, it does not exist"
    )


def _http_error(name: str, status: int, detail: str) -> ConfigError | HostError:
    if status in (401, 403):
        return ConfigError(
            f"the hub has no {name}, or it may not be read without leave ({status}); check the name, set HF_TOKEN to a "
            "token that may read it, and accept its terms"
        )
    if status in (400, 404):
        return ConfigError(
            f"the hub has no {name} ({detail}); check the name and the revision; if a local folder was meant, "
            "it does not exist"
        )
    return HostError(f"the hub answered {status} for {name}: {detail}")


def hub_token(variable: str | None = None) -> str | None:
    """Return the token in the environment variable (HF_TOKEN by default), or the one that `hf auth login` keeps."""
    token = os.environ.get(variable or "HF_TOKEN")
    if token or variable:
        return token
    kept = _home() / "token"
    return kept.read_text().strip() or None if kept.is_file() else None


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _home() -> Path:
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()


def _cache() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub").expanduser()
