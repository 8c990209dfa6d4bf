"""MessagePack ↔ model, and JSON ↔ model where a person asks."""

import base64
import json
from typing import Any, TypeVar

import msgpack
from pydantic import ValidationError
from pydantic_core import from_json

from handler_core.contract.base import Message
from handler_core.errors import InvalidRequest

M = TypeVar("M", bound=Message)

_MAX_NAMED = 3
_STRINGS = frozenset({str})
_packer = msgpack.Packer(unicode_errors="replace")  # made once: it would cost as much as packing a small message


class _Extension:
    """An extension type, which no field takes; msgpack's own class is a tuple and would pass for a list."""

    __slots__ = ()

    def __init__(self, code: int, data: bytes) -> None:
        pass


def encode(message: Message) -> bytes:
    """A model as a MessagePack map; fields that are None are left out, and half a surrogate pair becomes `?`."""
    body = message.__pydantic_serializer__.to_python(message, exclude_none=True)
    return bytes(_packer.pack(body))


def encode_json(message: Message) -> bytes:
    """A model as a JSON object in UTF-8; bytes become base64 (RFC 4648, section 4), and the rest is as in `encode`."""
    body = message.__pydantic_serializer__.to_python(message, exclude_none=True)
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_base64)
    return text.encode("utf-8", "replace")


def is_text(data: bytes) -> bool:
    """Whether a body is meant as JSON: it is empty or begins with an ASCII character, as no MessagePack map does."""
    return not data or data[0] < 0x80


def unpack_either(data: bytes) -> tuple[dict[str, Any], bool]:
    """A MessagePack map or a JSON object as a dict, nothing validated yet, and whether it is JSON.

    An empty body is an empty JSON object. Of a repeated key the last counts.

    Raises:
        InvalidRequest: neither of the two, or as `unpack`; with JSON it says where. NaN and infinities are not JSON.
    """
    if not is_text(data):
        return unpack(data), False
    if not data.strip():
        return {}, True
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        kind = "JSON" if data.lstrip()[:1] in (b"{", b"[") else "a JSON object or a MessagePack map"
        raise InvalidRequest(f"body: is not {kind} ({_reason(error)})", stage="decode") from None
    if type(body) is not dict:
        raise InvalidRequest(f"body: has to be an object, is {_JSON_KINDS[type(body)]}", stage="decode")
    return body, True


def unpack(data: bytes) -> dict[str, Any]:
    """A MessagePack map as a dict, nothing validated yet.

    Raises:
        InvalidRequest: not MessagePack, not a map, or its keys are not strings.
    """
    try:
        body = msgpack.unpackb(data, ext_hook=_Extension)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        if data.lstrip()[:1] in (b"{", b"["):
            raise InvalidRequest("body: is JSON; it has to be a MessagePack map", stage="decode") from None
        raise InvalidRequest(f"body: is not MessagePack ({_reason(error)})", stage="decode") from None
    if type(body) is not dict:
        raise InvalidRequest(f"body: has to be a map, is {_KINDS.get(type(body), type(body).__name__)}", stage="decode")
    if not _STRINGS.issuperset(map(type, body)):
        raise InvalidRequest("body: its keys have to be strings", stage="decode")
    return body


def validate(body: dict[str, Any], model: type[M]) -> M:
    """A dict as a model.

    Raises:
        InvalidRequest: names each field that is wrong (the first three), never its value.
    """
    try:
        return model.__pydantic_validator__.validate_python(body)  # type: ignore[no-any-return]
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        parts = []
        for item in found[:_MAX_NAMED]:
            place = ".".join(_printable(str(step)[:64]) for step in item["loc"])
            text = item["msg"].removeprefix("Value error, ")
            parts.append(f"{place}: {text}" if place else text)
        if len(found) > _MAX_NAMED:
            parts.append(f"and {len(found) - _MAX_NAMED} more")
        raise InvalidRequest("; ".join(parts), stage="decode") from None


def decode(data: bytes, model: type[M]) -> M:
    """A MessagePack map as a model; raises `InvalidRequest` as `unpack` and `validate` do."""
    return validate(unpack(data), model)


def _base64(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


_JSON_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean",
               type(None): "null"}  # fmt: skip
_KINDS = {list: "an array", str: "a string", bytes: "binary", int: "an integer", float: "a float", bool: "a boolean",
          type(None): "nil", _Extension: "an extension type"}  # fmt: skip


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:120]
