"""Voices to clone: a folder of reference recordings, one WAV file each, named after the voice."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import structlog

from handler_core.audio import BadAudio, read_wav
from handler_core.contract.base import is_token

log = structlog.get_logger("handler_core.voices")

MAX_RECORDING = 32 * 2**20
"""Bytes that a recording may have; a clone needs some seconds of speech."""
MAX_VOICES = 1000
_UNREADABLE = (OSError, RuntimeError)
"""What the file system has to say; up to Python 3.12 a link that leads to itself is a RuntimeError."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A usable reference recording. `version` changes when the file does."""

    name: str
    path: Path
    version: tuple[int, int]

    def read(self) -> bytes:
        """The file's bytes; OSError when it is gone."""
        return self.path.read_bytes()


class VoicesFolder:
    """The recordings in a folder, read when first needed, when the folder changes, and when told to.

    A file counts when its name is a token (letters, digits, `-` and `_`) with the ending `.wav`, when it leads to no
    place outside the folder, and when it holds audio. Others are left out; one that is no audio is named in the log.

    Args:
        path: the folder; one that is not there has no voices.
        server_path: the same folder as the TTS server sees it; the same path by default.
    """

    def __init__(self, path: Path, server_path: str | None = None) -> None:
        self.path = path
        self.server_path = (server_path or str(path)).rstrip("/")
        self._recordings: dict[str, Recording] = {}
        self._seen: int | None = None
        self._problem = ""

    async def recordings(self, *, anew: bool = False) -> dict[str, Recording]:
        """The recordings by name, sorted."""
        return await asyncio.to_thread(self._current, anew)  # the folder may be on a network

    def at_server(self, recording: Recording) -> str:
        """The recording's path at the TTS server."""
        return f"{self.server_path}/{recording.path.name}"

    def name_of(self, reference: str) -> str:
        """The name of the voice that a name, a file name, or a path at the server means."""
        return reference.removeprefix(f"{self.server_path}/").removesuffix(".wav")

    def _current(self, anew: bool) -> dict[str, Recording]:
        try:
            changed = self.path.stat().st_mtime_ns
            if anew or changed != self._seen:
                self._recordings = {recording.name: recording for recording in self._scan()}
                self._seen = changed
            self._problem = ""
        except _UNREADABLE as error:
            if _said(error) != self._problem or anew:
                log.warning("voices_unreadable", path=str(self.path), error=_said(error))
            self._recordings, self._seen, self._problem = {}, None, _said(error)
        return self._recordings

    def _scan(self) -> Iterator[Recording]:
        root = self.path.resolve()
        known = {recording.path: recording for recording in self._recordings.values()}
        for path in sorted(self.path.iterdir())[:MAX_VOICES]:
            if path.suffix.lower() != ".wav" or not is_token(path.stem):
                continue
            try:
                if not path.resolve().is_relative_to(root):
                    raise BadAudio("leads outside the folder", path.name)
                recording = _checked(path, known.get(path))
            except BadAudio as error:
                log.warning("voice_left_out", reason=error.message)
            except _UNREADABLE as error:
                log.warning("voice_left_out", reason=f"{path.name}: {_said(error)}")
            else:
                yield recording


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _checked(path: Path, known: Recording | None) -> Recording:
    """The recording in a file, which is read only if it is new or has changed."""
    status = path.stat()
    version = (status.st_mtime_ns, status.st_size)
    if known is not None and known.version == version:
        return known
    if not S_ISREG(status.st_mode):
        raise BadAudio("no file", path.name)
    if status.st_size > MAX_RECORDING:
        raise BadAudio(f"larger than {MAX_RECORDING} bytes", path.name)
    recording = Recording(path.stem, path, version)
    if not read_wav(recording.read(), field=path.name).pcm:
        raise BadAudio("a WAV file without samples", path.name)
    return recording
