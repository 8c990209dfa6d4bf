"""Who one is at a registry: what `docker login`, `podman login` or `buildah login` left behind."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCKER_HUB = "https://index.docker.io/v1/"
"""What logins at docker.io are kept under."""


def login(registry: str) -> str | None:
    """`user:password` for a registry, the first that is kept anywhere; None without one."""
    names = (registry, f"https://{registry}", *([DOCKER_HUB] if registry == "docker.io" else []))
    for file in files():
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            for name in names:
                if found := _kept(kept, name):
                    return found
    return None


def files() -> Iterator[Path]:
    """Where logins are kept: where one is told, docker's place, podman's and buildah's."""
    if told := os.environ.get("REGISTRY_AUTH_FILE"):
        yield Path(told)
    yield Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "config.json")
    yield Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}", "containers/auth.json")
    yield Path(f"/run/containers/{os.getuid()}/auth.json")


def _kept(kept: dict[str, Any], name: str) -> str | None:
    if helper := kept.get("credHelpers", {}).get(name) or kept.get("credsStore"):
        try:
            asked = subprocess.run(
                [f"docker-credential-{helper}", "get"], input=name, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        if asked.returncode == 0:
            found = json.loads(asked.stdout)
            return f"{found['Username']}:{found['Secret']}"
    auth = kept.get("auths", {}).get(name, {}).get("auth")
    return base64.b64decode(auth).decode() if auth else None
