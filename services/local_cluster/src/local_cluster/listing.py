"""Lists of Kubeflow Pipelines: filter, order and pages, with the limits and the refusals of its API server."""

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

from local_cluster.gateway import INVALID_ARGUMENT, GatewayError

Row = Mapping[str, Any]

_PAGE_SIZE, _MAX_PAGE_SIZE = 20, 200
_OPERATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "EQUALS": lambda field, value: bool(field == value),
    "NOT_EQUALS": lambda field, value: bool(field != value),
    "GREATER_THAN": lambda field, value: bool(field > value),
    "GREATER_THAN_EQUALS": lambda field, value: bool(field >= value),
    "LESS_THAN": lambda field, value: bool(field < value),
    "LESS_THAN_EQUALS": lambda field, value: bool(field <= value),
    "IN": lambda field, value: field in value,
    "IS_SUBSTRING": lambda field, value: value in field,
}
_SCALARS = {"string_value": str, "int_value": int, "long_value": int, "timestamp_value": str}
_LISTS = {"string_values": str, "int_values": int, "long_values": int}


@dataclass(frozen=True, slots=True)
class Kind:
    """What is listed."""

    plural: str
    """The field of the response."""
    id_field: str
    aliases: Mapping[str, str]
    """The fields by which it can be filtered and ordered, as stored; by each name that the API knows for one."""


def _kind(plural: str, id_field: str, *fields: str, **aliases: str) -> Kind:
    return Kind(plural, id_field, {"id": id_field, id_field: id_field, **{field: field for field in fields}, **aliases})


_COMMON = ("display_name", "created_at", "description", "namespace")
RUNS = _kind(
    "runs", "run_id", *_COMMON, "finished_at", "scheduled_at", "storage_state", "experiment_id", "state",
    "recurring_run_id", "pipeline_id", name="display_name", status="state",
)  # fmt: skip
PIPELINES = _kind("pipelines", "pipeline_id", "name", *_COMMON)
VERSIONS = _kind("pipeline_versions", "pipeline_version_id", "name", "display_name", "created_at", "description")
EXPERIMENTS = _kind("experiments", "experiment_id", *_COMMON, "storage_state", name="display_name")


def page_of(kind: Kind, rows: Iterable[Row], query: Mapping[str, str]) -> dict[str, Any]:
    """One page of the rows, as the query has it: `page_size`, `page_token`, `sort_by`, `filter`.

    Pages begin at a row, not at a number: rows that come or go meanwhile do not shift them.

    Raises:
        GatewayError: the query is malformed, or names a field that is not known.
    """
    size = _page_size(query.get("page_size", ""))
    sort_by, spec = query.get("sort_by", ""), query.get("filter", "")
    order = _order(kind, sort_by, spec)
    start = None
    if token := query.get("page_token"):
        position = _decode(token)
        if (sort_by or spec) and position["order"] != order:
            raise _invalid(
                "page token does not match the supplied sort by and/or filtering criteria. Either specify the same "
                "criteria or leave the latter empty if page token is specified."
            )
        order, start = position["order"], tuple(position["start"])
    field, descending = order["field"], order["descending"]

    def place(row: Row) -> tuple[Any, Any]:
        return value_of(row, field), row[kind.id_field]

    found = sorted((row for row in rows if _matches(row, order["filter"])), key=place, reverse=descending)
    rest = [row for row in found if start is None or (place(row) <= start if descending else place(row) >= start)]
    page: dict[str, Any] = {kind.plural: rest[:size], "total_size": len(found)}
    if len(rest) > size:
        page["next_page_token"] = _encode({"order": order, "start": place(rest[size])})
    return {key: value for key, value in page.items() if value}


def value_of(row: Row, field: str) -> Any:
    """A field as it is compared: times as whole seconds, what is absent as empty."""
    if field.endswith("_at"):
        return _seconds(row.get(field, ""))
    if field == "pipeline_id" and "pipeline_version_reference" in row:
        return row["pipeline_version_reference"].get(field, "")
    return row.get(field, "")


def _order(kind: Kind, sort_by: str, spec: str) -> dict[str, Any]:
    words = sort_by.lower().split()
    if len(words) > 2 or (len(words) == 2 and words[1] not in ("asc", "desc")):
        raise _invalid(
            f'Received invalid sort by format "{sort_by}". Supported format: "field_name", "field_name desc", or '
            '"field_name asc"'
        )
    field = words[0] if words else "created_at"
    if field not in kind.aliases:
        raise _invalid(f'Invalid sorting field: "{field}" on listable type {kind.plural}')
    return {"field": kind.aliases[field], "descending": words[1:] == ["desc"], "filter": _parse(kind, spec)}


def _parse(kind: Kind, spec: str) -> list[list[Any]]:
    """The filter's predicates, each as operation, field and value; the server decodes the text a second time."""
    if not spec:
        return []
    text = unquote_plus(spec)
    try:
        parsed = json.loads(text)
        predicates = parsed.get("predicates", [])
        if set(parsed) - {"predicates"} or not all(isinstance(predicate, dict) for predicate in predicates):
            raise ValueError
        return [_predicate(kind, predicate) for predicate in predicates]
    except (ValueError, TypeError, AttributeError):
        raise _invalid(f'failed to parse valid filter from "{text}"') from None


def _predicate(kind: Kind, predicate: dict[str, Any]) -> list[Any]:
    operation, key = predicate.get("operation", ""), predicate.get("key", "")
    given = {_snake(name): value for name, value in predicate.items() if name not in ("operation", "key")}
    if len(given) != 1:
        raise ValueError
    (name, value), is_list = next(iter(given.items())), False
    if name in _LISTS:
        is_list, value = True, [_LISTS[name](item) for item in value.get("values", [])]
    else:
        value = _SCALARS[name](value) if name in _SCALARS else None
    if value is None:
        raise ValueError
    if operation not in _OPERATIONS:
        raise _invalid(f"invalid predicate operation: {operation}")
    if is_list != (operation == "IN"):
        raise _invalid(f"cannot use operator {operation} with {name}")
    if operation == "IS_SUBSTRING" and not isinstance(value, str):
        raise _invalid(f"cannot use non string value type with operator {operation}")
    if key not in kind.aliases:
        raise _invalid(f'no support for filtering on unrecognized field "{key}"')
    return [operation, kind.aliases[key], _seconds(value) if name == "timestamp_value" else value]


def _matches(row: Row, predicates: list[list[Any]]) -> bool:
    try:
        return all(_OPERATIONS[name](_plain(value_of(row, field)), _plain(value)) for name, field, value in predicates)
    except TypeError:
        return False


def _plain(value: Any) -> Any:
    """Text is compared without regard to case."""
    if isinstance(value, str):
        return value.lower()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _page_size(text: str) -> int:
    try:
        size = int(text or 0)
    except ValueError:
        raise _invalid(f'parsing field "page_size": strconv.ParseInt: parsing "{text}": invalid syntax') from None
    if size < 0:
        raise _invalid(f"The page size should be greater than 0. Got {size}")
    return min(size or _PAGE_SIZE, _MAX_PAGE_SIZE)


def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) if text else 0


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _encode(token: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(token).encode()).decode()


def _decode(token: str) -> dict[str, Any]:
    try:
        position: dict[str, Any] = json.loads(base64.b64decode(token, validate=True))
        return {"order": position["order"], "start": position["start"]}
    except (ValueError, TypeError, KeyError):
        raise _invalid("Invalid package token") from None


def _invalid(message: str) -> GatewayError:
    return GatewayError(INVALID_ARGUMENT, message, "Failed to create list options")
