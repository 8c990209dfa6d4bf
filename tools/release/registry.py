"""A registry, as far as a release asks it: manifests, configurations, tags. Source: OCI's distribution specification.

The standard library is enough for it, so that `make bake` and `make push-images` can ask without `.venv`:

    python3 -m tools.release.registry there IMAGE...      # prints those of the images that the registry has
    python3 -m tools.release.registry platforms IMAGE     # prints what it is built for: linux/amd64 linux/arm64
"""

import base64
import hashlib
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Self

from tools.release import logins

TIMEOUT = 60.0
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
HOSTS = {"docker.io": "registry-1.docker.io"}


class RegistryError(Exception):
    """What a registry refused, or can't be right in what it answered."""


@dataclass(frozen=True)
class Document:
    """A manifest or a configuration, to the byte."""

    content: bytes
    media_type: str = ""

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.content).hexdigest()}"

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.content)
        return found


@dataclass
class Repository:
    """A repository of images.

    Args:
        registry: the host, with its port if it has one.
        name: `owner/image`.
    """

    registry: str
    name: str
    _authorization: str = field(default="", repr=False)

    @classmethod
    def of(cls, image: str) -> tuple[Self, str]:
        """The repository that an image's name names, and its tag or digest."""
        name, at, digest = image.partition("@")
        path, colon, tag = name.rpartition(":")
        if not colon or "/" in tag:
            path, tag = name, ""
        first, _, rest = path.partition("/")
        if first != "localhost" and not set(first) & set(".:"):
            first, rest = "docker.io", path
        return cls(first, rest), digest if at else tag or "latest"

    def __str__(self) -> str:
        return f"{self.registry}/{self.name}"

    def manifest(self, reference: str) -> Document | None:
        """What the registry has under a tag or a digest; None if nothing.

        Raises:
            RegistryError: it can't be asked, or answers with other content than the digest's.
        """
        found = self._call("GET", f"manifests/{reference}", accept=(*INDEXES, *MANIFESTS))
        return self._checked(reference, found) if found else None

    def configuration(self, manifest: Document) -> dict[str, Any]:
        """The configuration of one platform's image."""
        digest = manifest.read()["config"]["digest"]
        found = self._call("GET", f"blobs/{digest}")
        if not found:
            raise RegistryError(f"{self} has no {digest}, which its manifest {manifest.digest} names")
        return self._checked(digest, found).read()

    def images(self, manifest: Document) -> Iterator[tuple[str, Document]]:
        """Each platform (`linux/arm64`) and the manifest for it, of an index or of an image without one."""
        if manifest.media_type not in INDEXES:
            yield platform(self.configuration(manifest)), manifest
            return
        for entry in manifest.read()["manifests"]:
            if (known := platform(entry["platform"])) != "unknown/unknown":  # which is an attestation
                found = self.manifest(entry["digest"])
                if not found:
                    raise RegistryError(f"{self} has no {entry['digest']}, which its index {manifest.digest} names")
                yield known, found

    def tag(self, manifest: Document, tag: str) -> None:
        """Let a tag stand for what is there already."""
        if not self._call("PUT", f"manifests/{tag}", body=manifest):
            raise RegistryError(f"{self} takes no tag {tag}: nothing is there")

    def _checked(self, reference: str, found: Document) -> Document:
        if reference.startswith("sha256:") and found.digest != reference:
            raise RegistryError(f"{self} answers with {found.digest}, asked for {reference}")
        return found

    def _call(
        self, method: str, path: str, accept: tuple[str, ...] = (), body: Document | None = None
    ) -> Document | None:
        # As docker and cosign do: plain HTTP to this machine only.
        scheme = "http" if re.match(r"(localhost|127\.[0-9.]+)(:|$)", self.registry) else "https"
        url = f"{scheme}://{HOSTS.get(self.registry, self.registry)}/v2/{self.name}/{path}"
        for authorized in (False, True):
            request = urllib.request.Request(url, body.content if body else None, method=method)
            if accept:
                request.add_header("Accept", ", ".join(accept))
            if body:
                request.add_header("Content-Type", body.media_type)
            if self._authorization:
                # Not for where a registry sends one on to, such as a store of objects with addresses that are signed.
                request.add_unredirected_header("Authorization", self._authorization)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                    return Document(answer.read(), answer.headers.get("Content-Type", "").partition(";")[0])
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(1000).decode(errors="replace").strip()
                if error.code == HTTPStatus.NOT_FOUND:
                    return None
                if error.code != HTTPStatus.UNAUTHORIZED or authorized:
                    raise RegistryError(f"{method} {url}: {error.code} {said}") from None
                self._authorization = self._authorize(error.headers.get_all("WWW-Authenticate", []))
            except OSError as error:
                raise RegistryError(f"{method} {url}: {error}") from None
        raise AssertionError  # the second round answers or raises

    def _authorize(self, challenges: list[str]) -> str:
        """The header that answers a registry's challenge: a token for who is logged in, or the password itself."""
        known = logins.login(self.registry)
        basic = f"Basic {base64.b64encode(known.encode()).decode()}" if known else ""
        for challenge in challenges:
            if challenge.lower().startswith("bearer "):
                asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
                query = urllib.parse.urlencode({key: asked[key] for key in ("service", "scope") if key in asked})
                request = urllib.request.Request(f"{asked['realm']}?{query}")
                if basic:
                    request.add_unredirected_header("Authorization", basic)
                try:
                    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                        given = json.load(answer)
                except OSError as error:
                    raise RegistryError(f"{self.registry} gives no token for {self.name}: {error}") from None
                return f"Bearer {given.get('token') or given['access_token']}"
        if not basic:
            raise RegistryError(f"{self.registry} wants a login: make registry-login")
        return basic


def platform(of: dict[str, Any]) -> str:
    """`linux/arm64`, of an index's entry or of a configuration; v8 is what arm64 is, whether it is said or not."""
    parts = [of.get("os"), of.get("architecture"), of.get("variant")]
    return "/".join(filter(None, parts[:2] if parts[1:] == ["arm64", "v8"] else parts))


def find(image: str) -> tuple[Repository, Document]:
    """An image's repository, and its manifest.

    Raises:
        RegistryError: the registry has none.
    """
    repository, reference = Repository.of(image)
    manifest = repository.manifest(reference)
    if not manifest:
        raise RegistryError(f"{repository} has nothing as {reference}")
    return repository, manifest


def there(images: list[str]) -> list[str]:
    """Those of the images that their registry has."""
    asked = [(image, *Repository.of(image)) for image in images]
    return [image for image, repository, reference in asked if repository.manifest(reference)]


def main(question: str, *images: str) -> None:
    try:
        if question == "there":
            print(*there(list(images)))
        else:
            repository, manifest = find(images[0])
            print(*(name for name, _ in repository.images(manifest)))
    except RegistryError as error:
        sys.exit(f"make: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
