"""The process that recognises speech: `python -m local_inference.recognizer`, started by `transcriber`.

pocketsphinx keeps the interpreter's lock while it decodes, a fifth of the audio's length and more, so that in the
server's own process nothing else would be answered. The two talk over pipes: in, four bytes with a little-endian length
and that much audio, 16 kHz s16le mono; out, one line of JSON, the utterances. The process ends with its input.
"""

import json
import math
import signal
import struct
import sys
from typing import Any, BinaryIO

SAMPLE_RATE = 16_000
"""Of the audio that goes in."""
_VAD_MODE = 2
_VAD_FRAME = 0.03
_SHORTEST = 5
_PAUSE = 0.6
_PADDING = 0.3
_FRAMES_PER_SECOND = 100
_LEAST = 1e-6


class Recognizer:
    """pocketsphinx with the English model of its wheel. Not thread-safe; loading takes half a second and 90 MB."""

    def __init__(self) -> None:
        import pocketsphinx

        # Cepstral means over each utterance alone: what was said before has no bearing on what is recognised now.
        self._decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, cmn="batch", loglevel="FATAL")
        self._vad = pocketsphinx.Vad

    def utterances(self, pcm: bytes) -> list[dict[str, Any]]:
        """What was said: `[{words: [[word, start, end, probability]], unvoiced}]`, times in seconds.

        An utterance is what lies between pauses of 0.6 s; one with less than 0.15 s of voice, or in which the decoder
        finds no word, is left out. A word's probability is its posterior in the decoder's lattice. `unvoiced` is the
        share of 30-ms frames, from the first word to the last, that the voice activity detector took for silence or
        noise.
        """
        voiced = self._voiced(pcm)
        found = []
        for first, last in _runs(voiced, round(_PAUSE / _VAD_FRAME)):
            if sum(voiced[first:last]) < _SHORTEST:
                continue
            start = max(0.0, first * _VAD_FRAME - _PADDING)
            words = self._decode(pcm[_offset(start) : _offset(last * _VAD_FRAME + _PADDING)], start)
            if words:
                spoken = voiced[int(words[0][1] / _VAD_FRAME) : math.ceil(words[-1][2] / _VAD_FRAME)]
                found.append({"words": words, "unvoiced": 1 - sum(spoken) / (len(spoken) or 1)})
        return found

    def _voiced(self, pcm: bytes) -> list[bool]:
        vad = self._vad(_VAD_MODE, SAMPLE_RATE, _VAD_FRAME)
        size = vad.frame_bytes
        return [vad.is_speech(pcm[at : at + size]) for at in range(0, len(pcm) - size + 1, size)]

    def _decode(self, pcm: bytes, start: float) -> list[tuple[str, float, float, float]]:
        self._decoder.reinit_feat()  # forgets the noise that it has heard before
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, full_utt=True)
        self._decoder.end_utt()
        if self._decoder.hyp() is None:
            return []
        return [
            (
                segment.word.partition("(")[0],  # to(3) is the third pronunciation of to
                round(start + segment.start_frame / _FRAMES_PER_SECOND, 2),
                round(start + (segment.end_frame + 1) / _FRAMES_PER_SECOND, 2),
                min(1.0, max(_LEAST, segment.prob)),
            )
            for segment in self._decoder.seg()
            if segment.word[0] not in "<[+"  # silence, noise, breath
        ]


def _offset(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE) * 2


def _runs(voiced: list[bool], pause: int) -> list[tuple[int, int]]:
    """Where voice begins and where it ends, with shorter gaps than `pause` frames within."""
    runs: list[tuple[int, int]] = []
    for index, is_voice in enumerate(voiced):
        if not is_voice:
            continue
        if runs and index - runs[-1][1] < pause:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer until the input ends."""
    recognizer = Recognizer()
    while len(head := source.read(4)) == 4:
        pcm = source.read(struct.unpack("<I", head)[0])
        sink.write(json.dumps(recognizer.utterances(pcm)).encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the server ends this process
    serve(sys.stdin.buffer, sys.stdout.buffer)
