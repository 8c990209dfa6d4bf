"""`python -m tools.release`: what the workflows need of a release, run from the project's root by `make`."""

import argparse
import subprocess
import sys
import urllib.error
from pathlib import Path

from tools.release import changelog, contents, crds, forge, pushed, refresh, versions
from tools.release.registry import RegistryError

ROOT = Path()


def main() -> int:
    """Run one command; 0 when it did its work, 1 with the reason on stderr when not."""
    arguments = commands_and_their_arguments().parse_args()
    try:
        run(arguments)
    except (RegistryError, versions.ReleaseError, urllib.error.URLError, subprocess.CalledProcessError) as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    return 0


def commands_and_their_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about)

    command("changelog", "print what the changelog says of a version")
    command("check", "whether the tree is what a tag promises")
    publish = command("publish", "publish or mend the release of a tag, with its section of the changelog as notes")
    for of_a_version in commands.choices.values():
        of_a_version.add_argument("tag", nargs="?", default="", help="default: the version here")
    publish.add_argument("--asset", action="append", type=Path, default=[], help="a file to publish with it")
    command("crds", "fetch the definitions of custom resources").add_argument("folder", type=Path)
    command("propose-base", "propose the refreshed base as a change")
    command("contents", "the digest of the files that an image has").add_argument("archive", type=Path)
    verify = command("verify-pushed", "whether the registry has what was tested; prints what is to be signed")
    verify.add_argument("listings", type=Path, help="where make sbom put the lists of what was tested")
    verify.add_argument("--service", action="append", default=[])
    verify.add_argument("--base", action="append", default=[])
    promote = command("promote", "let a tag stand for the services that were verified")
    promote.add_argument("tag")
    promote.add_argument("verified", type=Path, help="what verify-pushed printed")
    return parser


def run(arguments: argparse.Namespace) -> None:
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
            print(forge.Forge.from_environment().publish_release(tag, notes(tag), arguments.asset))
        case "crds":
            print(f"✓ {crds.fetch(arguments.folder)} definitions in {arguments.folder}")
        case "propose-base":
            print(refresh.propose(ROOT, forge.Forge.from_environment))
        case "contents":
            print(contents.digest(arguments.archive))
        case "verify-pushed":
            print(*pushed.verify(arguments.service, arguments.base, arguments.listings), sep="\n")
        case "promote":
            print(*pushed.promote(pushed.read(arguments.verified), arguments.tag), sep="\n")


def notes(tag: str) -> str:
    """The changelog's section of `tag`, or of the version here; fails when the tag is not this tree's version."""
    version = versions.version_of_tree(ROOT)
    versions.refuse_other_tag(tag, version)
    return changelog.section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)


if __name__ == "__main__":
    sys.exit(main())
