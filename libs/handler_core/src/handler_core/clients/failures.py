"""How an upstream fails: what its error response says, whatever the shape, and the errors made of it."""

import html
import json
import math
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from handler_core.errors import DownstreamUnavailable

MAX_MESSAGE = 300
"""Characters of an upstream's own message that we pass on."""
_MAX_MARKUP = 4096
"""Bounds what the patterns below look at: a page's message stands at its top."""
_HIDDEN = re.compile(r"<(script|style)\b.*?</\1[^>]*>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")
_MESSAGE_KEYS = ("error", "message", "detail", "msg", "errors", "error_description", "title", "type")
_PASSING = frozenset({408, 409, 429})
"""Statuses below 500 after which the same request may succeed."""


def message_of(body: bytes) -> str:
    """The message in an error body: OpenAI's, vLLM's, TEI's and FastAPI's JSON, a web page, or plain text.

    Empty when there is nothing to say; neither bounded nor masked yet (`Failures` does both).
    """
    text = body.decode("utf-8", "replace")
    try:
        return message_in(json.loads(text))
    except (ValueError, RecursionError):
        pass
    if "<" in text:
        text = html.unescape(_TAG.sub(" ", _HIDDEN.sub(" ", text[:_MAX_MARKUP])))
    return text


def message_in(value: Any, depth: int = 4) -> str:
    """The message in a decoded error body, or in its `error` field; empty when there is none."""
    if isinstance(value, str):
        return value
    if depth == 0:
        return ""
    if isinstance(value, list):
        return "; ".join(filter(None, (message_in(item, depth - 1) for item in value[:3])))
    if not isinstance(value, dict):
        return ""
    found = next(filter(None, (message_in(value.get(key), depth - 1) for key in _MESSAGE_KEYS)), "")
    location = value.get("loc")  # FastAPI: which field of the request is wrong
    if found and isinstance(location, list):
        return f"{'.'.join(str(part) for part in location if isinstance(part, str | int))}: {found}"
    return found


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks to wait: a number, or an HTTP date (RFC 9110, 10.2.3).

    Returns None without a header that can be understood, 0 for a date gone by.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            if date.tzinfo is None:  # "-0000", which is UTC as well
                date = date.replace(tzinfo=UTC)
            seconds = date.timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, OSError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


class UpstreamError(DownstreamUnavailable):
    """An upstream failed, or refused the request.

    Attributes:
        status: the HTTP status it answered with, where that is the failure.
        outcome: as the metrics hook names it (`http.Observe`).
        transient: nothing of an answer had come yet, so the same call may be tried again at once.
    """

    def __init__(
        self,
        message: str,
        *,
        outcome: str,
        status: int | None = None,
        transient: bool = False,
        retryable: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retryable=retryable, retry_after=retry_after)
        self.status = status
        self.outcome = outcome
        self.transient = transient


class Failures:
    """Makes the errors of one upstream, their text fit to show: one printable line, bounded, secrets masked.

    Args:
        name: the upstream's.
        secrets: what an upstream may echo and nobody is to read.
    """

    __slots__ = ("_secrets", "name")

    def __init__(self, name: str, secrets: list[str]) -> None:
        self.name = name
        # Longest first, so that a secret which contains another is masked whole.
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)

    def problem(
        self, text: str, *, outcome: str = "invalid", transient: bool = False, retryable: bool = True
    ) -> UpstreamError:
        """A failure without a status: no connection, no time, or an answer that makes no sense."""
        return UpstreamError(
            f"{self.name}: {self._fit(text)}", outcome=outcome, transient=transient, retryable=retryable
        )

    def refused(self, status: int, text: str, *, after: float | None = None) -> UpstreamError:
        """A status that is no success, `text` being the upstream's own message; the status decides the rest."""
        passing = status in _PASSING or status >= 500
        return UpstreamError(
            f"{self.name}: HTTP {status}: {self._fit(text) or _phrase(status)}",
            outcome=f"http_{status}",
            status=status,
            transient=passing,
            retryable=passing,
            retry_after=after,
        )

    def _fit(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        line = " ".join("".join(char if char.isprintable() else " " for char in text[: 8 * MAX_MESSAGE]).split())
        return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no message"
