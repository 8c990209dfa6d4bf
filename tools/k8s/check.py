"""`python -m tools.k8s check`: builds every overlay and composition, and holds them to schemas and policies."""

import argparse
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.k8s import compositions, examples, kustomize, promql, render, schemas
from tools.k8s.compositions import Composition
from tools.k8s.objects import Finding, Objects
from tools.k8s.policies import findings, warnings
from tools.k8s.schemas import Definitions

BUILT = kustomize.ROOT / "build" / "k8s"
"""Where compositions are written to; overlays are built where they are."""


def main(argv: list[str]) -> int:
    """Check all; gives the exit code of the process."""
    parser = argparse.ArgumentParser(prog="python -m tools.k8s check", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="only compositions with this in their names")
    only = parser.parse_args(argv).only
    chosen = [each for each in compositions.COMPOSITIONS if only in each.name]
    definitions = definitions_folder()
    problems = render.main(["--check"])
    for missed in compositions.unlisted():
        print(f"{missed} is in no composition: tools/k8s/compositions.py")
        problems += 1
    for each in (*promql.findings(), *examples.findings(definitions)):
        print(f"FAILED {each}")
        problems += 1
    try:
        command = kustomize.find()
    except kustomize.KustomizeError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for composition, found in zip(chosen, pool.map(lambda each: _build(each, command), chosen), strict=True):
            problems += _report(composition, found, definitions)
    if definitions is None:
        print(how_to_get_definitions(), file=sys.stderr)
    failed = problems or definitions is None
    print(f"{'FAILED' if failed else 'ok'}: {len(chosen)} compositions, {problems} problems")
    return 1 if failed else 0


def definitions_folder() -> Definitions | None:
    """The CustomResourceDefinitions that CRD_DIR has; None without it."""
    folder = Path(os.environ.get("CRD_DIR") or "/nonexistent")
    return Definitions(folder) if folder.is_dir() else None


def _build(composition: Composition, command: list[str]) -> Objects | str:
    try:
        return compositions.build(composition, command, BUILT)
    except kustomize.KustomizeError as error:
        return str(error)


def _report(composition: Composition, found: Objects | str, definitions: Definitions | None) -> int:
    """Print how a composition fares; gives the number of its problems."""
    if isinstance(found, str):
        print(f"FAILED {composition.name}: {found}")
        return 1
    wrong = [*against_schemas(found, definitions), *findings(found)]
    print(f"{'FAILED' if wrong else 'ok'} {composition.name} {len(found.all)} objects", flush=True)
    for each in wrong:
        print(f"  {composition.name}: {each}")
    for each in warnings(found) if composition.is_overlay else ():
        print(f"  warning: {composition.name}: {each}")
    return len(wrong)


def against_schemas(objects: Objects, definitions: Definitions | None) -> Iterable[Finding]:
    """What schemas say; custom resources are left out without their definitions."""
    for each in objects.all:
        if not schemas.is_custom(each):
            yield from schemas.built_in(each)
        elif definitions is not None:
            yield from definitions.check(each)


def how_to_get_definitions() -> str:
    """What to do without CRD_DIR."""
    lines = [
        "custom resources were not checked: CRD_DIR names no folder with their definitions. Put these there (the names",
        "of the files do not matter), and run: make k8s-check CRD_DIR=that/folder",
    ]
    return "\n".join([*lines, *(f"  {each.group:24} {each.repository}  {each.path}" for each in schemas.SOURCES)])
