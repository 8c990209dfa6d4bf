"""Pins the Debian image by the digest that its tag has now: `python3 docker/refresh_debian.py docker/debian.txt`.

The second line is today's date: with another one, the packages that are installed on it are fetched anew. The registry
is asked with whichever tool is here. Where none gets an answer, the file stays as it is.
"""

import datetime
import re
import subprocess
import sys
from pathlib import Path

ASKED = (
    ("docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", "{tag}"),
    ("skopeo", "inspect", "--format", "{{.Digest}}", "docker://{tag}"),
)
"""Each prints the digest of the list of all architectures' images."""
PULLED = (
    ("podman", "pull", "--quiet", "{tag}"),
    ("podman", "image", "inspect", "--format", "{{.Digest}} {{.RepoDigests}}", "{tag}"),
)
DIGEST = r"sha256:[0-9a-f]{64}"
PATIENCE = 300


def main(file: Path) -> None:
    before = file.read_text().split()[0]
    tag = before.partition("@")[0]
    found = digest(tag)
    if found is None:
        tools = "docker buildx, skopeo, podman"
        raise SystemExit(f"no tool here got an answer of {tag}'s registry ({tools}); {file} stays as it is")
    file.write_text(f"{tag}@{found}\n{datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n")
    print(f"{tag} is {found}" + (", as before" if before.endswith(found) else ""))


def digest(tag: str) -> str | None:
    for command in ASKED:
        if found := re.search(DIGEST, said(command, tag)):
            return found[0]
    if not said(PULLED[0], tag):
        return None
    own, *others = (found[0] for found in re.finditer(DIGEST, said(PULLED[1], tag)))
    return next((each for each in others if each != own), own)  # the list's, or, of an image without one, its own


def said(command: tuple[str, ...], tag: str) -> str:
    """What a command prints; nothing where it is not here or fails."""
    try:
        done = subprocess.run(
            [word.replace("{tag}", tag) for word in command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
