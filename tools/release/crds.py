"""The definitions of custom resources that manifests are validated against, fetched as their projects publish them."""

import hashlib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.release.versions import ReleaseError

LISTED = Path(__file__).with_name("crds.txt")
TIMEOUT = 60.0


@dataclass(frozen=True)
class Definition:
    """A file of one or more definitions, pinned by commit and by content."""

    file: str
    repository: str
    ref: str
    path: str
    sha256: str

    @property
    def url(self) -> str:
        # Not from raw.githubusercontent.com itself: only this address is known to take a shortened commit.
        return f"https://github.com/{self.repository}/raw/{self.ref}/{self.path}"


def definitions() -> Iterator[Definition]:
    """What crds.txt lists."""
    for line in LISTED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield Definition(*line.split())


def fetch(folder: Path) -> int:
    """Download into `folder` what is not there yet; answers how many definition files it holds.

    Raises:
        ReleaseError: a file can't be downloaded, or is not what was pinned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = list(definitions())
    for definition in listed:
        place = folder / definition.file
        if place.exists() and hashlib.sha256(place.read_bytes()).hexdigest() == definition.sha256:
            continue
        try:
            with urllib.request.urlopen(definition.url, timeout=TIMEOUT) as response:
                content: bytes = response.read()
        except OSError as error:
            raise ReleaseError(f"can't fetch {definition.url}: {error}; files from elsewhere do: CRD_DIR=…") from None
        keep(definition, content, place)
    return len(listed)


def keep(definition: Definition, content: bytes, place: Path) -> None:
    """Write what was downloaded, if it is what was pinned."""
    if (found := hashlib.sha256(content).hexdigest()) != definition.sha256:
        raise ReleaseError(f"{definition.url} has the SHA-256 {found}; crds.txt wants {definition.sha256}")
    place.write_bytes(content)
