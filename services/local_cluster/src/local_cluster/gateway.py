"""How servers behind grpc-gateway, Kubeflow Pipelines and the Argo server, report errors over HTTP."""

from typing import Any

INVALID_ARGUMENT, NOT_FOUND, UNAUTHENTICATED = 3, 5, 16
"""gRPC's status codes, as they stand in the bodies."""

_HTTP = {INVALID_ARGUMENT: 400, NOT_FOUND: 404, UNAUTHENTICATED: 401}
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 408: 4, 409: 10, 429: 8, 501: 12, 503: 14, 504: 4}


class GatewayError(Exception):
    """A reply other than success.

    Args:
        code: gRPC's; the HTTP status follows from it.
        message: for the client.
        context: what the server was about, put before the message as these servers do.
    """

    def __init__(self, code: int, message: str, context: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.context = context

    @property
    def status(self) -> int:
        """Of the HTTP response."""
        return _HTTP[self.code]

    def body(self) -> dict[str, Any]:
        """The error as it is sent: `details` have the message for users, without the context."""
        whole = f"{self.context}: {self.message}" if self.context else self.message
        detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": self.code, "message": self.message}
        return {"error": whole, "code": self.code, "message": whole, "details": [detail]}


def injected(status: int, message: str, retry_after: int | None) -> dict[str, Any]:
    """The body of an injected error of that HTTP status."""
    return {"error": message, "code": _CODES.get(status, 13), "message": message, "details": []}
