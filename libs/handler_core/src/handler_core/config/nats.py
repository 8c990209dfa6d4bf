"""The connection to NATS."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from handler_core.config.base import Settings, existing


class NatsSettings(Settings):
    """How to reach NATS: one way of authentication at most."""

    nats_url: str = "nats://127.0.0.1:4222"
    """One URL, or several of a cluster with commas between."""
    nats_user: str | None = None
    """With `NATS_PASSWORD`."""
    nats_password: SecretStr | None = None
    nats_token: SecretStr | None = None
    nats_nkey_seed: SecretStr | None = None
    nats_creds: Path | None = None
    """A credentials file (JWT and seed)."""
    nats_inbox_prefix: str = Field(default="_INBOX", pattern=r"^_INBOX[A-Za-z0-9_-]*$")
    """Where replies to this connection arrive: one of its own for each user that shares an account with others, and the
    right to subscribe to no other, or they read each other's replies."""
    nats_tls_ca: Path | None = None
    nats_tls_cert: Path | None = None
    nats_tls_key: Path | None = None

    @field_validator("nats_url")
    @classmethod
    def _is_nats(cls, url: str) -> str:
        for part in url.split(","):
            if not part.startswith(("nats://", "tls://", "ws://", "wss://")):
                raise ValueError("must start with nats://, tls://, ws:// or wss://")
            try:
                parsed = urlsplit(part)
                complete = bool(parsed.hostname) and parsed.port != 0
            except ValueError:
                complete = False
            if not complete:
                raise ValueError("is not a URL with a host and an optional port")
        return url

    @field_validator("nats_creds", "nats_tls_ca", "nats_tls_cert", "nats_tls_key")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        return existing(path)

    @field_validator("nats_nkey_seed")
    @classmethod
    def _is_seed(cls, seed: SecretStr | None) -> SecretStr | None:
        if seed is not None and not re.fullmatch(r"SU[A-Z2-7]{56}", seed.get_secret_value()):
            raise ValueError("is not the seed of a user (SU…)")
        return seed

    @model_validator(mode="after")
    def _is_coherent(self) -> "NatsSettings":
        ways = ("nats_user", "nats_token", "nats_nkey_seed", "nats_creds")
        chosen = [name.upper() for name in ways if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{chosen[1]}: cannot be set together with {chosen[0]}")
        for name, needed in (("nats_password", "nats_user"), ("nats_tls_key", "nats_tls_cert")):
            if getattr(self, name) is not None and getattr(self, needed) is None:
                raise ValueError(f"{name.upper()}: needs {needed.upper()} as well")
        return self
