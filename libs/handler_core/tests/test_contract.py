"""The wire contract: what stands for what, and subjects."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from handler_core.contract.answer import Response, StreamEvent
from handler_core.contract.chat import CHAT, ChatRequest, ChatResponse
from handler_core.contract.control import CANCEL_SUBJECT, CancelRequest
from handler_core.contract.errors import ErrorInfo, ErrorType


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({"query": "q"}, "q"),
        ({"message": "m"}, "m"),
        ({"query": "q", "message": "m"}, "q"),
        ({"query": "", "message": "m"}, "m"),
        ({"query": " \n", "message": "m"}, "m"),
        ({"query": None, "message": "m"}, "m"),
        ({"query": "q", "message": None}, "q"),
        ({"query": "q", "message": ""}, "q"),
        ({"query": " q ", "message": "m"}, " q "),
    ],
)
def test_the_first_of_query_and_message_that_is_not_empty_counts(body: dict[str, object], query: str) -> None:
    request = ChatRequest.model_validate(body)
    assert request.query == query
    assert "message" not in request.model_dump()


@pytest.mark.parametrize("body", [{}, {"query": ""}, {"message": " "}, {"query": None, "message": None}])
def test_a_request_without_a_question_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="query: is empty"):
        ChatRequest.model_validate(body)


@given(st.text())
def test_only_plain_ids_become_subject_tokens(text: str) -> None:
    plain = 1 <= len(text) <= 64 and all(char.isascii() and (char.isalnum() or char in "_-") for char in text)
    try:
        assert CancelRequest(request_id=text).request_id == text
        accepted = True
    except ValidationError:
        accepted = False
    assert accepted is plain


def test_the_subjects_of_an_answer() -> None:
    assert CHAT.response_subject("q1") == "ai.chat.response.q1"
    assert CHAT.stream_subject("q1") == "ai.chat.response.stream.q1"
    assert CHAT.response is ChatResponse
    assert CANCEL_SUBJECT.format(request_id="q1") == "ai.turn.cancel.q1"


def test_the_error_types_are_those_of_the_design() -> None:
    assert {str(kind) for kind in ErrorType} == {
        "validation_error", "deadline_exceeded", "canceled", "not_found", "downstream_unavailable", "busy", "transient",
        "internal",
    }  # fmt: skip


def test_a_response_says_that_it_failed() -> None:
    error = ErrorInfo(type=ErrorType.BUSY, message="later", retryable=True)
    response = Response.model_validate({"success": False, "error": error.model_dump()})
    assert response.error == error


@pytest.mark.parametrize("missing", ["request_id", "seq", "type", "timestamp"])
def test_an_event_needs_what_clients_order_it_by(missing: str) -> None:
    event = {"request_id": "q1", "seq": 1, "type": "chunk", "timestamp": 1.0}
    del event[missing]
    with pytest.raises(ValidationError, match=missing):
        StreamEvent.model_validate(event)


@pytest.mark.parametrize("timestamp", [float("nan"), float("inf")])
def test_times_are_finite(timestamp: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        StreamEvent(request_id="q1", seq=1, type="chunk", timestamp=timestamp)
