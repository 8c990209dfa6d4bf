"""A registry over real HTTP, as far as a release asks it, which can also misbehave."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from tools.release.registry import INDEXES, MANIFESTS

LOGIN = "me:pass"
BASIC = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"


def configuration(*layers: str, architecture: str = "amd64", **settings: Any) -> dict[str, Any]:
    """What an image's configuration says; `layers` are digests of what they hold."""
    config = {"Entrypoint": ["/usr/bin/python3"], "Env": ["A=b"], "Labels": {"built": "by this engine"}, **settings}
    return {"os": "linux", "architecture": architecture, "config": config, "rootfs": {"diff_ids": list(layers)}}


@dataclass
class FakeRegistry:
    """Keeps manifests and configurations.

    Args:
        wants: the scheme by which one has to log in as `LOGIN`; empty if anyone may.
        lies: whether manifests asked for by digest are other ones.
        elsewhere: whether it sends one on to another address for configurations.
        fails: the status of all answers about manifests, if it fails.
    """

    wants: str = ""
    lies: bool = False
    elsewhere: bool = False
    fails: int = 0
    address: str = ""
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    authorized_elsewhere: list[str | None] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)

    def push(self, name: str, tag: str, configurations: Sequence[dict[str, Any]], index: bool = False) -> str:
        """Have an image, or an index of images with an attestation as buildx adds it; answers the digest."""
        entries = [(self._image(name, each), each["os"], each["architecture"]) for each in configurations]
        if not index:
            [(digest, _, _)] = entries
            self.manifests[name, tag] = self.manifests[name, digest]
            return digest
        entries.append((self._keep(name, {"config": {"digest": "sha256:0"}}, MANIFESTS[0]), "unknown", "unknown"))
        listed = [
            {"digest": digest, "mediaType": MANIFESTS[0], "platform": {"os": system, "architecture": architecture}}
            for digest, system, architecture in entries
        ]
        digest = self._keep(name, {"mediaType": INDEXES[0], "manifests": listed}, INDEXES[0])
        self.manifests[name, tag] = self.manifests[name, digest]
        return digest

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/v2/{name:.+}/manifests/{reference}", self.manifest)
        app.router.add_put("/v2/{name:.+}/manifests/{reference}", self.put_manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self.blob)
        app.router.add_get("/elsewhere/{digest}", self.blob_elsewhere)
        app.router.add_get("/token", self.token)
        return app

    async def manifest(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request, "pull"):
            return refusal
        name, reference = request.match_info["name"], request.match_info["reference"]
        if (name, reference) not in self.manifests:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        content, media_type = self.manifests[name, reference]
        if self.lies and reference.startswith("sha256:"):
            content += b" "
        return web.Response(body=content, content_type=media_type)

    async def put_manifest(self, request: web.Request) -> web.Response:
        if refusal := self._refusal(request, "push"):
            return refusal
        name, reference = request.match_info["name"], request.match_info["reference"]
        self.manifests[name, reference] = (await request.read(), request.content_type)
        return web.Response(status=201)

    async def blob(self, request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        if refusal := self._refusal(request, "pull"):
            return refusal
        if self.elsewhere:
            return web.Response(status=307, headers={"Location": f"/elsewhere/{digest}"})
        return web.Response(body=self.blobs[digest])

    async def blob_elsewhere(self, request: web.Request) -> web.Response:
        self.authorized_elsewhere.append(request.headers.get("Authorization"))
        return web.Response(body=self.blobs[request.match_info["digest"]])

    async def token(self, request: web.Request) -> web.Response:
        self.asked_for.append(request.query["scope"])
        if request.headers.get("Authorization") != BASIC:
            return web.Response(status=401)
        return web.json_response({"token": f"for {request.query['scope']}"})

    def _refusal(self, request: web.Request, action: str) -> web.Response | None:
        if self.fails:
            return web.Response(status=self.fails, text="out of order")
        scope = f"repository:{request.match_info['name']}:{action}"
        given = request.headers.get("Authorization")
        if not self.wants or given == {"Basic": BASIC, "Bearer": f"Bearer for {scope}"}[self.wants]:
            return None
        challenge = f'{self.wants} realm="http://{self.address}/token",service="fake",scope="{scope}"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    def _image(self, name: str, configuration: dict[str, Any]) -> str:
        content = json.dumps(configuration).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return self._keep(name, {"config": {"digest": digest}}, MANIFESTS[0])

    def _keep(self, name: str, manifest: dict[str, Any], media_type: str) -> str:
        content = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.manifests[name, digest] = (content, media_type)
        return digest


@asynccontextmanager
async def serving(fake: FakeRegistry) -> AsyncIterator[FakeRegistry]:
    """The registry at an address of its own."""
    async with TestServer(fake.application()) as server:
        fake.address = f"127.0.0.1:{server.port}"
        yield fake
