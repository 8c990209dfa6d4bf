"""`python -m benchmarks.voice.vad`: where utterances begin and end in noise, beside the usual way to cut them.

Sentences with pauses between are mixed with noise, and what the segmenter makes of it is held against the clean
recording's energy: a stretch of it outside of every utterance's audio is a clipped word.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.processes import BUILD, ROOT, BenchmarkError, say
from handler_core.audio import BadAudio, read_wav
from stt_module.segmenter import Dropped, Event, Rules, Segmenter, Utterance

Samples = npt.NDArray[np.float64]

AUDIO = ROOT / "tests" / "audio"
RATE = 16_000
PAUSES = (1.2, 2.5)
"""Seconds between sentences: the shortest and the longest."""
LEVEL = 0.05
"""Of the speech, where there is some: 26 dB under the loudest that there can be."""
LOUD = 0.01
"""Speech is what comes up to this part of the loudest 10 ms: -40 dB."""
LEAST, GAP = 3, 4
"""In frames of 10 ms: shorter stretches are no word, shorter gaps part none."""
SENTENCE = 60
"""In frames of 10 ms: gaps as long as that part utterances."""
SCENES = 12
"""Of six recordings each."""
NOISES = ("white", "pink", "babble")
RATIOS = (20, 10, 5)
"""Decibels of speech to noise."""
POLICIES = {
    "ours": Rules(),
    # The same with webrtcvad's word alone for what is voice.
    "its word": Rules(noise_ms=0),
    # What a first version does: on at the first voiced frame, off after 600 ms of silence, nothing from before.
    "plain": Rules(start_ms=20, start_share=1.0, end_share=1.0, pre_roll_ms=0, min_ms=0, tail_ms=600, noise_ms=0),
}


@dataclass(frozen=True)
class Scene:
    """Clean speech, and by its energy where the words and the sentences are, in milliseconds."""

    speech: Samples
    words: list[tuple[float, float]]
    sentences: list[tuple[float, float]]


@dataclass
class Score:
    """How the utterances of some scenes fit what was said."""

    start_ms: list[float] = field(default_factory=list)
    """How much later than the sentence its utterance was found to start; negative is earlier."""
    end_ms: list[float] = field(default_factory=list)
    lead_ms: list[float] = field(default_factory=list)
    """How much audio the utterance has before the sentence."""
    words: int = 0
    clipped: int = 0
    sentences: int = 0
    dropped: int = 0
    """Sentences that were found, and taken for too short."""
    missed: int = 0
    split: int = 0
    joined: int = 0
    false: int = 0

    def row(self) -> dict[str, object]:
        return {
            "sentences": self.sentences,
            "words": self.words,
            "clipped": self.clipped,
            "dropped": self.dropped,
            "missed": self.missed,
            "split": self.split,
            "joined": self.joined,
            "false": self.false,
            **{name: _spread(getattr(self, name)) for name in ("start_ms", "end_ms", "lead_ms")},
        }


def run() -> dict[str, object]:
    """Measure all; gives the content of `vad.json`, and prints the table."""
    rng = np.random.default_rng(7)
    clips = list(_clips(AUDIO))
    if not clips:
        raise BenchmarkError(f"no speech in {AUDIO}: WAV files of {RATE} Hz are needed")
    scenes = [_scene([clips[i] for i in rng.permutation(len(clips))[:6]], rng) for _ in range(SCENES)]
    say(f"{len(clips)} recordings, {len(scenes)} scenes of {sum(len(s.speech) for s in scenes) / RATE:.0f} s")
    result: dict[str, object] = {}
    for noise in ("none", *NOISES):
        for ratio in RATIOS if noise != "none" else (0,):
            mixed = [_mixed(scene, noise, ratio, clips, rng) for scene in scenes]
            for policy, rules in POLICIES.items():
                score = Score()
                for scene, pcm in zip(scenes, mixed, strict=True):
                    _judge(scene, events_of(rules, pcm), score)
                result[f"{policy} {noise} {ratio} dB" if ratio else f"{policy} clean"] = score.row()
    _print_table(result)
    return result


def events_of(rules: Rules, pcm: bytes) -> list[Event]:
    """What the segmenter makes of it, in chunks of 20 ms."""
    segmenter = Segmenter(rules, RATE)
    step = RATE // 50 * 2
    events = [e for at in range(0, len(pcm), step) for e in segmenter.feed(pcm[at : at + step], at // step)]
    return [*events, *segmenter.flush()]


def _clips(folder: Path) -> Iterator[Samples]:
    for path in sorted(folder.glob("*.wav")):
        try:
            wav = read_wav(path.read_bytes())
        except BadAudio:
            continue  # some are there because they are broken
        if (wav.format.sample_rate, wav.format.width, wav.format.channels) != (RATE, 2, 1):
            continue
        samples = np.frombuffer(wav.pcm, "<i2").astype(np.float64) / 32768
        loud = _levels(samples)
        if len(loud) and loud.max() > LOUD:
            active = loud[loud > LOUD * loud.max()]
            yield samples * LEVEL / np.sqrt(np.mean(active**2))


def _levels(samples: Samples) -> Samples:
    """Of each 10 ms."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    levels: Samples = np.sqrt(np.mean(frames**2, axis=1))
    return levels


