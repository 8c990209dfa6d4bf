"""A run's parameters from the command line and a file, typed as the catalogue declares them."""

import json as json_module
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from handler_core.contract.pipeline import ParameterInfo, PipelineInfo
from handler_core.errors import InvalidRequest
from handlers_cli.plain import printable

STDIN = "-"
_INTEGER = re.compile(r"[+-]?\d{1,20}").fullmatch
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?").fullmatch
_INTEGERS = range(-(1 << 63), 1 << 64)
"""Those that MessagePack can carry."""
_ARTICLE = {"integer": "an integer", "array": "an array", "object": "an object"}
_JSON = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def given(pairs: Sequence[str]) -> dict[str, str]:
    """What was given as `-p key=value`.

    Raises:
        InvalidRequest: one of them has no `=` or no key, or a key comes twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key):
            raise InvalidRequest(f"-p {printable(pair)}: has to be key=value")
        if key in found:
            raise InvalidRequest(f"-p {printable(key)}: is given twice")
        found[key] = value
    return found


def loaded(path: str | None) -> dict[str, Any]:
    """The JSON object of a file, or of stdin where the path is `-`; empty without a path.

    Raises:
        InvalidRequest: it cannot be read, or is no JSON object.
    """
    if path is None:
        return {}
    name = f"--parameters {'stdin' if path == STDIN else printable(path)}"
    try:
        text = sys.stdin.read() if path == STDIN else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{name}: cannot be read: {error}") from None
    try:
        body = _from_json(text)
    except ValueError as error:
        raise InvalidRequest(f"{name}: is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"{name}: has to be a JSON object, is {_name(body)}")
    return body


def typed(pipeline: PipelineInfo, file: Mapping[str, Any], pairs: Mapping[str, str]) -> dict[str, Any]:
    """The parameters in the types that the pipeline declares; `pairs` count more than `file`.

    What else is declared of them (limits, patterns, …) the bridge checks.

    Raises:
        InvalidRequest: names all that are unknown, missing, or of another type.
    """
    declared = {parameter.name: parameter for parameter in pipeline.parameters}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name in {**file, **pairs}:
        if (parameter := declared.get(name)) is None:
            known = ", ".join(map(printable, declared)) or "none"
            wrong.append(f"{printable(name)}: is no parameter of {pipeline.name}; it has {known}")
            continue
        try:
            values[name] = _converted(pairs[name], parameter.type) if name in pairs else _checked(file[name], parameter)
        except ValueError as error:
            wrong.append(f"{printable(name)}: {error}")
    for parameter in pipeline.parameters:
        if parameter.required and parameter.name not in file and parameter.name not in pairs:
            about = f": {printable(parameter.description)}" if parameter.description else ""
            wrong.append(f"{printable(parameter.name)}: is required ({parameter.type}{about})")
    if wrong:
        raise InvalidRequest("\n       ".join(wrong))
    return values


def guessed(file: Mapping[str, Any], pairs: Mapping[str, str]) -> dict[str, Any]:
    """The parameters where nobody tells their types: values that are JSON as what they are there, others as text."""
    values = dict(file)
    for name, text in pairs.items():
        try:
            values[name] = _from_json(text)
        except ValueError:
            values[name] = text
    return values


def _converted(text: str, kind: str) -> Any:
    """The text as a value of that type.

    Raises:
        ValueError: it is none.
    """
    if kind == "string":
        return text
    if kind == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("integer", "number") and _INTEGER(text) and int(text) in _INTEGERS:
        return int(text)
    if kind == "number" and _NUMBER(text) and math.isfinite(float(text)):
        return float(text)
    if kind in ("array", "object"):
        try:
            value = _from_json(text)
        except ValueError as error:
            raise ValueError(f"has to be {_ARTICLE[kind]} in JSON: {error}") from None
        if _fits(value, kind):
            return value
    meant = " (true or false)" if kind == "boolean" else ""
    raise ValueError(f"{printable(text)!r} is no {kind}{meant}")


def _checked(value: Any, parameter: ParameterInfo) -> Any:
    """A value of a file, if it is of the parameter's type.

    Raises:
        ValueError: it is not.
    """
    if not _fits(value, parameter.type):
        expected = _ARTICLE.get(parameter.type, f"a {parameter.type}")
        raise ValueError(f"has to be {expected}, is {_name(value)}")
    return value


def _fits(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return value in _INTEGERS if isinstance(value, int) else kind == "number" or value.is_integer()
    return _JSON.get(type(value)) == kind


def _name(value: Any) -> str:
    kind = _JSON.get(type(value), "null")
    return kind if value is None else _ARTICLE.get(kind, f"a {kind}")


def _from_json(text: str) -> Any:
    """What the text says; NaN, infinities and numbers beyond all measure are no JSON.

    Raises:
        ValueError: it is no JSON.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number of JSON")

    def number(digits: str) -> float:
        return value if math.isfinite(value := float(digits)) else refuse(digits[:20])

    def integer(digits: str) -> int:
        return value if len(digits) < 21 and (value := int(digits)) in _INTEGERS else refuse(digits[:20])

    try:
        return json_module.loads(text, parse_constant=refuse, parse_float=number, parse_int=integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
