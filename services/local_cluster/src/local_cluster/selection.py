"""Label and field selectors: which objects a list or watch is about."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from local_cluster.status import bad_request

Selects = Callable[[Mapping[str, Any]], bool]
"""Whether an object is selected."""

_KEY = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?"
_SET = re.compile(rf"({_KEY})\s+(in|notin)\s*\(\s*({_VALUE}(?:\s*,\s*{_VALUE})*)\s*\)")
_EQUALITY = re.compile(rf"({_KEY})\s*(==|=|!=)\s*({_VALUE})")
_ORDER = re.compile(rf"({_KEY})\s*([<>])\s*(-?\d+)")
_EXISTS = re.compile(rf"(!?)\s*({_KEY})")
_COMMA = re.compile(r",(?![^(]*\))")
"""Between requirements, not between the values of a set."""


def labels(selector: str) -> Selects:
    """What a label selector selects: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, `a>1`, `a<1`,
    joined by commas; all must hold, and an empty selector selects everything.

    Raises:
        StatusError: 400 for anything else.
    """
    if not selector.strip():
        return lambda _: True
    required = [_requirement(part.strip()) for part in _COMMA.split(selector)]
    return lambda found: all(holds(found) for holds in required)


def _requirement(text: str) -> Selects:
    """A test of an object's labels."""
    if match := _SET.fullmatch(text):
        key, operator, listed = match.groups()
        values = frozenset(value.strip() for value in listed.split(","))
        if operator == "in":
            return lambda found: found.get(key) in values
        return lambda found: found.get(key) not in values
    if match := _EQUALITY.fullmatch(text):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda found: found.get(key) != value
        return lambda found: found.get(key) == value
    if match := _ORDER.fullmatch(text):
        key, operator, limit = match.groups()
        return lambda found: _ordered(found.get(key), operator, int(limit))
    if match := _EXISTS.fullmatch(text):
        absent, key = match.groups()
        return lambda found: (key in found) != bool(absent)
    raise bad_request(f'unable to parse requirement: found "{text}"')


def _ordered(value: str | None, operator: str, limit: int) -> bool:
    if value is None or not re.fullmatch(r"-?\d+", value):
        return False
    return int(value) > limit if operator == ">" else int(value) < limit


def fields(selector: str) -> Selects:
    """What a field selector selects: as for any custom resource, by `metadata.name` and `metadata.namespace` only.

    Raises:
        StatusError: 400 for another field or another form.
    """
    required: list[tuple[str, bool, str]] = []
    for part in filter(None, selector.split(",")):
        match = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", part)
        if match is None:
            raise bad_request(f"invalid selector: '{selector}'; can't understand '{part}'")
        field, operator, value = match.groups()
        if field not in ("metadata.name", "metadata.namespace"):
            raise bad_request(f"field label not supported: {field}")
        required.append((field.removeprefix("metadata."), operator != "!=", value))
    return lambda metadata: all((metadata.get(field) == value) == equal for field, equal, value in required)


def selecting(label_selector: str, field_selector: str) -> Selects:
    """What both select, of whole objects.

    Raises:
        StatusError: 400 where one cannot be read.
    """
    by_label, by_field = labels(label_selector), fields(field_selector)

    def selects(found: Mapping[str, Any]) -> bool:
        metadata = found["metadata"]
        return by_field(metadata) and by_label(metadata.get("labels") or {})

    return selects
