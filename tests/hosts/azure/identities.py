"""Who is known to the cloud, and the ways to a token: managed identity, a job's user, service principal, `az`."""

from __future__ import annotations

import base64
import json
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

from tests.hosts.azure.proxy import Reply, Request, error_body

__all__ = ["PRINCIPAL", "PRINCIPAL_SECRET", "TENANT", "Identities"]

TENANT = "aaaaaaaa-0000-0000-0000-000000000000"
PRINCIPAL = "bbbbbbbb-0000-0000-0000-000000000000"
PRINCIPAL_SECRET = "the-secret-of-the-principal-that-nobody-may-see"
_MANAGED_SECRET = "here"


class Identities:
    """tokens: those that are accepted. given: how each token was had, in order."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.given: list[str] = []
        self.users_are_refused = False

    def environment(self, url: str, *, user: bool = False) -> dict[str, str]:
        """Return what tells a process of its identity. user: a job that runs as whoever submitted it."""
        if user:
            return {"OBO_ENDPOINT": f"{url}/obo/token"}
        return {"MSI_ENDPOINT": f"{url}/msi/token", "MSI_SECRET": _MANAGED_SECRET}

    def local(self, request: Request) -> Reply | None:
        """Answer a request to an endpoint on the machine itself."""
        resource = request.query.get("resource", "")
        if request.path == "/msi/token":
            if request.headers.get("secret") != _MANAGED_SECRET or request.query.get("clientid"):
                return Reply(400, error_body("invalid_request", "Identity not found"))
            expires = str(int(time.time()) + 3600)
            return Reply(200, {"access_token": self.token("managed", resource), "expires_on": expires,
                               "token_type": "Bearer", "resource": resource})  # fmt: skip
        if request.path == "/obo/token":
            if self.users_are_refused:
                return Reply(403, error_body("Forbidden", "the user has no consent"))
            until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            return Reply(200, {"token": self.token("user", resource), "expiresOn": until})
        return None

    def login(self, request: Request) -> Reply:
        """Answer a request to login.microsoftonline.com."""
        tenant, _, rest = request.path.strip("/").partition("/")
        home = f"https://{request.host}/{tenant}"
        if rest.endswith("openid-configuration"):
            if tenant != TENANT:
                return Reply(400, {"error": "invalid_tenant", "error_description": f"AADSTS90002: Tenant '{tenant}' "
                                   "not found. Check to make sure you have the correct tenant ID."})  # fmt: skip
            return Reply(200, {"token_endpoint": f"{home}/oauth2/v2.0/token", "issuer": f"{home}/v2.0",
                "authorization_endpoint": f"{home}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{home}/oauth2/v2.0/devicecode"})  # fmt: skip
        if rest == "discovery/instance":
            aliases = {"preferred_network": request.host, "preferred_cache": request.host, "aliases": [request.host]}
            found = f"{home.removesuffix(tenant)}{TENANT}/v2.0/.well-known/openid-configuration"
            return Reply(200, {"tenant_discovery_endpoint": found, "metadata": [aliases]})
        asked = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if (asked.get("client_id"), asked.get("client_secret")) != (PRINCIPAL, PRINCIPAL_SECRET):
            told = "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent is its value."
            return Reply(401, {"error": "invalid_client", "error_description": told, "error_codes": [7000215]})
        return Reply(200, {"access_token": self.token("principal"), "expires_in": 3600, "token_type": "Bearer"})

    def token(self, how: str, resource: str = "") -> str:
        """Return a new token for a resource."""
        self.given.append(how)
        said = json.dumps({"tid": "tenant", "oid": "somebody", "aud": resource}).encode()
        claims = base64.urlsafe_b64encode(said).decode().rstrip("=")
        # Clients read what a token says of its owner, so its parts must be of a form that can be decoded.
        token = f"eyJhbGciOiAibm9uZSJ9.{claims}.token-{len(self.given):06d}-that-nobody-may-see"
        self.tokens.add(token)
        return token

    def az(self, folder: Path, *, logged_in: bool = True) -> Path:
        """Write the command `az`, as far as azure-identity uses it, into a folder for PATH and return the folder."""
        folder.mkdir(exist_ok=True)
        answer = {"accessToken": self.token("az"), "expires_on": int(time.time()) + 3600, "tokenType": "Bearer"}
        said = "echo \"ERROR: Please run 'az login' to setup account.\" >&2; exit 1"
        lines = ["#!/bin/sh", f"echo '{json.dumps(answer)}'" if logged_in else said]
        program = folder / "az"
        program.write_text("\n".join(lines) + "\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return folder
