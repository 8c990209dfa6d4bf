"""Bodies of requests as bytes with their content type, so that an attempt can be repeated as it was."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

_ESCAPED = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}
"""What may not stand in a quoted field name or file name (WHATWG HTML, multipart/form-data encoding algorithm)."""


@dataclass(frozen=True, slots=True)
class File:
    """A file in a form."""

    name: str
    """Its file name; servers go by the extension."""
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body."""

    data: bytes
    content_type: str

    @classmethod
    def json(cls, value: Any) -> "Body":
        return cls(json.dumps(value).encode(), "application/json")

    @classmethod
    def form(cls, fields: Mapping[str, str]) -> "Body":
        """Fields as a web form sends them, `application/x-www-form-urlencoded`."""
        return cls(urlencode(fields).encode(), "application/x-www-form-urlencoded")

    @classmethod
    def multipart(cls, fields: Mapping[str, str | File]) -> "Body":
        """Fields and files as `multipart/form-data` (RFC 7578)."""
        boundary = secrets.token_hex(16)
        parts: list[bytes] = []
        for name, value in fields.items():
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name.translate(_ESCAPED)}"'
            if isinstance(value, File):
                head += f'; filename="{value.name.translate(_ESCAPED)}"\r\nContent-Type: {_line(value.content_type)}'
                data = value.data
            else:
                data = value.encode("utf-8", "replace")
            parts += [head.encode("utf-8", "replace"), b"\r\n\r\n", data, b"\r\n"]
        return cls(b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}")


def _line(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
