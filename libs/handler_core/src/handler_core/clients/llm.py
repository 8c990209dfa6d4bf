"""Chat completions from an OpenAI-compatible endpoint, streamed."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from handler_core.clients.completion import CompletionReader, Delta
from handler_core.clients.failures import UpstreamError
from handler_core.clients.http import Upstream
from handler_core.clients.response import Response
from handler_core.contract.chat import Usage
from handler_core.deadline import Deadline
from handler_core.errors import HandlerError
from handler_core.tracing import Value, span

_PATH = "/v1/chat/completions"
_TAIL_TIMEOUT = 2.0
"""How long to wait for usage and `[DONE]` once the answer itself is complete."""


ObserveTokens = Callable[[str, float | None, int, int], None]
"""`observe(upstream, seconds to the first token, prompt tokens, completion tokens)`."""


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `usage` is all zeros where the upstream did not tell."""

    text: str
    usage: Usage
    finish_reason: str


class LLM:
    """An OpenAI-compatible chat endpoint.

    Args:
        upstream: where `/v1/chat/completions` is.
        model: what to ask for when a call names none.
        idle_timeout: seconds without a byte, before the first as between two, after which a stream counts as dead.
        observe: metrics hook, called once for each completion that began to answer.
    """

    def __init__(
        self, upstream: Upstream, model: str, *, idle_timeout: float = 60.0, observe: ObserveTokens | None = None
    ) -> None:
        self.upstream = upstream
        self.model = model
        self.idle_timeout = idle_timeout
        self._observe = observe
        self._asks_usage = True

    async def stream(
        self,
        messages: Sequence[PromptMessage],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] | None = None,
        deadline: Deadline,
    ) -> AsyncGenerator[Delta, None]:
        """The answer as it is made; the last delta carries `finish_reason` and, where told, `usage`.

        A stream that ends without a finish reason but with text gives `finish_reason="truncated"`. Nothing is
        repeated after the first bytes. Close the generator (`contextlib.aclosing`) to abort: the upstream's connection
        is closed at once.

        Raises:
            DownstreamUnavailable: the upstream failed, refused, broke off, reported an error inside the stream, or
                ended without any answer.
            DeadlineExceeded: the deadline came first.
        """
        options = {"temperature": temperature, "max_tokens": max_tokens, "stop": list(stop) if stop else None}
        body = {
            "model": model or self.model,
            "messages": [asdict(message) for message in messages],
            "stream": True,
            **{name: value for name, value in options.items() if value is not None},
        }
        reader = CompletionReader(self.upstream.failures)
        started, first_token = time.perf_counter(), None
        # A model that the request named is in the attributes only: span names must not be anybody's to choose.
        with span(
            "chat" if model else f"chat {self.model}", "client", _request_attributes(body, self.upstream)
        ) as call:
            try:
                async with self._open(body, deadline) as response:
                    while not reader.done:
                        chunk = await self._read(response, reader)
                        for delta in reader.feed(chunk) if chunk else reader.end():
                            if first_token is None:
                                first_token = time.perf_counter() - started
                                call.event("gen_ai.first_token")
                            yield delta
                    await response.drain()
                    last = reader.last()
            finally:
                usage = reader.usage or Usage()
                call.set(_response_attributes(usage, reader.finish_reason))
                if self._observe is not None and first_token is not None:
                    self._observe(self.upstream.name, first_token, usage.prompt_tokens, usage.completion_tokens)
        yield last

    async def complete(
        self,
        messages: Sequence[PromptMessage],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] | None = None,
        deadline: Deadline,
    ) -> Completion:
        """The whole answer at once, by the same stream; arguments and errors as for `stream`."""
        stream = self.stream(
            messages, model=model, temperature=temperature, max_tokens=max_tokens, stop=stop, deadline=deadline
        )
        parts = []
        delta = Delta()
        async with aclosing(stream):
            async for delta in stream:
                parts.append(delta.text)
        return Completion("".join(parts), delta.usage or Usage(), delta.finish_reason or "truncated")

    @asynccontextmanager
    async def _open(self, body: dict[str, Any], deadline: Deadline) -> AsyncIterator[Response]:
        """The response stream, asking for usage unless this upstream was found to refuse that field."""
        async with AsyncExitStack() as stack:

            async def opened(body: dict[str, Any]) -> Response:
                context = self.upstream.stream(_PATH, body, deadline=deadline, timeout=self.idle_timeout)
                return await stack.enter_async_context(context)

            if self._asks_usage:
                try:
                    response = await opened({**body, "stream_options": {"include_usage": True}})
                except UpstreamError as error:
                    if error.status not in {400, 422}:
                        raise
                    # Refused for this field or for the prompt; without the field it will show which.
                    response = await opened(body)
                    self._asks_usage = False
            else:
                response = await opened(body)
            yield response

    async def _read(self, response: Response, reader: CompletionReader) -> bytes:
        try:
            return await response.read(self.idle_timeout if reader.finish_reason is None else _TAIL_TIMEOUT)
        except HandlerError:
            if reader.finish_reason is None:
                raise
            return b""  # the answer is whole, only its tail is missing


def _request_attributes(body: dict[str, Any], upstream: Upstream) -> dict[str, Value]:
    """What OpenTelemetry's conventions for generative AI ask for; `openai` names the protocol that is spoken."""
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": body["model"],
        **upstream.place,
    }
    for name in ("temperature", "max_tokens"):
        if name in body:
            attributes[f"gen_ai.request.{name}"] = body[name]
    return attributes


def _response_attributes(usage: Usage, finish_reason: str | None) -> dict[str, Value]:
    reasons = (finish_reason,) if finish_reason else ()
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.response.finish_reasons": reasons,
    }
