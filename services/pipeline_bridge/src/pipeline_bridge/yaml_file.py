"""YAML as this service reads it: what JSON can hold, each key once, and a line for every complaint.

It is built from the parser's events. A composer would follow nesting and aliases as deep as they go, which ends in a
crash, or in gigabytes out of a few lines.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

MAX_BYTES: Final = 2**20
"""What Kubernetes allows a ConfigMap."""
MAX_NODES: Final = 50_000
"""Values in one file, those that aliases repeat counted each time."""
MAX_DEPTH: Final = 64

Place = tuple[str | int, ...]
"""Where a value stands: the keys and indexes that lead to it."""

_TAG: Final = "tag:yaml.org,2002:"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is not in every build
_RESOLVER: Any = yaml.resolver.Resolver()
_CONSTRUCTOR = yaml.constructor.SafeConstructor()


class Unreadable(Exception):
    """Why a file is not taken; names the line."""


@dataclass(frozen=True)
class Document:
    """What a file holds: maps with strings as keys, lists, strings, finite numbers, booleans and None."""

    name: str
    value: Any
    lines: dict[Place, int]

    def problem(self, place: Place, text: str) -> str:
        """What is wrong with a value, with its line, or that of the nearest thing around it."""
        known = next(place[:length] for length in range(len(place), -1, -1) if place[:length] in self.lines)
        where = _dotted(place)
        return f"{self.name}, line {self.lines[known]}: {where}: {text}" if where else f"{self.name}: {text}"


def read(path: Path) -> Document:
    """The one document of a file.

    Raises:
        Unreadable: it is no such file, too large, or no YAML of this kind.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise Unreadable(f"{path.name}: is no regular file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Unreadable(f"{path.name}: is larger than {MAX_BYTES} bytes")
    return parse(path.name, data)


def parse(name: str, data: bytes) -> Document:
    """YAML in UTF-8 as a document; raises `Unreadable`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Unreadable(f"{name}, line {line}: is not UTF-8") from None
    reader = _Reader(text)
    try:
        return Document(name, reader.document(), reader.lines)
    except _Wrong as error:
        raise Unreadable(f"{name}, line {error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        raise Unreadable(f"{name}, {_syntax(error, text)}") from None
    except yaml.YAMLError as error:
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        raise Unreadable(f"{name}, line {line}: has a character that YAML does not allow") from None


def _syntax(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return str(error.problem)
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error.problem):
        return f"line {mark.line + 1}: has a tab; YAML is indented by spaces"
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


class _Wrong(Exception):
    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


class _Reader:
    """Builds values from events."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {(): 1}
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, Any] = {}
        self._nodes = 0

    def document(self) -> Any:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), ())
        next(self._events)  # the document's end
        if not isinstance(event := next(self._events), yaml.StreamEndEvent):
            raise _Wrong("a second document begins; there has to be one", _line(event))
        return value

    def _value(self, event: yaml.Event, place: Place) -> Any:
        line = _line(event)
        self._count(len(place), line)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _Wrong(f"*{event.anchor} has no &{event.anchor} that ends before it", line)
            return self._repeated(self._anchors[event.anchor], len(place), line)
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            try:
                value = _scalar(event)
            except ValueError as error:
                raise _Wrong(f"{_dotted(place)}: {error}", line) from None
        elif isinstance(event, yaml.MappingStartEvent) and event.tag in (None, "!", f"{_TAG}map"):
            value = self._map(place)
        elif isinstance(event, yaml.SequenceStartEvent) and event.tag in (None, "!", f"{_TAG}seq"):
            value = self._list(place)
        else:
            raise _Wrong(f"{_dotted(place)}: the tag {getattr(event, 'tag', '')} is not allowed", line)
        if event.anchor:
            self._anchors[event.anchor] = value
        return value

    def _list(self, place: Place) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            self.lines[(*place, len(found))] = _line(event)
            found.append(self._value(event, (*place, len(found))))
        return found

    def _map(self, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = _line(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise _Wrong("a key has to be a plain string", line)
            # As it is written: `on`, `no` and 1 are as good names as any.
            below = (*place, event.value)
            if event.value in found:
                raise _Wrong(f"{_dotted(below)}: is there twice, first in line {self.lines[below]}", line)
            self.lines[below] = line
            found[event.value] = self._value(next(self._events), below)
        if "<<" not in found:
            return found
        merged = found.pop("<<")
        sources = merged if isinstance(merged, list) else [merged]
        if not all(isinstance(source, dict) for source in sources):
            raise _Wrong("<<: takes a map, or a list of maps", self.lines[(*place, "<<")])
        return {name: value for source in (*reversed(sources), found) for name, value in source.items()}

    def _repeated(self, value: Any, depth: int, line: int) -> Any:
        """A copy of what an alias stands for, counted as if it were written there."""
        self._count(depth, line)
        if isinstance(value, dict):
            return {name: self._repeated(each, depth + 1, line) for name, each in value.items()}
        if isinstance(value, list):
            return [self._repeated(each, depth + 1, line) for each in value]
        return value

    def _count(self, depth: int, line: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Wrong(f"from here on it is too much: more than {MAX_NODES} values, aliases counted", line)
        if depth > MAX_DEPTH:
            raise _Wrong(f"is nested deeper than {MAX_DEPTH}", line)


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _dotted(place: Place) -> str:
    return ".".join(str(step) for step in place)


def _scalar(event: yaml.ScalarEvent) -> Any:
    """A value as YAML 1.1 has it, but dates and numbers to the base of 60, which nobody means, are strings.

    Raises:
        ValueError: it is none that JSON has.
    """
    tag, text = event.tag, event.value
    if tag in (None, "!"):
        tag = _RESOLVER.resolve(yaml.ScalarNode, text, event.implicit)
    kind = tag.removeprefix(_TAG)
    if kind in ("str", "timestamp", "value", "merge") or (kind in ("int", "float") and ":" in text):
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("yes", "true", "on")
    if kind == "int":
        return _CONSTRUCTOR.construct_yaml_int(yaml.ScalarNode(tag, text))
    if kind == "float":
        number = _CONSTRUCTOR.construct_yaml_float(yaml.ScalarNode(tag, text))
        if not math.isfinite(number):
            raise ValueError("is not a finite number")
        return number
    raise ValueError(f"the tag {tag} is not allowed")
