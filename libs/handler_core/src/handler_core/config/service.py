"""What every service reads: logs and the process itself."""

import os
from typing import Literal

from pydantic import Field

from handler_core.config.base import Settings
from handler_core.config.nats import NatsSettings
from handler_core.config.telemetry import OtelSettings


class LogSettings(Settings):
    """What is logged, and how."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """`auto`: colours on a terminal, JSON elsewhere."""


class ServiceSettings(NatsSettings, LogSettings, OtelSettings):
    """What every service reads."""

    health_host: str = "0.0.0.0"
    health_port: int = Field(default=8080, ge=0, le=65535)
    """0 takes a free port, which is logged."""
    drain_timeout: float = Field(default=25.0, gt=0)
    """Seconds that running work gets to finish after SIGTERM; `terminationGracePeriodSeconds` needs 10 more."""
    serve_endpoints: bool = True
    """Whether request/reply is served. Without it there is nothing that a queue would not keep, so that the service may
    be scaled down to no replica."""

    @property
    def encrypted(self) -> bool:
        """Whether anything that is connected to may be so by TLS, as far as the settings and the proxies tell."""
        if self.nats_tls_ca is not None or self.nats_tls_cert is not None:
            return True
        texts = [value for value in dict(self).values() if isinstance(value, str)]
        texts += [value.lower() for name, value in os.environ.items() if name.lower().endswith("_proxy")]
        return any(scheme in text for text in texts for scheme in ("https://", "tls://", "wss://"))
