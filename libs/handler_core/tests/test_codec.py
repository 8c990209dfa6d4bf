"""The codec on what peers send: round trips, and a named refusal of everything malformed."""

import base64
import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from handler_core.codec import decode, encode, encode_json, is_text, unpack, unpack_either, validate
from handler_core.contract.answer import StreamEvent
from handler_core.contract.base import Message
from handler_core.contract.chat import MAX_VALUES, ChatRequest, ChatResponse, Citation, Source, Usage
from handler_core.contract.control import CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.errors import InvalidRequest

MODELS = (ChatRequest, ChatResponse, StreamEvent, CancelRequest)

tokens = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63), 2**63 - 1)
terms = st.text() | integers | finite | st.booleans()
maybe = st.none()
requests = st.builds(
    ChatRequest,
    query=st.text(min_size=1).filter(str.strip),
    request_id=maybe | tokens,
    session_id=maybe | tokens,
    user_id=maybe | tokens,
    deadline_ms=maybe | st.integers(1, 86_400_000),
    collection=maybe | st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,254}", fullmatch=True),
    filter=st.dictionaries(
        st.text(max_size=10),
        terms | st.lists(terms, max_size=3) | st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte", "ne"]), terms),
        max_size=4,
    ),
    top_k=st.integers(1, 100),
    enable_rag=st.booleans(),
    enable_streaming=st.booleans(),
    system_prompt=maybe | st.text(),
    temperature=maybe | st.floats(0, 2),
    max_tokens=maybe | st.integers(1, 1_000_000),
    premium=st.booleans(),
)
failures = st.builds(ErrorInfo, type=st.sampled_from(ErrorType), message=st.text(), retryable=st.booleans())
values = st.recursive(
    maybe | st.booleans() | integers | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
responses = st.builds(
    ChatResponse,
    request_id=tokens,
    response=st.text(),
    sources=st.lists(
        st.builds(Source, id=st.text(), text=st.text(), score=finite, metadata=st.dictionaries(st.text(), values)),
        max_size=2,
    ),
    citations=st.lists(
        st.builds(Citation, index=st.integers(1, 9), source_id=st.text(), start=st.integers(0, 9)), max_size=2
    ),
    usage=st.builds(Usage, prompt_tokens=integers),
    timings=st.dictionaries(st.text(), finite),
    degraded=st.lists(st.text(), max_size=2),
    success=st.booleans(),
    error=maybe | failures,
    audio=maybe | st.binary(),
)
events = st.builds(
    StreamEvent,
    request_id=tokens,
    seq=st.integers(0, 2**53),
    attempt=st.integers(1, 99),
    type=st.sampled_from(["chunk", "restart", "done", "error"]),
    content=st.text(),
    done=st.booleans(),
    error=maybe | failures,
    timestamp=finite,
)
anything = st.recursive(
    maybe
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary())
    | st.builds(msgpack.Timestamp, st.integers(-(2**63), 2**63 - 1), st.integers(0, 999_999_999)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.binary() | st.integers(-9, 9) | maybe, inner, max_size=4)
    ),
    max_leaves=20,
)
fields = st.sampled_from([*ChatRequest.model_fields, *ChatResponse.model_fields, *StreamEvent.model_fields])


def refused(data: bytes, model: type[Any] = ChatRequest) -> str:
    """The message with which `data` is refused."""
    with pytest.raises(InvalidRequest) as caught:
        decode(data, model)
    assert caught.value.stage == "decode"
    assert caught.value.retryable is False
    message = caught.value.message
    assert message.isprintable()
    assert len(message) < 1000
    return message


def verdict(decoding: Callable[[], object]) -> str:
    """`decoded`, or the message of the refusal; any other exception is a failure."""
    try:
        decoding()
    except InvalidRequest as error:
        return error.message
    return "decoded"


def packed(**body: Any) -> bytes:
    return bytes(msgpack.packb({"query": "q", **body}))


# -- round trips


@given(requests)
def test_a_request_survives_the_wire(request: ChatRequest) -> None:
    assert decode(encode(request), ChatRequest) == request


@given(responses)
def test_a_response_survives_the_wire(response: ChatResponse) -> None:
    assert decode(encode(response), ChatResponse) == response


