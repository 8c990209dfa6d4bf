"""`POST /v1/chat/completions`, whole or streamed word by word."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from local_inference.accounting import FAULTS, drop_connection
from local_inference.engine import Engine
from local_inference.faults import Fault
from local_inference.keys import ENGINE
from local_inference.prompt import Turn
from local_inference.schemas import ChatRequest, read

_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply cut to what was asked for."""

    words: list[str]
    """With the white space before each; together they are the text."""
    tokens: int
    finish_reason: str
    """`stop`, or `length` where the token limit cut it."""


async def completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    body = await read(request, ChatRequest)
    engine = request.app[ENGINE]
    turns = [Turn(message.role, message.content) for message in body.messages]
    reply = await _cut(await engine.answer(turns), body, engine)
    completion = _Completion(engine.chat_model)
    fault = request.app[FAULTS].of("chat")
    if body.stream:
        usage = await _usage(engine, turns, reply) if body.include_usage else None
        return await _stream(request, completion, reply, usage, fault)
    if fault.cut_after_tokens is not None:
        return drop_connection(request)
    return web.json_response(completion.whole(reply, await _usage(engine, turns, reply)))


async def _cut(text: str, body: ChatRequest, engine: Engine) -> Reply:
    """End the text before the first stop string and within the token limit, at a whole word."""
    stops = [position for stop in body.stop if (position := text.find(stop)) >= 0]
    words = _WORD.findall(text[: min(stops)] if stops else text)
    counts = await engine.count_tokens(words) if words else []
    total = 0
    for index, count in enumerate(counts):
        if body.token_limit is not None and total + count > body.token_limit:
            return Reply(words[:index], total, "length")
        total += count
    return Reply(words, total, "stop")


async def _usage(engine: Engine, turns: Sequence[Turn], reply: Reply) -> dict[str, int]:
    prompt = sum(await engine.count_tokens([turn.content for turn in turns]))
    return {"prompt_tokens": prompt, "completion_tokens": reply.tokens, "total_tokens": prompt + reply.tokens}


class _Completion:
    """The JSON of one completion."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        # Encoding the whole chunk anew for each word would be a third of what a stream costs.
        self._before_word, self._after_word = self.chunk({"content": ""}).split(b'""')

    def whole(self, reply: Reply, usage: dict[str, int]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(reply.words)}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return self._json("chat.completion", [choice]) | {"usage": usage}

    def chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self._event(self._json("chat.completion.chunk", [choice]))

    def word_chunk(self, word: str) -> bytes:
        return self._before_word + json.dumps(word, ensure_ascii=False).encode() + self._after_word

    def usage_chunk(self, usage: dict[str, int]) -> bytes:
        return self._event(self._json("chat.completion.chunk", []) | {"usage": usage})

    def _json(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, "choices": choices}

    @staticmethod
    def _event(data: dict[str, Any]) -> bytes:
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


async def _stream(
    request: web.Request, completion: _Completion, reply: Reply, usage: dict[str, int] | None, fault: Fault
) -> web.StreamResponse:
    """Server-sent events, one write for each word so that each leaves at once."""
    headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write(completion.chunk({"role": "assistant", "content": ""}))
    for sent, word in enumerate(reply.words):
        if sent == fault.cut_after_tokens:
            drop_connection(request)
            return response
        if fault.token_delay_ms and sent:
            await asyncio.sleep(fault.token_delay_ms / 1000)
        await response.write(completion.word_chunk(word))
    await response.write(completion.chunk({}, reply.finish_reason))
    if usage is not None:
        await response.write(completion.usage_chunk(usage))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response
