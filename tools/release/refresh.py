"""The weekly change: what the base image is made of, as it is in Debian now, on a branch of its own."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tools.release.forge import Forge

BRANCH = "base-refresh"
PINS = "docker/debian.txt"
TITLE = "The base of the images from Debian as it is now"
BODY = "Built, tested and weighed by the workflow that proposes this."
AUTHOR = ("-c", "user.name=base-refresh", "-c", "user.email=base-refresh@localhost")


def propose(root: Path, forge: Callable[[], Forge], base: str = "main") -> str:
    """Commit the refreshed pins, push them as `base-refresh` and open a pull request; answers what happened.

    The branch is made anew each time, so that it holds one commit on today's `base`; the working tree is left on it.
    """
    if not git(root, "status", "--porcelain", "--", PINS):
        return "Debian has nothing new for the base"
    to = forge()
    git(root, "switch", "--quiet", "--force-create", BRANCH)
    git(root, *AUTHOR, "commit", "--quiet", "--message", TITLE, "--only", "--", PINS)
    git(root, "push", "--quiet", "--force", "origin", BRANCH)
    return to.open_pull_request(BRANCH, base, TITLE, BODY)


def git(root: Path, *arguments: str) -> str:
    """What git prints; its own complaints stay on stderr."""
    return subprocess.run(["git", *arguments], cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