@given(events)
def test_an_event_survives_the_wire(event: StreamEvent) -> None:
    assert decode(encode(event), StreamEvent) == event


@given(requests, st.dictionaries(st.text().map("new_{}".format), anything))
def test_fields_of_a_newer_peer_are_ignored(request: ChatRequest, new: dict[str, Any]) -> None:
    body = msgpack.unpackb(encode(request)) | new
    try:
        data = msgpack.packb(body)
        msgpack.unpackb(data)  # a map key that is no string makes even the unknown part unreadable
    except ValueError:
        return
    assert decode(data, ChatRequest) == request


def test_what_an_older_peer_leaves_out_has_its_default() -> None:
    assert decode(msgpack.packb({"query": "q"}), ChatRequest) == ChatRequest(query="q")
    request = ChatRequest(query="q")
    assert (request.top_k, request.enable_rag, request.enable_reranker) == (5, True, True)
    assert (request.enable_streaming, request.enable_tts, request.premium) == (False, False, False)


def test_nil_counts_as_left_out() -> None:
    body = dict.fromkeys(ChatRequest.model_fields) | {"query": "q"}
    assert decode(msgpack.packb(body), ChatRequest) == ChatRequest(query="q")


def test_absent_fields_are_not_sent() -> None:
    assert "audio" not in unpack(encode(ChatResponse()))
    assert unpack(encode(ChatResponse()))["response"] == ""


def test_numbers_keep_their_kind_in_a_filter() -> None:
    given = {"a": 1, "b": 1.0, "c": True, "d": "1", "e": [1, True, 1.5, "x"], "f": {"gte": 2020, "lt": 2024.5}}
    request = decode(packed(filter=given), ChatRequest)
    assert json.dumps(request.filter) == json.dumps(given)


def test_half_a_surrogate_pair_from_an_upstream_is_sent_as_a_question_mark() -> None:
    assert unpack(encode(ChatResponse(response="a\ud83db")))["response"] == "a?b"


# -- bytes that are no request


@given(st.binary())
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    for model in MODELS:
        assert verdict(lambda: decode(data, model)).isprintable()  # noqa: B023


@given(anything)
def test_arbitrary_values_are_decoded_or_refused(value: Any) -> None:
    data = msgpack.packb(value)
    for model in MODELS:
        assert verdict(lambda: decode(data, model)).isprintable()  # noqa: B023


@given(st.dictionaries(fields, anything))
def test_arbitrary_values_in_known_fields_are_decoded_or_refused(body: dict[str, Any]) -> None:
    for model in MODELS:
        assert verdict(lambda: validate(body, model)).isprintable()  # noqa: B023


@given(requests, st.data())
def test_a_truncated_request_is_refused(request: ChatRequest, data: st.DataObject) -> None:
    whole = encode(request)
    refused(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(requests, st.binary(min_size=1))
def test_trailing_bytes_are_refused(request: ChatRequest, rest: bytes) -> None:
    assert "extra data" in refused(encode(request) + rest)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "body: is not MessagePack"),
        (b"\xc1", "body: is not MessagePack"),
        (b"\xff" * 100, "body: is not MessagePack"),
        (b'{"query": "q"}', "body: is JSON; it has to be a MessagePack map"),
        (b' \n{"query": "q"}', "body: is JSON; it has to be a MessagePack map"),
        (b'[{"query": "q"}]', "body: is JSON; it has to be a MessagePack map"),
        (b"\x90", "body: has to be a map, is an array"),
        (b"\xc0", "body: has to be a map, is nil"),
        (b"\x07", "body: has to be a map, is an integer"),
        (b"\xc3", "body: has to be a map, is a boolean"),
        (b"\xcb" + bytes(8), "body: has to be a map, is a float"),
        (b"\xa1a", "body: has to be a map, is a string"),
        (b"\xc4\x01a", "body: has to be a map, is binary"),
        (b"\xd4\x05a", "body: has to be a map, is an extension type"),
        (b"\xd6\xff" + bytes(4), "body: has to be a map, is Timestamp"),
        (b"\x81\x01\x02", "body: is not MessagePack (int is not allowed for map key"),
        (b"\x81\xc4\x05query\xa1q", "body: its keys have to be strings"),
        (b"\x81\xa5query\xa2\xff\xfe", "body: is not MessagePack ('utf-8' codec"),
        (b"\x81\xa1\xff\x01", "body: is not MessagePack ('utf-8' codec"),
        (b"\x80", "query: is empty"),
    ],
)
def test_each_malformed_body_is_told_apart(data: bytes, message: str) -> None:
    assert refused(data).startswith(message)


