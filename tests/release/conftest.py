"""A forge and a package index as real HTTP servers, which keep what they are told."""

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import BodyPartReader, web
from aiohttp.test_utils import TestServer

ROOT = Path(__file__).parents[2]
REPOSITORY = "owner/slim-handlers"


async def make(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run a target; its exit code, and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        "make", "--no-print-directory", "--old-file=.venv/.installed", *arguments, cwd=ROOT, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


@dataclass
class FakeForge:
    """Gitea's API, as far as it is called.

    A second release of a tag or pull request of a branch is a conflict, a second file of a name is another file.
    """

    url: str = ""
    releases: dict[str, dict[str, Any]] = field(default_factory=dict)
    pulls: dict[str, dict[str, Any]] = field(default_factory=dict)
    assets: list[tuple[str, bytes]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def application(self) -> web.Application:
        app = web.Application()
        prefix = f"/api/v1/repos/{REPOSITORY}"
        app.router.add_post(f"{prefix}/pulls", self.pull)
        app.router.add_post(f"{prefix}/releases", self.release)
        app.router.add_get(f"{prefix}/releases/tags/{{tag}}", self.tagged)
        app.router.add_patch(f"{prefix}/releases/{{id}}", self.release_again)
        app.router.add_get(f"{prefix}/releases/7/assets", self.listed)
        app.router.add_post(f"{prefix}/releases/7/assets", self.attach)
        app.router.add_delete(f"{prefix}/releases/7/assets/{{number}}", self.detach)
        return app

    async def listed(self, _: web.Request) -> web.Response:
        return web.json_response([{"id": number, "name": name} for number, (name, _) in enumerate(self.assets) if name])

    async def attach(self, request: web.Request) -> web.Response:
        part = await (await request.multipart()).next()
        assert isinstance(part, BodyPartReader)
        assert part.name == "attachment"
        assert part.filename == request.query["name"]
        self.assets.append((part.filename, bytes(await part.read())))
        return web.json_response({"id": len(self.assets) - 1}, status=201)

    async def detach(self, request: web.Request) -> web.Response:
        self.assets[int(request.match_info["number"])] = ("", b"")
        return web.Response(status=204)

    async def pull(self, request: web.Request) -> web.Response:
        asked = await request.json()
        self.tokens.add(request.headers["Authorization"])
        if asked["base"] != "main":
            return web.json_response({"message": "no such base"}, status=404)
        if asked["head"] in self.pulls:
            return web.json_response({"message": "pull request already exists for these targets"}, status=409)
        self.pulls[asked["head"]] = asked
        return web.json_response({"html_url": "http://forge/pulls/1"}, status=201)

    async def release(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["tag_name"] in self.releases:
            return web.json_response({"message": "Release is already there"}, status=409)
        self.releases[asked["tag_name"]] = asked
        return web.json_response({"id": 7, "html_url": "http://forge/releases/1"}, status=201)

    async def tagged(self, request: web.Request) -> web.Response:
        assert request.match_info["tag"] in self.releases
        return web.json_response({"id": 7})

    async def release_again(self, request: web.Request) -> web.Response:
        assert request.match_info["id"] == "7"
        asked = await request.json()
        self.releases[asked["tag_name"]] = asked
        return web.json_response({"id": 7, "html_url": "http://forge/releases/1"})


@dataclass
class FakeIndex:
    """A package index's upload, as PyPI and Gitea have it."""

    url: str = ""
    uploads: dict[str, bytes] = field(default_factory=dict)
    authorizations: set[str] = field(default_factory=set)

    async def upload(self, request: web.Request) -> web.Response:
        self.authorizations.add(request.headers.get("Authorization", ""))
        fields: dict[str, str] = {}
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            if part.name == "content":
                assert part.filename is not None
                self.uploads[part.filename] = bytes(await part.read())
            else:
                fields[str(part.name)] = await part.text()
        assert fields[":action"] == "file_upload"
        return web.Response()


@pytest_asyncio.fixture
async def forge() -> AsyncIterator[FakeForge]:
    fake = FakeForge()
    async with TestServer(fake.application()) as server:
        fake.url = str(server.make_url("/api/v1"))
        yield fake


@pytest_asyncio.fixture
async def index() -> AsyncIterator[FakeIndex]:
    fake = FakeIndex()
    app = web.Application()
    app.router.add_post("/legacy/", fake.upload)
    async with TestServer(app) as server:
        fake.url = str(server.make_url("/legacy/"))
        yield fake


@pytest.fixture
def plain_environment() -> dict[str, str]:
    """The environment without what make, uv and cosign are told by it."""
    told = ("MAKE", "UV_PUBLISH", "INDEX_", "COSIGN_")
    return {name: value for name, value in os.environ.items() if not name.startswith(told)}
