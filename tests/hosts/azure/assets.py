"""Environments, models and data, each with versions: of the workspace, whose registry is "", and of registries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.hosts.azure.proxy import Reply, Request, error_body

__all__ = ["Assets"]

_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_FIXED = ("image", "build", "condaFile", "modelUri", "dataUri")


class Assets:
    """All versions, in the order in which they were registered."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str, str], dict[str, Any]] = {}

    def put(self, registry: str, kind: str, name: str, version: str, properties: dict[str, Any]) -> None:
        """Register a version, as somebody else would."""
        self._known[registry, kind, name, version] = {
            "isArchived": False, "isAnonymous": False, "properties": {}, "tags": {}, "description": "", **properties,
        }  # fmt: skip

    def get(self, registry: str, kind: str, name: str, version: str) -> dict[str, Any] | None:
        """Return what a version is, or None."""
        return self._known.get((registry, kind, name, version))

    def registries(self) -> set[str]:
        """Return the registries that there are."""
        return {key[0] for key in self._known if key[0]}

    def answer(self, request: Request, registry: str, home: str, parts: list[str]) -> Reply:
        """Answer a request. parts: kind, name, "versions", version, as far as the path goes."""
        kind, name, version = parts[0], parts[1], parts[3] if len(parts) > 3 else ""
        status = 200
        if request.method == "PUT" and version:
            refused = self._put(registry, kind, name, version, request.json["properties"])
            if refused is not None:
                return refused
            status = 201
        versions = [key[3] for key in self._known if key[:3] == (registry, kind, name)]

        def item(one: str) -> dict[str, Any]:
            made = _BEGAN + timedelta(minutes=list(self._known).index((registry, kind, name, one)))
            return {"id": f"{home}/{kind}/{name}/versions/{one}", "name": one,
                    "properties": self._known[registry, kind, name, one],
                    "systemData": {"createdAt": made.isoformat()}}  # fmt: skip

        if parts[2:] == ["versions"] and versions:
            listed = [one for one in versions if self._listed(request, (registry, kind, name, one))]
            order = request.query.get("$orderBy", "").lower()
            listed = listed[::-1] if order.endswith("desc") else sorted(listed) if not order else listed
            return Reply(200, {"value": [item(one) for one in listed[: int(request.query.get("$top", len(listed)))]]})
        if version in versions:
            return Reply(status, item(version))
        if len(parts) == 2 and versions:
            properties = {"latestVersion": versions[-1], "isArchived": False, "properties": {}, "tags": {}}
            return Reply(200, {"id": f"{home}/{kind}/{name}", "name": name, "properties": properties})
        what = f"{name}:{version}" if version else name
        return Reply(404, error_body("UserError", f"Not found asset with name {what} in {registry or 'the workspace'}"))

    def _listed(self, request: Request, key: tuple[str, str, str, str]) -> bool:
        view = request.query.get("listViewType", "ActiveOnly")
        return view == "All" or bool(self._known[key]["isArchived"]) == (view == "ArchivedOnly")

    def _put(self, registry: str, kind: str, name: str, version: str, properties: dict[str, Any]) -> Reply | None:
        build = properties.get("build") or {}
        if kind == "environments" and bool(properties.get("image")) == bool(build.get("contextUri")):
            return Reply(400, error_body("UserError", "Exactly one of image and build must be given"))
        if build and not str(build["contextUri"]).endswith("/"):
            return Reply(400, error_body("UserError", f"The build context {build['contextUri']} is no folder"))
        before = self.get(registry, kind, name, version)
        if before is not None and any(before.get(field) != properties.get(field) for field in _FIXED):
            return Reply(409, error_body("UserError", f"{name}:{version} exists and can't be changed"))
        if before is None:
            self.put(registry, kind, name, version, properties)
        else:
            before.update(properties)
        return None
