"""Where a session stands: what the next worker needs to go on with it, in a header of every event.

An event and the position behind it are stored by one publish, so that no crash can fall between the two.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from handler_core.contract.base import is_token
from handler_core.contract.stt import SessionConfig, State
from stt_module.segmenter import Position

HEADER = "Session-Checkpoint"
MAX_CONFIG = 16 * 1024
"""Characters of a session's configuration; it goes out with each of its events."""


@dataclass(frozen=True)
class Phase:
    """What holds from one message of a session to the next that changes it."""

    sequence: int = 0
    """The message's, in the stream."""
    config: SessionConfig = field(default_factory=SessionConfig)
    state: State = "listening"
    since_ms: float = 0.0
    """When the state began, on the audio clock."""
    deaf: bool = False
    """Whether the last `start` was refused, so that nobody knows what the audio is."""


@dataclass(frozen=True)
class Checkpoint:
    """A session as of a position in its audio."""

    first: int
    """The stream sequence of the session's first message."""
    position: Position = field(default_factory=Position)
    phase: Phase = field(default_factory=Phase)
    """As of the position: later changes are read again."""
    interrupted: int = 0
    """The `sequence` of the phase whose interrupt has been told."""
    utterance: int = 1
    """The number of the first utterance behind the position."""
    shown: tuple[int, ...] = ()
    """Utterances of which partial transcripts are out, but no final one."""
    request_id: str = ""
    """The last turn that was asked for."""
    takeovers: int = 0
    """How many workers in a row got no further than this."""
    ended: bool = False

    @property
    def start_sequence(self) -> int:
        """Where to begin reading."""
        return self.position.mark or self.first

    def header(self) -> str:
        """This as the header's value: JSON in ASCII.

        Raises:
            TypeError, ValueError: the configuration holds what JSON cannot.
        """
        phase = self.phase
        body: dict[str, Any] = {"first": self.first, "position": self.position, "utterance": self.utterance}
        body["phase"] = [phase.sequence, packed(phase.config), phase.state, phase.since_ms, phase.deaf]
        for name in ("interrupted", "shown", "request_id", "takeovers", "ended"):
            if value := getattr(self, name):
                body[name] = value
        return json.dumps(body, separators=(",", ":"), allow_nan=False)


def parsed(header: str | None) -> Checkpoint | None:
    """The checkpoint in a header; None where there is none, or what is there is none of ours."""
    if not header:
        return None
    try:
        body = json.loads(header)
        sequence, config, state, since_ms, deaf = body["phase"]
        phase = Phase(int(sequence), SessionConfig.model_validate(config), state, float(since_ms), bool(deaf))
        known = Checkpoint(int(body["first"]), Position(*body["position"]), phase)
        return replace(
            known,
            interrupted=int(body.get("interrupted", 0)),
            utterance=int(body["utterance"]),
            shown=tuple(map(int, body.get("shown", ()))),
            request_id=body["request_id"] if is_token(body.get("request_id", "")) else "",
            takeovers=int(body.get("takeovers", 0)),
            ended=body.get("ended") is True,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def packed(config: SessionConfig) -> dict[str, Any]:
    """What of a configuration is not the default."""
    return config.model_dump(exclude_defaults=True)
