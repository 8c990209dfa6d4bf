"""Noise that is taken for voice: what of it stands out.

Voice activity detection (webrtcvad) finds the pauses in most noise by itself, and then nothing is done here. Where many
people talk in the background it finds none: the level of a frame must then stand out from the quietest of late (minimum
statistics, as in R. Martin's of 2001). What goes on unchanged for that long is noise, be it a held note.
"""

from array import array
from collections import deque

from handler_core.audio import Buffer
from stt_module.rules import Rules

BLOCK_MS = 500
"""What is quietest is kept of each stretch as long as this."""
NOISE_MS, VOICE_MS = 200, 100
"""How quickly the levels follow, of noise and of what may stand out from it. The first evens out single voices of many,
the second bridges the gaps in words, and ends with them."""
TRUSTED_MS = 2000
"""So long after a silence found by voice activity detection itself its word is taken."""
SPARSE = 5
"""Outside of speech every so many frames are measured."""
POINTS = 2000
"""Samples a second that are looked at: a level, not a waveform, is wanted."""


class Noise:
    """Tells a speaker from noise which voice activity detection takes for voice, too.

    Args:
        rules: its `noise_…`.
        sample_rate: of the frames.
        threshold: known from before, by another one's `threshold`; 0 when nothing is known, and then all is let pass
            until half of `noise_ms` has been heard.
    """

    def __init__(self, rules: Rules, sample_rate: int, threshold: float = 0.0) -> None:
        self.threshold = threshold
        """What the level must come up to; 0 when voice activity detection can be trusted, or nothing is known yet."""
        self._margin, self._spread = rules.noise_margin, rules.noise_spread
        self._step = max(1, sample_rate // POINTS)
        self._share, self._quick = rules.frame_ms / NOISE_MS, rules.frame_ms / VOICE_MS
        self._block = rules.frames(BLOCK_MS)
        self._pause = rules.frames(BLOCK_MS * rules.end_share)  # so many silent frames make a block a silence
        blocks = max(2, rules.noise_ms // BLOCK_MS)
        self._enough = blocks // 2
        self._quiet: deque[tuple[float, float]] = deque(maxlen=blocks)  # of each block: smoothed level, frame
        self._level = self._voice = -1.0
        self._since = 0  # blocks without a silence
        self._start()

    def _start(self) -> None:
        """Begin a block."""
        self._left, self._silent = self._block, 0
        self._lowest = self._least = float("inf")

    def passes(self, frame: Buffer, voiced: bool, within: bool) -> bool:
        """Whether a frame counts as voiced: it is `voiced` by voice activity detection, and stands out.

        `within`: speech is going on. All frames must be given, in order.
        """
        self._left = left = self._left - 1
        if not voiced:
            self._silent += 1
        if voiced or within or not left % SPARSE:
            samples = array("h", frame)[:: self._step]
            now = max(samples) - min(samples)  # the difference, since some microphones are off zero
            level = self._level
            if level < 0:
                level = self._voice = now
            self._level = level = level + (now - level) * self._share
            self._voice += (now - self._voice) * self._quick
            if level < self._lowest:
                self._lowest = level
            if now < self._least:
                self._least = now
        if not left:
            self._learn()
        return voiced and self._voice >= self.threshold

    def _learn(self) -> None:
        """A block is over: find the threshold for the next."""
        self._quiet.append((self._lowest, self._least))
        self._since += 1
        if self._silent >= self._pause:
            self._since, self.threshold = 0, 0.0
        elif len(self._quiet) >= self._enough and self._since * BLOCK_MS >= TRUSTED_MS:
            floor, least = min(low for low, _ in self._quiet), min(least for _, least in self._quiet)
            # The more unsteady the noise, the further it comes up by itself; with real gaps it is no noise.
            spread = floor / max(1.0, least)
            self.threshold = float(round(floor * min(spread, self._margin))) if spread <= self._spread else 0.0
        self._start()
