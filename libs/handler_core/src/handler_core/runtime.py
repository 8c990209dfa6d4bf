"""What surrounds a service's handlers while it runs."""

from dataclasses import dataclass, field
from typing import Protocol

from handler_core.cancel import Cancellations
from handler_core.connection import Connection
from handler_core.fairness import Fairness
from handler_core.health import Health
from handler_core.telemetry import Metrics
from handler_core.tracing import Tracer


@dataclass
class Runtime:
    """What a lifespan may use and add to."""

    nc: Connection
    metrics: Metrics
    health: Health
    tracer: Tracer | None = None
    """Where spans go; None when nothing is exported."""
    cancellations: Cancellations = field(init=False)
    fairness: Fairness = field(init=False, default_factory=Fairness)

    def __post_init__(self) -> None:
        self.cancellations = Cancellations(self.nc)


class Runner(Protocol):
    """What serves: a consumer, or the endpoints together."""

    @property
    def in_flight(self) -> int: ...

    @property
    def problem(self) -> str:
        """Why it does not serve; empty when it does."""

    async def run(self) -> None:
        """Serve until `stop`, then finish what runs."""

    def stop(self) -> None: ...
