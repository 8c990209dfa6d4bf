"""How each service is scaled, as data: what the ScaledObjects are rendered from, and what the simulation runs by.

The formulas are those of KEDA's nats-jetstream scaler and of the Horizontal Pod Autoscaler (Kubernetes: "Algorithm
details"): lag = `num_pending` + `num_ack_pending`, and a replica for every `lag_threshold` of it.
"""

from dataclasses import dataclass

from handler_core import streams

NAMESPACE = "ai"
TOLERANCE = 0.1
"""The HPA leaves the replicas as they are while lag and what they are asked for differ by no more than this share."""
SYNC_PERIOD = 15
"""Seconds between two decisions of the HPA, as Kubernetes has them unless its controller manager says otherwise."""


@dataclass(frozen=True)
class Scaling:
    """How one service is scaled.

    Between one replica and many the HPA decides, every `SYNC_PERIOD`; `activation_lag`, `polling_interval` and
    `cooldown_period` are KEDA's own and count where the last replica may go, which the component scale-to-zero allows.
    """

    service: str
    """Its package: `chat_handler`."""
    consumer: streams.Consumer
    """What its lag is read of."""
    lag_threshold: int
    """Messages, waiting and in progress, that one replica is asked for: well under its `max_in_flight`, so that the
    next replica starts before messages wait."""
    max_replicas: int
    min_replicas: int = 1
    activation_lag: int = 0
    """The first replica starts when the lag is more than this."""
    polling_interval: int = 5
    """Seconds between two looks at the lag while there is no replica."""
    cooldown_period: int = 300
    """Seconds without lag until the last replica goes."""
    fallback_replicas: int = 1
    """Replicas, at least, while the lag cannot be read; what runs goes on running."""
    fallback_failures: int = 3
    """Readings that may fail in a row before that."""
    scale_up_pods: int = 4
    """Replicas added at most in a `scale_up_period`."""
    scale_up_period: int = 15
    scale_up_stabilization: int = 0
    """Seconds of which the lowest count is taken when replicas are to be added; 0 for the present one."""
    scale_down_pods: int = 1
    """Replicas taken away at most in a `scale_down_period`."""
    scale_down_period: int = 60
    scale_down_stabilization: int = 300
    """Seconds of which the highest count is taken when replicas are to go."""
    why: str = ""
    """Why these figures, for the reader of what is rendered."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ValueError(f"{self.service}: min_replicas has to be from 0 to max_replicas")
        if not max(1, self.min_replicas) <= self.fallback_replicas <= self.max_replicas:
            raise ValueError(f"{self.service}: fallback_replicas has to be from 1 and min_replicas to max_replicas")
        if not 0 <= self.activation_lag < self.lag_threshold:
            raise ValueError(f"{self.service}: activation_lag has to be from 0 to less than lag_threshold")

    @property
    def name(self) -> str:
        """Its name in Kubernetes: `chat-handler`."""
        return kubernetes_name(self.service)


def kubernetes_name(service: str) -> str:
    """The name in Kubernetes of a service, whose own has underscores."""
    return service.replace("_", "-")


def labels(name: str) -> dict[str, str]:
    """The labels of what belongs to `name`."""
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "slim-handlers"}


SCALINGS: tuple[Scaling, ...] = (
    Scaling(
        "chat_handler",
        streams.CHAT_HANDLER,
        lag_threshold=16,
        max_replicas=8,
        fallback_replicas=2,
        why="A worker answers 32 turns at once (MAX_IN_FLIGHT): at half of it the next one starts, so that a burst "
        "finds room while it does. 8 workers are 256 turns, about what one vLLM server takes at once unless told "
        "otherwise; more would wait there instead of here. Workers go one a minute after 5 quiet minutes: what a "
        "leaving one does not finish within its 25 s another begins anew. While the lag cannot be read, at least 2: "
        "somebody waits for each answer, and one may be lost with its node without anybody noticing a queue.",
    ),
    Scaling(
        "voice_assistant",
        streams.VOICE_ASSISTANT,
        lag_threshold=4,
        max_replicas=8,
        fallback_replicas=2,
        why="A worker answers 8 spoken questions at once (MAX_IN_FLIGHT), with their audio: at half of it the next one "
        "starts. 8 workers are 64 turns, more than most speech endpoints keep up with. A turn takes longer than the "
        "25 s of a leaving worker now and then, so workers go slowly, as those of chat_handler. While the lag cannot "
        "be read, at least 2: somebody waits here as well, and one may be lost.",
    ),
    Scaling(
        "tts_module",
        streams.TTS_MODULE,
        lag_threshold=2,
        max_replicas=8,
        fallback_replicas=1,
        cooldown_period=120,
        scale_up_pods=2,
        scale_down_stabilization=120,
        why="A worker speaks 4 texts at once (MAX_IN_FLIGHT), several sentences of each: at half of it the next one "
        "starts, two at a time, since the speech endpoint and not the worker is soon what is waited for. A text that "
        "a leaving worker does not finish is gone on with at the chunk where it broke off, so two quiet minutes will "
        "do. While the lag cannot be read, at least 1: four texts at once keep most speech endpoints busy, and more "
        "would wait there.",
    ),
    Scaling(
        "stt_module",
        streams.STT_MODULE,
        lag_threshold=128,
        max_replicas=16,
        fallback_replicas=2,
        cooldown_period=900,
        scale_up_pods=2,
        scale_down_period=180,
        scale_down_stabilization=600,
        why="A message in progress is a live session, and a worker listens to 256 (MAX_SESSIONS): at half of it the "
        "next one starts, which takes new sessions only; none moves while its worker stays. One worker stays although "
        "nothing here is request/reply, since somebody is speaking: from none, the first words would wait for KEDA's "
        "look and a pod's start. A leaving worker hands its sessions over, and each costs its next one reading back, "
        "so workers go one in 3 minutes after 10 quiet ones; the last one, where it may, after 15. While the lag "
        "cannot be read, at least 2: when one is lost, the other takes its sessions over at once, and 256 have room "
        "there.",
    ),
    Scaling(
        "pipeline_bridge",
        streams.PIPELINE_BRIDGE,
        lag_threshold=500,
        max_replicas=4,
        fallback_replicas=1,
        polling_interval=15,
        cooldown_period=900,
        scale_up_pods=1,
        scale_up_period=60,
        scale_up_stabilization=60,
        scale_down_period=300,
        scale_down_stabilization=900,
        why="A message in progress is a run that is followed, for hours or days, and a worker follows 1,000 "
        "(MAX_IN_FLIGHT), asleep for the most part: at half of it the next one starts. Four are 4,000 runs; each "
        "watches the engines for itself, so more would burden the Kubernetes API. Runs are handed over in a moment, "
        "and nobody waits for seconds: everything is unhurried here. While the lag cannot be read, at least 1: it "
        "follows 1,000 runs, and when it is lost they go on until another follows them.",
    ),
)
"""One for each service that takes messages from a stream."""