@pytest.mark.parametrize(
    "header", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"], ids=["array", "map", "str", "bin", "ext"]
)
@pytest.mark.parametrize("prefix", [b"", b"\x81\xa5query", b"\x81\xa6filter\x81\xa1a"])
def test_a_huge_declared_length_costs_no_memory(header: bytes, prefix: bytes) -> None:
    data = prefix + header + b"\xff\xff\xff\xff" + b"\x01" * 100
    tracemalloc.start()
    refused(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["arrays", "maps"])
@pytest.mark.parametrize("levels", [500, 5_000, 100_000])
def test_deep_nesting_is_survived(opening: bytes, levels: int) -> None:
    deep = opening * levels + b"\x01"
    for data in (deep, b"\x82\xa5query\xa1q\xa6filter" + deep, b"\x82\xa5query\xa1q\xa6unread" + deep):
        assert verdict(lambda: decode(data, ChatRequest))  # noqa: B023


def test_a_repeated_key_counts_last() -> None:
    assert decode(b"\x82\xa5query\xa1a\xa5query\xa1b", ChatRequest).query == "b"


# -- fields that are wrong

LONG = "x" * 5_000


NO_TOKENS: list[Any] = ["", "a.b", "*", ">", "a b", "a\n", "\na", "é", "a\x00", "a/b", LONG, 5, ["a"], {"a": 1}]
WRONG: dict[str, list[Any]] = {
    "request_id": NO_TOKENS,
    "session_id": NO_TOKENS,
    "user_id": NO_TOKENS,
    "query": ["", "  \n", 5, 1.5, True, [], {}, "x" * 70_000],
    "message": [5, ["a"], "x" * 70_000],
    "deadline_ms": [0, -1, 86_400_001, 1.5, math.nan, math.inf, "soon", 2**63, []],
    "top_k": [0, 101, -5, 2**63, 2.5, "many", math.nan, {}],
    "temperature": [-0.1, 2.1, math.nan, math.inf, "hot", []],
    "max_tokens": [0, -1, 1_000_001, math.inf],
    "collection": ["", "a-b", "1a", "a b", "a\n", LONG, 5],
    "enable_rag": ["perhaps", 2, [], {}],
    "response_subject": [LONG, 5],
    "username": [LONG, 5],
    "model": [LONG],
    "system_prompt": ["x" * 70_000],
    "filter": ["a = 1", ["a"], 5, {str(n): n for n in range(33)}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_field_is_named_and_its_value_is_not_repeated(field: str, value: Any) -> None:
    message = refused(packed(**{field: value}))
    assert message.startswith(f"{field}: ")
    assert ";" not in message
    assert "xxx" not in message
    assert len(message) < 120


@pytest.mark.parametrize(
    "term",
    [
        {"gte": [1]}, {"$gt": 1}, {"between": 5}, {"gt": {"gt": 1}}, {"lt": math.nan}, [[1]], [{"a": 1}], math.nan,
        [math.inf], [None], b"\xff", list(range(MAX_VALUES + 1)), {str(n): n for n in range(MAX_VALUES + 1)},
        msgpack.Timestamp(1), msgpack.ExtType(5, b"HUSH"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_wrong_condition_is_named_once(term: Any) -> None:
    message = refused(packed(filter={"year": term}))
    assert message.startswith("filter.year: has ")
    assert ";" not in message
    assert "HUSH" not in message


def test_what_is_wrong_with_a_huge_filter_costs_one_error() -> None:
    data = packed(filter={str(n): [[]] for n in range(50_000)})
    tracemalloc.start()
    assert refused(data) == "filter: has more than 32 conditions"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20  # what unpacking takes; an error for each member took 300 MB


def test_three_wrong_fields_are_named_and_the_rest_counted() -> None:
    message = refused(packed(top_k=0, temperature=9, max_tokens=0, deadline_ms=0, enable_rag=[]))
    assert len(message.split("; ")) == 4
    assert message.endswith("; and 2 more")


def test_a_key_with_control_characters_is_shown_harmlessly() -> None:
    message = refused(packed(filter={"a\r\nb\x1b[31m" + LONG: [[1]]}))
    assert message.startswith("filter.a??b?[31m")


@pytest.mark.parametrize("model", MODELS)
def test_models_cannot_be_changed(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"] is True


# -- JSON


@given(st.one_of(requests, responses, events))
def test_a_model_survives_json_but_for_its_bytes(message: Message) -> None:
    body, text = unpack_either(encode_json(message))
    assert text
    if (audio := body.get("audio")) is not None:
        body["audio"] = base64.b64decode(audio, validate=True)
    assert validate(body, type(message)) == decode(encode(message), type(message))


@given(st.one_of(requests, responses, events))
def test_messagepack_is_never_taken_for_json(message: Message) -> None:
    packed = encode(message)
    assert not is_text(packed)
    assert unpack_either(packed) == (unpack(packed), False)


def test_json_leaves_out_what_is_none_and_keeps_every_script() -> None:
    message = ChatResponse(request_id="q1", response="grüße 日本 😀 \x00", audio=b"\xfb\xff")
    body = json.loads(encode_json(message))
    assert "error" not in body
    assert (body["response"], body["audio"]) == (message.response, "+/8=")
    assert "日本".encode() in encode_json(message)


def test_half_a_surrogate_pair_becomes_a_question_mark_in_json_too() -> None:
    assert json.loads(encode_json(ChatResponse.model_construct(response="a\ud800b")))["response"] == "a?b"


@pytest.mark.parametrize("data", [b"", b" \r\n\t", b"{}", b" {} "])
def test_an_empty_body_is_an_empty_object(data: bytes) -> None:
    assert unpack_either(data) == ({}, True)


def test_of_a_repeated_key_the_last_counts() -> None:
    assert unpack_either(b'{"a": 1, "b": 2, "a": 3}') == ({"a": 3, "b": 2}, True)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"a": 1', "body: is not JSON (EOF while parsing an object at line 1 column 7)"),
        (b'{\n"a": 1,\n}', "body: is not JSON (trailing comma at line 3 column 1)"),
        (b"{'a': 1}", "body: is not JSON (key must be a string at line 1 column 2)"),
        (b'{"a": NaN}', "body: is not JSON (expected value at line 1 column 7)"),
        (b'{"a": Infinity}', "body: is not JSON (expected value at line 1 column 7)"),
        (b'{"a": -Infinity}', "body: is not JSON (invalid number at line 1 column 8)"),
        (b'{"a": "\xff"}', "body: is not JSON (invalid unicode code point at line 1 column 8)"),
        (b'{"a": "\\ud800"}', "body: is not JSON (unexpected end of hex escape at line 1 column 14)"),
        (b'{"a":' * 100_000, "body: is not JSON (recursion limit exceeded at line 1 column 1006)"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "body: is not JSON (number out of range at line 1 column 4308)"),
        (b"what is light?", "body: is not a JSON object or a MessagePack map (expected value at line 1 column 1)"),
        (b"[]", "body: has to be an object, is an array"),
        (b'"a"', "body: has to be an object, is a string"),
        (b"7", "body: has to be an object, is a number"),
        (b"7.5", "body: has to be an object, is a number"),
        (b"true", "body: has to be an object, is a boolean"),
        (b"null", "body: has to be an object, is null"),
    ],
    ids=lambda value: ascii(value[:12]),
)
def test_what_is_not_json_is_refused_and_says_where(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        unpack_either(data)
    assert (caught.value.message, caught.value.stage) == (problem, "decode")


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_beyond_every_float_is_refused_by_its_field(number: str) -> None:
    body, _ = unpack_either(f'{{"query": "?", "temperature": {number}, "filter": {{"a": {number}}}}}'.encode())
    with pytest.raises(
        InvalidRequest, match=r"filter\.a: has to be a string, a finite number .*; temperature: .* finite"
    ):
        validate(body, ChatRequest)


@given(st.binary() | st.text().map(str.encode) | st.recursive(values, st.lists).map(lambda v: json.dumps(v).encode()))
def test_any_body_is_an_object_or_refused(data: bytes) -> None:
    assert verdict(lambda: validate(unpack_either(data)[0], ChatRequest)).isprintable()
