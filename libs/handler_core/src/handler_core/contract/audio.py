"""Audio in messages: raw bytes, with base64 text accepted on input."""

import base64
import binascii
from typing import Annotated, Any

from pydantic import BeforeValidator


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
