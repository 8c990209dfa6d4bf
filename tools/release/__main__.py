"""`python -m tools.release`: what the workflows need of a release, run from the project's root by `make`."""

import argparse
import subprocess
import sys
import urllib.error
from pathlib import Path

from tools.release import changelog, crds, forge, refresh, versions

ROOT = Path()


def main() -> int:
    """Run one command; 0 when it did its work, 1 with the reason on stderr when not."""
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in {
        "changelog": "print what the changelog says of a version",
        "check": "whether the tree is what a tag promises",
        "publish": "publish or mend the release of a tag, with its section of the changelog as notes",
    }.items():
        commands.add_parser(name, help=about).add_argument(
            "tag", nargs="?", default="", help="default: the version here"
        )
    commands.add_parser("crds", help="fetch the definitions of custom resources").add_argument("folder", type=Path)
    commands.add_parser("propose-base", help="propose the refreshed base as a change")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "changelog":
                print(notes(arguments.tag))
            case "check":
                notes(arguments.tag)
                version = versions.version_of_tree(ROOT)
                versions.refuse_other_images(ROOT, version)
                print(f"✓ {version}: one version everywhere, and the changelog knows it")
            case "publish":
                tag = arguments.tag or f"v{versions.version_of_tree(ROOT)}"
                print(forge.Forge.from_environment().publish_release(tag, notes(tag)))
            case "crds":
                print(f"✓ {crds.fetch(arguments.folder)} definitions in {arguments.folder}")
            case "propose-base":
                print(refresh.propose(ROOT, forge.Forge.from_environment))
    except (versions.ReleaseError, urllib.error.URLError, subprocess.CalledProcessError) as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    return 0


def notes(tag: str) -> str:
    """The changelog's section of `tag`, or of the version here; fails when the tag is not this tree's version."""
    version = versions.version_of_tree(ROOT)
    versions.refuse_other_tag(tag, version)
    return changelog.section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)


if __name__ == "__main__":
    sys.exit(main())
