"""Finds kustomize, and builds folders with it. `python -m tools.k8s.kustomize` prints what it found."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import yaml

from tools.k8s.objects import Object

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "tools" / "kustomize"
"""The Go module that pins it."""
BINARY = ROOT / "build" / "tools" / "kustomize"
PACKAGE = "sigs.k8s.io/kustomize/kustomize/v5"


class KustomizeError(Exception):
    """There is no kustomize, or it could not build a folder; the message is its own."""


def find(*, build: bool = True) -> list[str]:
    """The command up to `build` or its like, for `build_folder`.

    The first that there is: the variable KUSTOMIZE, kustomize on the PATH, the version pinned in tools/kustomize (built
    once with go), kubectl.

    Args:
        build: whether the pinned version may be built now.

    Raises:
        KustomizeError: there is none.
    """
    if named := os.environ.get("KUSTOMIZE"):
        return [*shlex.split(named), "build"]
    if found := shutil.which("kustomize"):
        return [found, "build"]
    if _is_built():
        return [str(BINARY), "build"]
    problem = ""
    if build and (go := shutil.which("go")) and not (problem := _build(go)):
        return [str(BINARY), "build"]
    if found := shutil.which("kubectl"):
        return [found, "kustomize"]
    advice = "install it or kubectl, or go to have it built, or name it: KUSTOMIZE=/path/to/kustomize"
    raise KustomizeError("\n".join(filter(None, [f"there is no kustomize: {advice}", problem])))


def _is_built() -> bool:
    pins = (MODULE / "go.mod", MODULE / "go.sum")
    return BINARY.is_file() and all(BINARY.stat().st_mtime >= pin.stat().st_mtime for pin in pins)


def _build(go: str) -> str:
    """Build the pinned version; gives what went wrong."""
    print("→ building kustomize (once; half a minute)", flush=True)
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    # Under another name first: two that build at once do not run each other's half-written file.
    partial = BINARY.with_name(f"{BINARY.name}.{os.getpid()}")
    command = [go, "build", "-trimpath", "-o", str(partial), PACKAGE]
    done = subprocess.run(command, cwd=MODULE, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"go could not build it: {done.stderr.strip()}"
    partial.replace(BINARY)
    return ""


def build_folder(command: list[str], folder: Path) -> list[Object]:
    """The objects that a folder with a kustomization.yaml builds.

    Raises:
        KustomizeError: it cannot be built.
    """
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KustomizeError(done.stderr.strip())
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [each for each in yaml.load_all(done.stdout, Loader=loader) if each]


if __name__ == "__main__":
    print(shlex.join(find()))
