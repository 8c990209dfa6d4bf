"""Which files are to be ingested, and by what name each is known."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from handlers_cli.documents import READERS

IGNORED_DIRECTORIES = {"node_modules", "__pycache__", "site-packages", "venv"}
"""Besides all whose names start with a dot, and virtual environments by any name."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or directory that was left out, and why."""

    path: str
    reason: str


@dataclass(slots=True)
class Found:
    """What there is below the given paths."""

    files: dict[str, Path] = field(default_factory=dict)
    """By source."""
    roots: list[str] = field(default_factory=list)
    """The names of the directories that were searched."""
    unread: list[str] = field(default_factory=list)
    """The names of those below them that could not be."""
    skipped: list[Skipped] = field(default_factory=list)

    def gone(self, sources: Iterable[str]) -> list[str]:
        """Those of `sources` that were once found below one of the roots, and are no longer there."""
        return [
            source
            for source in sources
            if source not in self.files
            and any(source.startswith(f"{root}/") for root in self.roots)
            and not any(source.startswith(f"{directory}/") for directory in self.unread)
        ]


def find_files(paths: Iterable[Path]) -> Found:
    """All documents below `paths`, in a stable order.

    In a directory those whose suffix has a reader; a file that is named is taken whatever its suffix. A source is the
    path as it was given, with forward slashes: `docs` gives `docs/loop.md`. A path that is absolute, leaves the working
    directory or is `.` starts at its last directory: `/srv/docs` gives `docs/loop.md` as well.
    """
    found = Found()
    for path in paths:
        name = _name(path)
        if path.is_dir():
            found.roots.append(name)
            for file in _walk(path, name, found):
                _add(found, f"{name}/{file.relative_to(path).as_posix()}", file)
        elif path.is_file():
            _add(found, name, path)
        else:
            found.skipped.append(Skipped(str(path), "is no file or directory"))
    return found


def _name(path: Path) -> str:
    if not path.is_absolute() and path.parts and ".." not in path.parts:
        return path.as_posix()
    resolved = path.resolve()
    parts = resolved.parts[-1:] if path.is_dir() else resolved.parts[-2:]
    return "/".join(part.strip("/") for part in parts).lstrip("/") or "root"


def _walk(root: Path, name: str, found: Found) -> Iterator[Path]:
    def unread(error: OSError) -> None:
        directory = Path(error.filename)
        found.unread.append(f"{name}/{directory.relative_to(root).as_posix()}".removesuffix("/."))
        found.skipped.append(Skipped(str(directory), error.strerror or str(error)))

    for directory, subdirectories, names in os.walk(root, onerror=unread):
        here = Path(directory)
        subdirectories[:] = sorted(each for each in subdirectories if not _ignored(here / each))
        for each in sorted(names):
            file = here / each
            if not each.startswith(".") and file.suffix.lower() in READERS:
                yield file


def _ignored(directory: Path) -> bool:
    name = directory.name
    return name.startswith(".") or name in IGNORED_DIRECTORIES or (directory / "pyvenv.cfg").exists()


def _add(found: Found, source: str, file: Path) -> None:
    try:
        source.encode()
    except ValueError:
        found.skipped.append(Skipped(ascii(str(file)), "its name is no valid Unicode"))
        return
    if source in found.files:
        if not found.files[source].samefile(file):
            found.skipped.append(Skipped(str(file), f"another file is already known as {source}"))
    elif not file.is_file():
        found.skipped.append(Skipped(str(file), "is no regular file"))
    else:
        found.files[source] = file
