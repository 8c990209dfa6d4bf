"""The requests that the endpoints read. Unknown fields are ignored, as the servers they stand for do."""

from typing import Annotated, Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, Field, StrictStr, ValidationError

from local_inference.errors import ApiError, Dialect


def _text_of_parts(content: Any) -> Any:
    """OpenAI's `content`: a string, nothing, or a list of text parts."""
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise ValueError("only parts of type text are supported")
    return "\n".join(part["text"] for part in content)


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _none_or_some(value: Any) -> Any:
    return [] if value is None else _one_or_many(value)


def _text_of_document(document: Any) -> Any:
    return document.get("text") if isinstance(document, dict) else document


Text = Annotated[StrictStr, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1), BeforeValidator(_one_or_many)]
Document = Annotated[Text, BeforeValidator(_text_of_document)]


class ChatMessage(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[StrictStr, BeforeValidator(_text_of_parts)] = ""


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """`POST /v1/chat/completions`. Any `model` is accepted, and temperature has no effect."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: Annotated[list[Text], Field(max_length=16), BeforeValidator(_none_or_some)] = Field(default_factory=list)
    temperature: float | None = Field(default=None, ge=0, le=2)
    n: Literal[1] | None = 1

    @property
    def token_limit(self) -> int | None:
        """The newer name counts first."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class EmbeddingsRequest(BaseModel):
    """`POST /v1/embeddings`."""

    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class EmbedRequest(BaseModel):
    """TEI's `POST /embed`."""

    inputs: Texts
    normalize: bool = True
    truncate: bool | None = None


class RerankRequest(BaseModel):
    """TEI's `POST /rerank`."""

    query: Text
    texts: Annotated[list[StrictStr], Field(min_length=1)]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool | None = None


class CohereRerankRequest(BaseModel):
    """`POST /v1/rerank` and `/v2/rerank`, as Cohere, Jina and vLLM have it."""

    query: Text
    documents: Annotated[list[Document], Field(min_length=1, max_length=1000)]
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False


T = TypeVar("T", bound=BaseModel)


async def read(request: web.Request, schema: type[T], dialect: Dialect = Dialect.OPENAI) -> T:
    """The request's body, checked.

    Raises:
        ApiError: it is not JSON, or a field is wrong; the message names the field.
    """
    try:
        return schema.model_validate_json(await request.read())
    except ValidationError as error:
        raise ApiError.invalid(error, dialect) from None
