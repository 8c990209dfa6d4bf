"""Settings of the command line: those of the services, from the same environment."""

from handler_core.config import NatsSettings
from handler_core.upstreams import RagSettings


class CliSettings(RagSettings, NatsSettings):
    """What the commands read; `.env` is not read, as services do not."""
