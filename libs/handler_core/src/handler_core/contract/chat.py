"""Chat: a question, its streamed answer, and the final response with sources.

Requests arrive on `ai.chat.request` or `ai.chat.user.{user}.message`. Clients subscribe to
`ai.chat.response.stream.{request_id}` and `ai.chat.response.{request_id}` before they publish.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from handler_core.contract.answer import Family, Response
from handler_core.contract.base import Message, Request

REQUEST_SUBJECT = "ai.chat.request"
USER_SUBJECT = "ai.chat.user.{user}.message"
ASK_SUBJECT = "ai.chat.ask"
"""Request/reply: one question, one `ChatResponse`, in JSON when the request is JSON."""
USER_ASK_SUBJECT = "ai.chat.user.{user}.ask"

FilterValue = str | int | float | bool


MAX_CONDITIONS = 32
MAX_VALUES = 1000


def _few(value: Any) -> Any:
    # Before the members are looked at: each wrong one costs an error, and a message holds a million.
    if isinstance(value, dict) and len(value) > MAX_CONDITIONS:
        raise ValueError(f"has more than {MAX_CONDITIONS} conditions")
    return value


def _one_error(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, list | dict) and len(value) > MAX_VALUES:
        raise ValueError(f"has more than {MAX_VALUES} values")
    try:
        return validate(value)
    except ValidationError:  # one for each kind that it might have been
        raise ValueError("has to be a string, a finite number or a boolean, a list of these, or bounds") from None


FilterTerm = Annotated[
    FilterValue | list[FilterValue] | dict[Literal["gt", "gte", "lt", "lte", "ne"], FilterValue],
    WrapValidator(_one_error),
]


def _blank(text: object) -> bool:
    return text is None or (isinstance(text, str) and not text.strip())


class Question(Request):
    """How a question is to be answered, however it was asked."""

    collection: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}$")
    """The Milvus collection to search; the handler's `COLLECTION_NAME` when absent."""
    filter: Annotated[dict[str, FilterTerm], BeforeValidator(_few)] = Field(default_factory=dict)
    """Conditions on a source's metadata, all of which must hold: a value to equal, a list to be one of,
    or bounds such as `{"gte": 2020, "lt": 2024}`; at most `MAX_CONDITIONS`, of `MAX_VALUES` values each."""
    top_k: int = Field(default=5, ge=1, le=100)
    """How many sources reach the prompt."""
    enable_rag: bool = True
    enable_reranker: bool = True
    enable_streaming: bool = False
    enable_tts: bool = False
    system_prompt: str | None = Field(default=None, max_length=65_536)
    model: str | None = Field(default=None, max_length=256)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    username: str | None = Field(default=None, max_length=256)
    premium: bool = False
    """Answer with the premium endpoint and model, where one is configured."""


class ChatRequest(Question):
    """A question in text."""

    query: str = Field(default="", max_length=65_536)
    """The question. `message` is accepted as well; the first that is not empty wins."""
    message: str = Field(default="", max_length=65_536, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _message_is_query(cls, data: Any) -> Any:
        if isinstance(data, dict) and _blank(data.get("query")) and not _blank(data.get("message")):
            return {**data, "query": data["message"]}
        return data

    @model_validator(mode="after")
    def _has_a_question(self) -> "ChatRequest":
        if not self.query.strip():
            raise ValueError("query: is empty")
        return self


class Source(Message):
    """A passage that the answer may cite as `[n]`, n being its place in the list from 1."""

    id: str
    text: str
    score: float
    """The reranker's score, or the vector search's where no reranker ran."""
    metadata: dict[str, JsonValue] = Field(default_factory=dict)


class Citation(Message):
    """A marker `[n]` that stands in the text."""

    index: int
    """n, from 1."""
    source_id: str
    start: int
    """Where in `response` the marker first stands, in characters."""


class Usage(Message):
    """Tokens, as the LLM endpoint counted them; 0 where it did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChatResponse(Response):
    """The final answer, on `ai.chat.response.{request_id}`.

    `timings` has `queue_ms`, `embed_ms`, `search_ms`, `rerank_ms`, `llm_first_token_ms`, `llm_ms` and `total_ms`;
    with a session also `recall_ms` and `remember_ms`;
    `degraded` names any of `embeddings`, `vectors`, `reranker`, `memory`, `tts`, `llm_truncated`.
    """

    response: str = ""
    sources: list[Source] = Field(default_factory=list)
    citations: list[Citation] = Field(default_factory=list)
    used_rag: bool = False
    usage: Usage = Usage()
    audio: bytes | None = None


CHAT = Family("chat.response", ChatResponse)
