"""The changelog, read by version. Its format is that of keepachangelog.com."""

import re

from tools.release.versions import ReleaseError


def section(text: str, version: str) -> str:
    """What is written under the heading of `version`, without the heading: `## 1.2.3 - 2026-01-31` or `## [1.2.3]`.

    Raises:
        ReleaseError: there is no such heading, or nothing under it.
    """
    wanted = re.compile(rf"\[?{re.escape(version)}\]?(\s.*)?")
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        if wanted.fullmatch(heading.strip()) and body.strip():
            return body.strip()
    raise ReleaseError(f"CHANGELOG.md has nothing of {version}: name its Unreleased section `## {version} - <date>`")
