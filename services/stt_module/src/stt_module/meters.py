"""What a worker counts."""

from handler_core.telemetry import Metrics

_LAG = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Meters:
    """The metrics of a worker's sessions, each made once."""

    def __init__(self, metrics: Metrics) -> None:
        self.lag = metrics.histogram(
            "handler_stt_chunk_lag_seconds", "From a chunk's arrival in the stream until it is listened to.", _LAG
        )
        self.final = metrics.histogram(
            "handler_stt_final_seconds",
            "From the arrival of the chunk that ended an utterance until its transcript is stored.",
            _LAG,
        )
        utterances = ("handler_stt_utterances_total", "Utterances, by what became of them.")
        self.transcribed = metrics.counter(*utterances, outcome="transcribed")
        self.empty = metrics.counter(*utterances, outcome="empty")
        self.failed = metrics.counter(*utterances, outcome="failed")
        self.dropped = metrics.counter(*utterances, outcome="too_short")
        self.partials = metrics.counter("handler_stt_partials_total", "Partial transcripts published.")
        self.interrupts = metrics.counter("handler_stt_interrupts_total", "Interruptions published.")
        self.refused = metrics.counter("handler_stt_messages_refused_total", "Messages of clients that were malformed.")
        self.lost = metrics.counter("handler_stt_chunks_lost_total", "Chunks that never came, by the client's count.")
        self.resumed = metrics.counter("handler_stt_sessions_resumed_total", "Sessions taken over from another worker.")
