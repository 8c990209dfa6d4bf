"""A spoken answer as its client has it: the segments that count, played, kept, and written at the end."""

import asyncio
from pathlib import Path

from handler_core.audio import PcmFormat, read_wav
from handler_core.contract.voice import VoiceEvent, VoiceResponse
from handlers_cli.sound import Player
from handlers_cli.wav_file import STDOUT, WavFile


class SpokenAnswer:
    """Takes the audio of one turn.

    Args:
        request_id: the turn.
        player: what plays it while it comes, if anything does.
        output: where it is written: a path when it is whole, `-` for stdout while it comes.
    """

    def __init__(self, request_id: str, player: Player | None, output: str | None) -> None:
        self.output = output
        self.seconds = 0.0
        """Of the audio; known at the end."""
        self._request_id = request_id
        self._player = player
        self._segments: dict[int, VoiceEvent] = {}
        self._pipe = WavFile(STDOUT) if output == STDOUT else None
        self._piped = 0

    async def take(self, event: VoiceEvent) -> None:
        """Take an event of type `audio`: one of a number that is there, and of a later attempt, replaces it and all
        after it."""
        number = event.segment or 0
        there = self._segments.get(number)
        if there is not None:
            if there.attempt >= event.attempt:
                return
            self._segments = {n: segment for n, segment in self._segments.items() if n < number}
        self._segments[number] = event
        await self._out(number, event.audio, _format(event))

    async def _out(self, number: int, pcm: bytes, format: PcmFormat) -> None:
        if self._player is not None and pcm:
            self._player.put(self._request_id, number, pcm, format)
        if self._pipe is not None and pcm and number >= self._piped:  # what has been heard cannot be replaced
            await asyncio.to_thread(self._pipe.write, pcm, format)
            self._piped = number + 1

    async def end(self, response: VoiceResponse) -> None:
        """The answer is whole, or it ended in an error; write what there is of it.

        Raises:
            OSError: the output cannot be written.
        """
        if response.error is None:  # what is left over is of an earlier attempt, which said more
            self._segments = {n: segment for n, segment in self._segments.items() if n < response.audio_segments}
        pieces = [(_format(segment), segment.audio) for _, segment in sorted(self._segments.items()) if segment.audio]
        if not pieces and response.audio:
            wav = read_wav(response.audio)
            pieces = [(wav.format, bytes(wav.pcm))]
            await self._out(0, bytes(wav.pcm), wav.format)
        if self._player is not None:
            self._player.end(self._request_id)
        self.seconds = sum(format.seconds(len(pcm)) for format, pcm in pieces)
        if not pieces or self.output in (None, STDOUT):
            return
        with WavFile(self.output) as file:
            for format, pcm in pieces:
                file.write(pcm, format)

    @property
    def written(self) -> bool:
        """Whether there is a file now."""
        return self.output not in (None, STDOUT) and self.seconds > 0


def _format(event: VoiceEvent) -> PcmFormat:
    return PcmFormat(event.sample_rate or 16_000, event.width, event.channels)


def free_name(path: Path) -> Path:
    """The path, or the first of `name-2.wav`, `name-3.wav`, … that is not taken."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
