"""Audio in messages: raw bytes, with base64 text accepted on input."""

import base64
import binascii
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from handler_core.contract.base import Message


def _bytes(value: Any) -> Any:
    """What base64 text says (RFC 4648, line breaks and a `data:` prefix allowed); anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.startswith("data:"):
        value = value.partition(",")[2]
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is a string, but not base64") from None


Audio = Annotated[bytes, BeforeValidator(_bytes)]
"""Bytes; JSON callers, and others who cannot send bytes, send them as base64."""


class Pcm(Message):
    """What a sequence of samples is: signed little-endian integers (unsigned where `width` is 1), interleaved."""

    sample_rate: int = Field(default=16_000, ge=4000, le=192_000)
    """Hertz."""
    width: int = Field(default=2, ge=1, le=4)
    """Bytes of one sample."""
    channels: int = Field(default=1, ge=1, le=8)
