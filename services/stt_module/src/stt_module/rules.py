"""What counts as an utterance."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """When speech starts and ends, and what of it is kept; milliseconds where nothing else is said.

    Raises:
        ValueError: values that can't work together.
    """

    frame_ms: int = 20
    """10, 20 or 30."""
    mode: int = 2
    """Of webrtcvad: 0 takes almost anything for speech, 3 almost nothing."""
    start_ms: int = 200
    """Speech starts with so much voiced audio, in a window longer by `start_share`."""
    end_ms: int = 600
    """Speech ends with so much silence, in a window longer by `end_share`."""
    pre_roll_ms: int = 500
    """Audio kept from before the first voiced frame, which the first consonant comes before."""
    min_ms: int = 300
    """Utterances with less speech, from the first voiced frame to the last, are dropped …"""
    keep_short: bool = False
    """… unless this is set."""
    max_ms: int = 30_000
    """The longest utterance, pre-roll included: one that goes on is cut, and no sample is lost between the two."""
    max_bytes: int = 4 * 2**20
    interrupt_ms: int = 500
    """So much voiced audio while the client is `responding` interrupts it."""
    start_share: float = 0.8
    """How much of the window must be voiced: breaths and stops are gaps in words, and lone clicks are no words."""
    end_share: float = 0.9
    """How much of the window must be silent: a click does not prolong an utterance."""
    tail_ms: int = 300
    """Audio kept after the last voiced frame; the rest of the silence is the next one's pre-roll."""
    noise_ms: int = 6000
    """Where webrtcvad finds no silence, as among many people who talk, a voiced frame counts only if it stands out from
    the quietest in so much audio; at least 2000, or 0: webrtcvad's word is taken always."""
    noise_margin: float = 2.0
    """How many times louder than that the loudest of a noise is, at most (2: 6 dB); of a steady one it is less."""
    noise_spread: float = 8.0
    """What varies more, its quietest 200 ms against its quietest frame, is speech with gaps and no noise (8: 18 dB)."""

    def __post_init__(self) -> None:
        if self.frame_ms not in {10, 20, 30}:
            raise ValueError(f"frame_ms is {self.frame_ms}: 10, 20 and 30 are possible")
        if self.mode not in {0, 1, 2, 3}:
            raise ValueError(f"mode is {self.mode}: from 0 to 3")
        if min(self.start_ms, self.end_ms) < self.frame_ms or min(self.pre_roll_ms, self.min_ms, self.tail_ms) < 0:
            raise ValueError("start_ms and end_ms are at least a frame, pre_roll_ms, min_ms and tail_ms not negative")
        if not (0 < self.start_share <= 1 and 0 < self.end_share <= 1):
            raise ValueError("start_share and end_share are above 0 and at most 1")
        if 0 != self.noise_ms < 2000 or min(self.noise_margin, self.noise_spread) < 1:
            raise ValueError("noise_ms is 0 or at least 2000, noise_margin and noise_spread are at least 1")
        if self.max_ms < self.least_ms:
            raise ValueError(f"max_ms is {self.max_ms}: at least {self.least_ms} with the other rules")

    @property
    def late_ms(self) -> int:
        """The last part of an utterance that is too long: at its quietest place it is cut."""
        return max(12 * self.frame_ms, self.max_ms // 10)

    @property
    def least_ms(self) -> int:
        """What an utterance must be allowed to last, so that a cut falls behind its beginning."""
        windows = self.frames(self.start_ms / self.start_share) + self.frames(self.end_ms / self.end_share)
        return self.pre_roll_ms + (windows + 2) * self.frame_ms + self.late_ms

    def frames(self, ms: float) -> int:
        """How many frames are at least that long."""
        return -int(-ms // self.frame_ms)
