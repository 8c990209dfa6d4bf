"""What is asked of the forge's API: open a pull request, publish a release with its files. Source: Gitea's API v1."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
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

    def publish_release(self, tag: str, notes: str, assets: Sequence[Path] = ()) -> str:
        """Publish the release of `tag` with its files, or mend the one that is there; answers what happened."""
        release = {"tag_name": tag, "name": tag, "body": notes}
        status, answer = self._call("POST", "releases", release)
        if status == HTTPStatus.CONFLICT:
            _, there = self._call("GET", f"releases/tags/{urllib.parse.quote(tag, safe='')}")
            _, answer = self._call("PATCH", f"releases/{there['id']}", release)
        self._attach(f"releases/{answer['id']}/assets", assets)
        return f"published {answer['html_url']}, {len(assets)} files"

    def _attach(self, place: str, assets: Sequence[Path]) -> None:
        """Put files in the place of those of the same names: the forge itself would keep both."""
        _, there = self._call("GET", place)
        for asset in assets:
            for old in there:
                if old["name"] == asset.name:
                    self._call("DELETE", f"{place}/{old['id']}")
            self._call("POST", f"{place}?{urllib.parse.urlencode({'name': asset.name})}", asset)

    def _call(self, method: str, path: str, body: dict[str, str] | Path | None = None) -> tuple[int, Any]:
        media_type = "application/json"
        content = None
        if isinstance(body, Path):
            boundary = uuid.uuid4().hex
            media_type = f"multipart/form-data; boundary={boundary}"
            content = _form(boundary, body)
        elif body:
            content = json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.api}/repos/{self.repository}/{path}",
            content,
            {"Authorization": f"token {self.token}", "Content-Type": media_type},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                said = response.read()
                return response.status, json.loads(said) if said else None
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(1000).decode(errors="replace")
            if error.code == HTTPStatus.CONFLICT:
                return error.code, {}
            raise ReleaseError(f"{method} {request.full_url}: {error.code} {said}") from None


def _form(boundary: str, file: Path) -> bytes:
    """A form of one file, as a browser sends it."""
    head = f'Content-Disposition: form-data; name="attachment"; filename="{file.name}"'
    return f"--{boundary}\r\n{head}\r\n\r\n".encode() + file.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
