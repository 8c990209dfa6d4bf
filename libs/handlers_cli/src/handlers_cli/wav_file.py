"""A WAV file that is written while its audio comes, to a path or to stdout."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from handler_core.audio import PcmFormat, wav_header
from handler_core.errors import InvalidRequest
from handlers_cli.resample import Converter
from handlers_cli.session import out

STDOUT = "-"


def check_output(place: str | None) -> None:
    """Refuse an output that cannot be one before anything is asked for.

    Raises:
        InvalidRequest: stdout is a terminal, or the folder is not there.
    """
    if place is None:
        return
    if place == STDOUT:
        if sys.stdout.isatty():
            raise InvalidRequest("-o -: stdout is a terminal; pipe it somewhere, or name a file")
    elif not Path(place).parent.is_dir():
        raise InvalidRequest(f"-o {place}: there is no folder {Path(place).parent}")
    elif Path(place).is_dir():
        raise InvalidRequest(f"-o {place}: is a folder")


@contextlib.contextmanager
def stdout_for_audio(place: str | None) -> Iterator[None]:
    """Have what a command says go to stderr while stdout is where its audio goes."""
    out.stderr = place == STDOUT
    try:
        yield
    finally:
        out.stderr = False


class WavFile:
    """Takes pieces of PCM; a path gets the file whole, at the end of the block, or not at all.

    The first piece decides the format; what comes in another is converted to it, as 16 bit mono. Stdout gets what comes
    at once, under a header that leaves the length open.

    Args:
        place: a path, `-` for stdout, or None to write nothing and only count.
    """

    def __init__(self, place: str | None) -> None:
        self.format: PcmFormat | None = None
        self.size = 0
        """Bytes of samples."""
        self._place = place
        self._file: BinaryIO | None = None
        self._converter: tuple[PcmFormat, Converter] | None = None

    @property
    def seconds(self) -> float:
        return self.format.seconds(self.size) if self.format else 0.0

    def write(self, pcm: bytes, format: PcmFormat) -> None:
        """Append samples; blocks as long as who reads stdout does.

        Raises:
            OSError: it cannot be written.
        """
        if self.format is None:
            self.format = format
            self._file = self._open()
            self._write(wav_header(format, None))
        if format != self.format:
            pcm = self._converted(pcm, format, self.format)
        self._write(pcm)
        self.size += len(pcm)

    def _open(self) -> BinaryIO | None:
        if self._place is None:
            return None
        if self._place == STDOUT:
            return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
        return self._partial.open("wb")

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while self._file is not None and view:
            view = view[self._file.write(view) :]  # a pipe may take a part

    @property
    def _partial(self) -> Path:
        path = Path(self._place or "")
        return path.with_name(f".{path.name}.{os.getpid()}.part")

    def _converted(self, pcm: bytes, format: PcmFormat, to: PcmFormat) -> bytes:
        if (to.width, to.channels) != (2, 1):
            raise InvalidRequest(f"audio: its format changed from {to} to {format}")
        if self._converter is None or self._converter[0] != format:
            self._converter = format, Converter(format, to.sample_rate)
        return self._converter[1].feed(pcm)

    def __enter__(self) -> "WavFile":
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._file is None or self._place == STDOUT:
            return
        with self._file:
            if failed is None and self.format is not None:
                self._write(b"\0" * (self.size % 2))  # chunks have an even length
                self._file.seek(0)
                self._write(wav_header(self.format, self.size))
        if failed is None:
            self._partial.replace(self._place or "")
        else:
            with contextlib.suppress(OSError):
                self._partial.unlink()