def _scene(clips: list[Samples], rng: np.random.Generator) -> Scene:
    parts: list[Samples] = []
    for clip in clips:
        parts += [np.zeros(int(RATE * rng.uniform(*PAUSES))), clip]
    speech = np.concatenate([*parts, np.zeros(int(RATE * PAUSES[1]))])
    levels = _levels(speech)
    loud = levels > LOUD * levels.max()
    words = [(a, b) for a, b in _stretches(loud, GAP) if b - a >= LEAST]
    sentences = [(a, b) for a, b in _stretches(loud, SENTENCE) if b - a >= LEAST]
    return Scene(speech, [(a * 10.0, b * 10.0) for a, b in words], [(a * 10.0, b * 10.0) for a, b in sentences])


def _stretches(loud: npt.NDArray[np.bool_], gap: int) -> list[tuple[int, int]]:
    """From and to, of what is loud; gaps shorter than `gap` are bridged."""
    found: list[tuple[int, int]] = []
    for place in np.flatnonzero(loud).tolist():
        if found and place - found[-1][1] < gap:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found


def _mixed(scene: Scene, noise: str, ratio: int, clips: list[Samples], rng: np.random.Generator) -> bytes:
    size = len(scene.speech)
    samples = scene.speech
    if noise != "none":
        raw = _noise(noise, size, clips, rng)
        samples = samples + raw * LEVEL / np.sqrt(np.mean(raw**2)) / 10 ** (ratio / 20)
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def _noise(kind: str, size: int, clips: list[Samples], rng: np.random.Generator) -> Samples:
    if kind == "babble":  # many voices, backwards so that nobody is understood
        voices = [np.concatenate([clips[i][::-1] for i in rng.permutation(len(clips))]) for _ in range(8)]
        babble: Samples = sum(
            (np.roll(np.resize(voice, size), int(rng.integers(size))) for voice in voices), np.zeros(size)
        )
        return babble
    white: Samples = rng.standard_normal(size)
    if kind == "white":
        return white
    spectrum = np.fft.rfft(white)
    pink: Samples = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 20 * size / RATE)), size)
    return pink


def _judge(scene: Scene, events: list[Event], score: Score) -> None:
    found = [event for event in events if isinstance(event, Utterance)]
    short = [event for event in events if isinstance(event, Dropped)]
    audio = [(u.begin.ms, u.begin.ms + len(u.pcm) / (RATE * 2 / 1000)) for u in found]
    score.words += len(scene.words)
    for start, end in scene.words:
        whole = any(a <= start and end <= b for a, b in audio)
        score.clipped += not whole and not _within(start, short, scene)
    score.false += sum(not any(start < b and end > a for start, end in scene.sentences) for a, b in audio)
    score.sentences += len(scene.sentences)
    for start, end in scene.sentences:
        over = [i for i, (a, b) in enumerate(audio) if start < b and end > a]
        if not over:
            dropped = _within(start, short, scene)
            score.dropped += dropped
            score.missed += not dropped
            continue
        score.split += len(over) - 1
        first, last = over[0], over[-1]
        # What another sentence opened tells nothing of this one's start.
        if any(audio[first][0] < other_end <= start for _, other_end in scene.sentences):
            score.joined += 1
        else:
            score.start_ms.append(found[first].start_ms - start)
            score.lead_ms.append(start - audio[first][0])
        if not any(end <= other < audio[last][1] for other, _ in scene.sentences):
            score.end_ms.append(found[last].end_ms - end)


def _within(place: float, short: list[Dropped], scene: Scene) -> bool:
    """Whether the sentence that is spoken there was dropped as too short."""
    return any(
        start <= place < end and start < drop.end_ms and drop.start_ms < end
        for start, end in scene.sentences
        for drop in short
    )


def _spread(values: list[float]) -> dict[str, float] | None:
    """Of the errors: the median with its sign, and how far off 95 of 100 and the worst are."""
    if not values:
        return None
    size = np.abs(values)
    return {
        "median": round(float(np.median(values))),
        "p95": round(float(np.percentile(size, 95))),
        "worst": round(float(size.max())),
    }


def _print_table(result: dict[str, object]) -> None:
    counts = ("sentences", "words", "clipped", "dropped", "missed", "split", "joined", "false")
    print(
        f"\n{'vad':22}"
        + "".join(f"{name:>10}" for name in counts)
        + f"{'start ms: median, p95, worst':>30}{'end ms: median, p95, worst':>30}"
    )
    for name, row in result.items():
        assert isinstance(row, dict)
        spreads = [row["start_ms"], row["end_ms"]]
        errors = ["".join(f"{value:>8.0f}" for value in s.values()) if s else "" for s in spreads]
        print(f"{name:22}" + "".join(f"{row[count]:>10}" for count in counts) + "".join(f"{e:>30}" for e in errors))


if __name__ == "__main__":
    try:
        found = run()
    except BenchmarkError as error:
        sys.exit(f"benchmark: {error}")
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "vad.json").write_text(json.dumps(found, indent=2) + "\n")
    say(f"wrote {BUILD / 'vad.json'}")
