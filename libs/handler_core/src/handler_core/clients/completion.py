"""Reading a chat completion, streamed or whole: bytes in, deltas out, no I/O."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from handler_core.clients.failures import Failures, UpstreamError, message_in, message_of
from handler_core.clients.sse import Event, EventParser, EventTooLarge
from handler_core.contract.chat import Usage

MAX_ANSWER = 64 * 2**20
"""Bytes that an answer sent whole, by a server that does not stream, may have."""
_BLANK = b" \t\r\n"
_decode = json.JSONDecoder().raw_decode
_MAX_HEAD = 4096


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. The last one, and only it, has a `finish_reason`."""

    text: str = ""
    reasoning: str = ""
    """What a reasoning model thinks before it answers; no part of the answer."""
    finish_reason: str | None = None
    """The upstream's (`stop`, `length`, `content_filter`, …), or `truncated` when the stream ended without one."""
    usage: Usage | None = None


class CompletionReader:
    """Takes the body of a completion in chunks cut anywhere.

    Chat completion chunks as server-sent events, or one JSON completion from a server that ignores `stream`.

    Attributes:
        done: the end of the answer is seen; what may follow in the body does not matter.
        finish_reason: set once the upstream gave one.
        usage: the last that the upstream told.
    """

    def __init__(self, failures: Failures) -> None:
        self.done = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self._failures = failures
        self._parser = EventParser()
        self._head: bytes | None = b""
        """What came before the kind of the body is known; None from then on."""
        self._whole: bytearray | None = None
        self._answered = False
        self._high_surrogate = ""

    def feed(self, chunk: bytes) -> Iterator[Delta]:
        """The deltas in `chunk`, which is taken in as they are read: read them to the end.

        Raises:
            UpstreamError: after the deltas before it: the upstream reports an error, or sends what is no completion.
        """
        if self._head is not None:
            chunk = self._recognise(self._head + chunk)
        if self._whole is not None:
            self._whole += chunk
            if len(self._whole) > MAX_ANSWER:
                raise self._failures.problem(f"answered with more than {MAX_ANSWER} bytes", retryable=False)
            return
        try:
            events = self._parser.feed(chunk)
        except EventTooLarge as error:
            raise self._failures.problem(f"sent {error}", retryable=False) from None
        yield from self._deltas(events)

    def end(self) -> Iterator[Delta]:
        """The deltas that show only at the end of the body; read and raises as `feed`."""
        self.done = True
        if self._whole is not None:
            yield from self._deltas([Event(self._whole.decode("utf-8", "replace"))])
        else:
            event = self._parser.flush()
            if event is not None and _is_json(event.data):  # else cut off, and nothing of it is known
                yield from self._deltas([event])

    def last(self) -> Delta:
        """The closing delta.

        Raises:
            UpstreamError: there was no answer at all.
        """
        if not self._answered and self.finish_reason is None:
            raise self._failures.problem("the stream ended without an answer")
        return Delta(finish_reason=self.finish_reason or "truncated", usage=self.usage)

    def _recognise(self, head: bytes) -> bytes:
        """Tell at the first byte that is no blank: `{` begins a JSON body, but no line of an event stream."""
        text = head.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)
        if not text and len(head) <= _MAX_HEAD:
            self._head = head
            return b""
        self._head = None
        if text.startswith(b"{"):
            self._whole = bytearray()
            return text
        return head

    def _deltas(self, events: list[Event]) -> Iterator[Delta]:
        for event in events:
            data = event.data.strip()
            if data == "[DONE]":
                self.done = True
                return
            if not data:
                continue
            try:
                if event.event == "error":
                    raise self._failures.problem(f"reported an error: {message_of(data.encode())}")
                delta = self._delta(data)
            except UpstreamError:
                if self.finish_reason is None:
                    raise
                self.done = True  # the answer is whole: what is wrong with its tail does no harm
                return
            if delta.text or delta.reasoning:
                self._answered = True
                yield delta

    def _delta(self, data: str) -> Delta:
        try:
            chunk, end = _decode(data)  # half the time of `loads`, and this runs for each token
            if end != len(data):
                raise ValueError(end)
        except (ValueError, RecursionError):
            raise self._failures.problem(f"sent what is no JSON: {data[:200]}") from None
        if not isinstance(chunk, dict):
            raise self._failures.problem(f"sent what is no completion: {data[:200]}")
        if "choices" not in chunk or "error" in chunk or chunk.get("object") == "error":
            self._raise_reported(chunk)
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = _usage(usage)
        choices = chunk.get("choices") or []  # empty with the usage, and in Azure's first chunk
        try:
            choice: dict[str, Any] = choices[0] if choices else {}
            if choice.get("index"):  # of several choices, in any order, the first is ours
                choice = next((item for item in choices if item.get("index") in {None, 0}), {})
            message = choice.get("delta") or choice.get("message") or {}
            text = self._joined(_text(message.get("content")))
            thought = message.get("reasoning_content") or message.get("reasoning")
            reasoning = _sound(_text(thought)) if thought else ""
        except (AttributeError, TypeError):  # a list, number or string where an object is due
            raise self._failures.problem(f"sent what is no completion: {data[:200]}") from None
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason = reason
        return Delta(text=text, reasoning=reasoning)

    def _raise_reported(self, chunk: dict[str, Any]) -> None:
        """Raise an error reported inside a 200, in any of the forms that error bodies have."""
        error = chunk.get("error")
        flat = chunk.get("object") == "error" or ("choices" not in chunk and ("message" in chunk or "detail" in chunk))
        if not error and not flat:
            return
        code = error.get("code") if isinstance(error, dict) else chunk.get("code")
        text = message_in(chunk)
        if isinstance(code, int) and 400 <= code < 600:
            raise self._failures.refused(code, text)
        raise self._failures.problem(f"reported an error: {text}")

    def _joined(self, text: str) -> str:
        """`text` with a surrogate pair made whole that a server cut between two chunks."""
        if not text:
            return ""
        text, self._high_surrogate = self._high_surrogate + text, ""
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._high_surrogate = text[:-1], text[-1]
        return _sound(text)


def _sound(text: str) -> str:
    """`text` as valid Unicode: JSON escapes can hold halves of surrogate pairs, which no encoder takes."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _text(content: Any) -> str:
    """Content as a string: itself, or the text of its parts. TypeError or AttributeError when it is neither."""
    if not content:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def _is_json(data: str) -> bool:
    if data.strip() == "[DONE]":
        return True
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _usage(usage: dict[str, Any]) -> Usage:
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=_count(usage.get("total_tokens")) or prompt + completion,
    )


def _count(value: Any) -> int:
    """A count of tokens; 0 for what cannot be one. The bound is where a float stops being exact."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**53 else 0
