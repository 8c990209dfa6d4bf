"""The two calls that are made to the forge's API: open a pull request, publish a release. Source: Gitea's API v1."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

from tools.release.versions import ReleaseError

TIMEOUT = 30.0


@dataclass(frozen=True)
class Forge:
    """A repository behind Gitea's API.

    Args:
        api: base address, such as `https://git.example.org/api/v1`.
        repository: `owner/name`.
    """

    api: str
    repository: str
    token: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Self:
        """As the runner of a workflow tells it, and `GITEA_TOKEN` from its secrets."""
        try:
            return cls(os.environ["GITHUB_API_URL"], os.environ["GITHUB_REPOSITORY"], os.environ["GITEA_TOKEN"])
        except KeyError as missing:
            raise ReleaseError(f"set {missing.args[0]}: where the repository is served, and who asks") from None

    def open_pull_request(self, head: str, base: str, title: str, body: str) -> str:
        """Open it, unless one from `head` is open already; answers what happened."""
        status, answer = self._call("POST", "pulls", {"head": head, "base": base, "title": title, "body": body})
        if status == HTTPStatus.CONFLICT:
            return f"the open pull request of {head} has the new commit"
        return f"opened {answer['html_url']}"

    def publish_release(self, tag: str, notes: str) -> str:
        """Publish the release of `tag`, or set the notes of the one that is there; answers what happened."""
        release = {"tag_name": tag, "name": tag, "body": notes}
        status, answer = self._call("POST", "releases", release)
        if status == HTTPStatus.CONFLICT:
            _, there = self._call("GET", f"releases/tags/{urllib.parse.quote(tag, safe='')}")
            _, answer = self._call("PATCH", f"releases/{there['id']}", release)
        return f"published {answer['html_url']}"

    def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.api}/repos/{self.repository}/{path}",
            json.dumps(body).encode() if body else None,
            {"Authorization": f"token {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(1000).decode(errors="replace")
            if error.code == HTTPStatus.CONFLICT:
                return error.code, {}
            raise ReleaseError(f"{method} {request.full_url}: {error.code} {said}") from None
