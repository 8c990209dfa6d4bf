"""How the endpoints report errors: in the shape of the server that each stands for."""

from enum import StrEnum
from http import HTTPStatus

from aiohttp import web
from pydantic import ValidationError


class Dialect(StrEnum):
    """Whose error bodies an endpoint sends."""

    OPENAI = "openai"
    TEI = "tei"
    COQUI = "coqui"
    FASTAPI = "fastapi"
    """Of Coqui's XTTS streaming server."""


_UNPROCESSABLE = frozenset({Dialect.TEI, Dialect.FASTAPI})


class ApiError(Exception):
    """A reply other than success.

    Args:
        status: of the HTTP response.
        message: for the client; it names the field at fault.
        kind: OpenAI's `error.type`; TEI's `error_type` is derived from the status.
        param: the field at fault.
        retry_after: seconds, sent as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.retry_after = retry_after

    @classmethod
    def invalid(cls, error: ValidationError, dialect: Dialect = Dialect.OPENAI) -> "ApiError":
        """The first fault that pydantic found: 422 from TEI and FastAPI, 400 from the others."""
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"] if param is None else f"{param}: {first['msg']}"
        return cls(422 if dialect in _UNPROCESSABLE else 400, message, param=param)

    def response(self, dialect: Dialect) -> web.Response:
        """The error as that server would send it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        body = self._body(dialect)
        return web.json_response(body, status=self.status, headers=headers)

    def _body(self, dialect: Dialect) -> dict[str, object]:
        match dialect:
            case Dialect.OPENAI:
                error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
                return {"error": error}
            case Dialect.TEI:
                return {"error": self.message, "error_type": _tei_type(self.status)}
            case Dialect.COQUI:
                return {"error": self.message}
            case Dialect.FASTAPI if self.param is None:
                return {"detail": self.message}
            case Dialect.FASTAPI:
                where = ["body", *self.param.split(".")]
                return {"detail": [{"type": self.kind, "loc": where, "msg": self.message}]}


def _tei_type(status: int) -> str:
    match status:
        case HTTPStatus.TOO_MANY_REQUESTS:
            return "overloaded"
        case HTTPStatus.SERVICE_UNAVAILABLE:
            return "unhealthy"
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.FAILED_DEPENDENCY:
            return "backend"
        case _:
            return "validation"
