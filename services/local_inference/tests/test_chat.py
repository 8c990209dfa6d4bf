"""`/v1/chat/completions` over HTTP."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from local_inference.engine import MiniLM

Serve = Callable[..., Awaitable[TestClient[Any, Any]]]

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello there"}]


async def events(response: ClientResponse) -> list[Any]:
    assert response.status == 200
    assert response.content_type == "text/event-stream"
    lines = [line for line in (await response.text()).split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_whole_reply_with_usage(serve: Serve) -> None:
    client = await serve()
    response = await client.post(PATH, json={"model": "any", "messages": HELLO})
    body = await response.json()
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "token token token token end."},
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}


async def test_a_stream_has_role_words_reason_and_usage(serve: Serve) -> None:
    client = await serve()
    request = {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage = await events(await client.post(PATH, json=request))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == ["token", " token", " token", " token", " end."]
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["stop"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5
    assert len({chunk["id"] for chunk in [*chunks, usage]}) == 1


async def test_a_stream_and_a_whole_reply_say_the_same(serve: Serve, minilm: MiniLM) -> None:
    client = await serve(minilm)
    messages = [
        {"role": "system", "content": "[1] loop.md\nThe consumer tells the server that a message is in progress."},
        {"role": "user", "content": [{"type": "text", "text": "What does the consumer tell the server?"}]},
    ]
    whole = await (await client.post(PATH, json={"messages": messages})).json()
    chunks = await events(await client.post(PATH, json={"messages": messages, "stream": True}))
    streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert streamed == "The consumer tells the server that a message is in progress [1]."
    assert whole["choices"][0]["message"]["content"] == streamed
    assert whole["usage"]["completion_tokens"] == 15  # word pieces, punctuation on its own


async def test_max_tokens_cuts_at_a_whole_word(serve: Serve) -> None:
    client = await serve()
    body = await (await client.post(PATH, json={"messages": HELLO, "max_tokens": 2})).json()
    assert body["choices"][0]["message"]["content"] == "token token"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("stop", ["end", ["nowhere", " end"]])
async def test_stop_strings_end_the_reply_before_themselves(serve: Serve, stop: object) -> None:
    client = await serve()
    body = await (await client.post(PATH, json={"messages": HELLO, "stop": stop})).json()
    assert body["choices"][0]["message"]["content"] == "token token token token"
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "n": 2}, "n"),
        ({"messages": HELLO, "temperature": 9}, "temperature"),
    ],
)
async def test_a_wrong_field_is_named(serve: Serve, body: object, param: str) -> None:
    client = await serve()
    response = await client.post(PATH, json=body)
    error = (await response.json())["error"]
    assert response.status == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["message"].startswith(f"{param}: ")


async def test_a_body_that_is_no_json_is_refused(serve: Serve) -> None:
    client = await serve()
    response = await client.post(PATH, data=b'{"messages":')
    assert response.status == 400
    assert "Invalid JSON" in (await response.json())["error"]["message"]


async def test_a_body_over_the_limit_is_refused(serve: Serve) -> None:
    client = await serve(max_body_bytes=1024)
    response = await client.post(PATH, data=b" " * 2000)
    assert response.status == 413
    assert (await response.json())["error"]["message"] == "the body is larger than 1024 bytes"
