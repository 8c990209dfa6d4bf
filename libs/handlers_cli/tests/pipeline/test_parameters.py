"""The parameters of a run, from the command line and a file."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from handler_core.contract.pipeline import ParameterInfo, PipelineInfo
from handler_core.errors import InvalidRequest
from handlers_cli.pipeline_parameters import given, guessed, loaded, typed


def pipeline(kind: Any, **fields: Any) -> PipelineInfo:
    parameter = ParameterInfo(name="x", type=kind, **fields)
    return PipelineInfo(name="p", engine="argo", timeout=60, parameters=[parameter])


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "5", "5"),
        ("string", "", ""),
        ("string", "a=b", "a=b"),
        ("integer", "5", 5),
        ("integer", "-12", -12),
        ("integer", str(2**64 - 1), 2**64 - 1),
        ("number", "5", 5),
        ("number", "0.5", 0.5),
        ("number", "-1e-3", -0.001),
        ("number", ".5", 0.5),
        ("boolean", "true", True),
        ("boolean", "False", False),
        ("array", '["a", 1]', ["a", 1]),
        ("object", '{"a": [1]}', {"a": [1]}),
    ],
)
def test_a_text_becomes_what_the_catalogue_declares(kind: str, text: str, value: Any) -> None:
    found = typed(pipeline(kind), {}, given([f"x={text}"]))["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("kind", "text", "complaint"),
    [
        ("integer", "five", "x: 'five' is no integer"),
        ("integer", "5.5", "x: '5.5' is no integer"),
        ("integer", "1_000", "x: '1_000' is no integer"),
        ("integer", str(2**64), f"x: '{2**64}' is no integer"),
        ("integer", "9" * 10_000, "is no integer"),
        ("number", "nan", "x: 'nan' is no number"),
        ("number", "inf", "x: 'inf' is no number"),
        ("number", "1e999", "x: '1e999' is no number"),
        ("boolean", "yes", r"x: 'yes' is no boolean \(true or false\)"),
        ("array", "a,b", "x: has to be an array in JSON: Expecting value"),
        ("array", "{}", "x: '{}' is no array"),
        ("array", "[NaN]", "NaN is no number of JSON"),
        ("array", "[1e999]", "1e999 is no number of JSON"),
        ("array", f"[{2**64}]", "is no number of JSON"),
        ("array", "[" * 100_000, "x: has to be an array in JSON"),
        ("object", "[]", r"x: '\[\]' is no object"),
        ("integer", "\x1b[31m", r"x: '\\\\x1b\[31m' is no integer"),
    ],
)
def test_a_text_that_does_not_fit_is_said_not_to(kind: str, text: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        typed(pipeline(kind), {}, {"x": text})


@pytest.mark.parametrize(
    ("kind", "value", "complaint"),
    [
        ("string", 5, "x: has to be a string, is an integer"),
        ("integer", True, "x: has to be an integer, is a boolean"),
        ("integer", 1.5, "x: has to be an integer, is a number"),
        ("number", "1", "x: has to be a number, is a string"),
        ("boolean", 1, "x: has to be a boolean, is an integer"),
        ("array", {}, "x: has to be an array, is an object"),
        ("object", None, "x: has to be an object, is null"),
    ],
)
def test_a_value_of_a_file_is_not_converted(kind: str, value: Any, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        typed(pipeline(kind), {"x": value}, {})


@pytest.mark.parametrize(("kind", "value"), [("integer", 1.0), ("number", 1), ("string", "ä"), ("array", [])])
def test_a_value_of_a_file_that_fits_is_taken(kind: str, value: Any) -> None:
    assert typed(pipeline(kind), {"x": value}, {}) == {"x": value}


def test_everything_that_is_wrong_is_said_at_once() -> None:
    both = PipelineInfo(
        name="p",
        engine="argo",
        timeout=60,
        parameters=[
            ParameterInfo(name="a", type="integer"),
            ParameterInfo(name="b", type="string", required=True, description="What it is."),
        ],
    )
    with pytest.raises(InvalidRequest) as caught:
        typed(both, {}, {"a": "x", "c": "y"})
    assert [line.strip() for line in caught.value.message.splitlines()] == [
        "a: 'x' is no integer",
        "c: is no parameter of p; it has a, b",
        "b: is required (string: What it is.)",
    ]


def test_what_is_given_beside_a_file_counts_more() -> None:
    assert typed(pipeline("integer", required=True), {"x": "wrong"}, {"x": "2"}) == {"x": 2}


def test_where_nobody_tells_the_types_json_is_json_and_all_else_text() -> None:
    pairs = given(["n=5", "s=five", "o={}", "t=true", "q=NaN", "e="])
    assert guessed({"f": [1], "n": 0}, pairs) == {
        "f": [1], "n": 5, "s": "five", "o": {}, "t": True, "q": "NaN", "e": ""
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [(["x"], "-p x: has to be key=value"), (["=x"], "has to be key=value"), (["x=1", "x=2"], "-p x: is given twice")],
)
def test_what_is_no_pair_is_refused(pairs: list[str], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        given(pairs)


def test_a_file_or_stdin_holds_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps({"a": [1, None]}))
    assert loaded(str(file)) == {"a": [1, None]}
    monkeypatch.setattr("sys.stdin", io.StringIO('{"b": 1}'))
    assert loaded("-") == {"b": 1}
    assert loaded(None) == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "has to be a JSON object, is an array"),
        (b"null", "has to be a JSON object, is null"),
        (b'{"a": Infinity}', "Infinity is no number of JSON"),
        (b"\xff", "cannot be read"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    file = tmp_path / "parameters.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=f"^--parameters .*{complaint}"):
        loaded(str(file))
