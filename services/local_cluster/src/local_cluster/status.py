"""Refusals as the Kubernetes API tells them: a `Status` object, with the words that its own server uses."""

from collections.abc import Mapping
from typing import Any, Protocol

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Named(Protocol):
    """What a refusal tells of a resource."""

    @property
    def group(self) -> str: ...
    @property
    def plural(self) -> str: ...
    @property
    def kind(self) -> str: ...


class StatusError(Exception):
    """A request that the API refuses.

    Args:
        code: the HTTP status.
        reason: one word, such as `NotFound`.
        message: for people.
        details: what it is about: `name`, `group`, `kind` (the plural), `causes`.
        retry_after: seconds; told in the details and in the header `Retry-After`.
        continue_token: with an expired list, where an inconsistent one may go on.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        *,
        retry_after: int | None = None,
        continue_token: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        if retry_after is not None:
            self.details["retryAfterSeconds"] = retry_after
        self.retry_after = retry_after
        self.continue_token = continue_token

    def body(self) -> dict[str, Any]:
        """The `Status` object."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {"continue": self.continue_token} if self.continue_token else {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details:
            body["details"] = self.details
        return body | {"code": self.code}


def bad_request(message: str) -> StatusError:
    """400: the request makes no sense."""
    return StatusError(400, "BadRequest", message)


def unauthorized() -> StatusError:
    """401: no token, or one that nobody knows."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: Named, verb: str, namespace: str | None, name: str) -> StatusError:
    """403: this user must not do that."""
    about = f'{_qualified(resource)} "{name}"' if name else _qualified(resource)
    where = f'in the namespace "{namespace}"' if namespace is not None else "at the cluster scope"
    action = f'cannot {verb} resource "{resource.plural}" in API group "{resource.group}" {where}'
    return StatusError(403, "Forbidden", f'{about} is forbidden: User "local" {action}', _details(resource, name))


def not_found(resource: Named, name: str) -> StatusError:
    """404: there is no object of that name."""
    return StatusError(404, "NotFound", f'{_qualified(resource)} "{name}" not found', _details(resource, name))


def no_such_resource() -> StatusError:
    """404: the server does not serve such a path."""
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def not_allowed() -> StatusError:
    """405: not with this method."""
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def already_exists(resource: Named, name: str) -> StatusError:
    """409: the name is taken."""
    message = f'{_qualified(resource)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _details(resource, name))


def conflict(resource: Named, name: str, why: str = "") -> StatusError:
    """409: the object is no longer what the request takes it for."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {_qualified(resource)} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(resource, name))


def expired(message: str, continue_token: str = "") -> StatusError:
    """410: what was asked for is no longer remembered."""
    return StatusError(410, "Expired", message, continue_token=continue_token)


def too_old(version: int, oldest: int) -> StatusError:
    """410 for a watch."""
    return expired(f"too old resource version: {version} ({oldest})")


def unknown_media_type(accepted: str) -> StatusError:
    """415: a body in an unknown format."""
    message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return StatusError(415, "UnsupportedMediaType", message)


def invalid(resource: Named, name: str, field: str, problem: str, cause: str = "FieldValueInvalid") -> StatusError:
    """422: a field's value is not allowed."""
    message = f'{resource.kind}.{resource.group} "{name}" is invalid: {field}: {problem}'
    details = {"name": name, "group": resource.group, "kind": resource.kind}
    causes = [{"reason": cause, "message": problem, "field": field}]
    return StatusError(422, "Invalid", message, details | {"causes": causes})


def from_the_future(version: int, present: int) -> StatusError:
    """504: a version that the server has not reached yet."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Timeout: Too large resource version: {version}, current: {present}"
    return StatusError(504, "Timeout", message, {"causes": [cause]}, retry_after=1)


def _qualified(resource: Named) -> str:
    return f"{resource.plural}.{resource.group}"


def _details(resource: Named, name: str) -> dict[str, Any]:
    details = {"group": resource.group, "kind": resource.plural}
    return {"name": name, **details} if name else details
