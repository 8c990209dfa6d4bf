"""A forge and a package index as real HTTP servers, which keep what they are told."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import BodyPartReader, web
from aiohttp.test_utils import TestServer

REPOSITORY = "owner/slim-handlers"


@dataclass
class FakeForge:
    """Gitea's API, as far as it is called: a second release of a tag or pull request of a branch is a conflict."""

    url: str = ""
    releases: dict[str, dict[str, Any]] = field(default_factory=dict)
    pulls: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def application(self) -> web.Application:
        app = web.Application()
        prefix = f"/api/v1/repos/{REPOSITORY}"
        app.router.add_post(f"{prefix}/pulls", self.pull)
        app.router.add_post(f"{prefix}/releases", self.release)
        app.router.add_get(f"{prefix}/releases/tags/{{tag}}", self.tagged)
        app.router.add_patch(f"{prefix}/releases/{{id}}", self.release_again)
        return app

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
        return web.json_response({"html_url": "http://forge/releases/1"}, status=201)

    async def tagged(self, request: web.Request) -> web.Response:
        assert request.match_info["tag"] in self.releases
        return web.json_response({"id": 7})

    async def release_again(self, request: web.Request) -> web.Response:
        assert request.match_info["id"] == "7"
        asked = await request.json()
        self.releases[asked["tag_name"]] = asked
        return web.json_response({"html_url": "http://forge/releases/1"})


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
    """The environment without what make and uv are told by it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "UV_PUBLISH", "INDEX_"))}
