"""What a pipeline's parameters may be, and what is said of those that may not."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from handler_core.errors import InvalidRequest
from pipeline_bridge.engine import EngineName
from pipeline_bridge.parameters import MAX_DEPTH, MAX_INTEGER, MAX_JSON, Misfit, Parameter, Parameters

TEMPLATED: tuple[EngineName, ...] = ("argo", "kubeflow")
ENGINES: tuple[EngineName, ...] = (*TEMPLATED, "rayjob")


def declared(engine: EngineName = "argo", /, **parameters: Any) -> Parameters:
    return Parameters({name: Parameter.model_validate(words) for name, words in parameters.items()}, engine)


def attempted(parameters: Parameters, given: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The values, or what is said of them."""
    try:
        return parameters.validate(given), ""
    except InvalidRequest as error:
        return None, error.message


def refused(parameters: Parameters, given: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parameters.validate(given)
    assert caught.value.stage == "parameters"
    return caught.value.message


def misdeclared(**words: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Parameter.model_validate(words)
    error = caught.value.errors()[0]
    misfit = error.get("ctx", {}).get("error")
    return f"{misfit.word}: {misfit}" if isinstance(misfit, Misfit) else f"{error['loc'][-1]}: {error['msg']}"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_defaults_are_filled_in_and_what_has_none_stays_out() -> None:
    parameters = declared(
        size={"type": "integer", "default": 512}, tags={"type": "array", "default": ["a"]}, note={"type": "string"}
    )
    assert parameters.validate({}) == {"size": 512, "tags": ["a"]}
    assert parameters.validate({"size": 64, "note": ""}) == {"size": 64, "tags": ["a"], "note": ""}


def test_a_default_is_every_run_s_own() -> None:
    parameters = declared(
        tags={"type": "array", "default": ["a"]}, deep={"type": "object", "default": {"a": {"b": []}}}
    )
    first = parameters.validate({})
    first["tags"].append("b")
    first["deep"]["a"]["b"].append(1)
    assert parameters.validate({}) == {"tags": ["a"], "deep": {"a": {"b": []}}}


def test_a_parameter_that_is_null_counts_as_absent() -> None:
    parameters = declared(size={"type": "integer", "default": 512}, source={"type": "string", "required": True})
    assert parameters.validate({"size": None, "source": "s"}) == {"size": 512, "source": "s"}
    assert refused(parameters, {"source": None}) == "parameters.source: is required"
    assert "parameters.else: is unknown" in refused(parameters, {"source": "s", "else": None})


def test_one_that_is_unknown_is_named_with_those_that_there_are() -> None:
    assert refused(declared(a={"type": "string"}, b={"type": "string"}), {"c": 1}) == (
        "parameters.c: is unknown; there are a, b"
    )
    assert refused(declared(), {"c": 1}) == "parameters.c: is unknown; there are none"
    assert refused(declared(), {"c\n\x1b[31m" + "x" * 100: 1}).startswith("parameters.c??[31mxxx")


@pytest.mark.parametrize(
    ("type", "good", "bad"),
    [
        ("string", ["", "x", "Ä"], [1, True, b"x", ["x"], 1.5]),
        ("integer", [0, -5, MAX_INTEGER], [1.0, True, "1", [1]]),
        ("number", [0, -5, 1.5], [True, "1.5", [1.5]]),
        ("boolean", [True, False], [0, 1, "true", "yes"]),
        ("array", [[], [1, "a", None]], ["[]", {}, 1]),
        ("object", [{}, {"a": [1, {"b": None}]}], ["{}", [], 1]),
    ],
)
def test_types_are_meant(type: str, good: list[Any], bad: list[Any]) -> None:
    parameters = declared("rayjob", x={"type": type})
    for value in good:
        assert parameters.validate({"x": value}) == {"x": value}
    for value in bad:
        assert refused(parameters, {"x": value}).startswith("parameters.x: ")


@pytest.mark.parametrize(
    ("words", "good", "bad"),
    [
        ({"type": "integer", "minimum": 64, "maximum": 4096}, [64, 4096], [63, 4097]),
        ({"type": "number", "minimum": 0, "maximum": 0.5}, [0, 0.5], [-0.1, 0.51]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "äöü"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^s3://"}, ["s3://a"], ["x s3://a", ""]),
        ({"type": "string", "pattern": "b+"}, ["abc"], ["ac"]),
        ({"type": "string", "enum": ["a", "b"]}, ["a"], ["c"]),
        ({"type": "integer", "enum": [1, 2]}, [1], [3, True]),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}}, [[1], []], [[0], ["a"], [None]]),
    ],
)
def test_bounds_hold(words: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    parameters = declared(x=words)
    for value in good:
        assert parameters.validate({"x": value}) == {"x": value}
    for value in bad:
        assert re.match(r"parameters\.x(\.0)?: ", refused(parameters, {"x": value}))


def test_the_first_three_that_are_wrong_are_named() -> None:
    parameters = declared(**{name: {"type": "integer"} for name in "abcde"})
    text = refused(parameters, dict.fromkeys("abcde", "x"))
    assert text.count("valid integer") == 3
    assert text.endswith("; and 2 more")


@pytest.mark.parametrize("engine", TEMPLATED)
@pytest.mark.parametrize(
    "value",
    [
        "{{workflow.name}}",
        "a {{=1+1}} b",
        {"a": ["b", {"c": "{{x"}]},
        {"{{x}}": 1},
        ["{"],  # the next value may begin with the other one
        "s3://mine/$(SECRET_KEY)",  # Kubernetes expands it in arguments
        "\\u007b\\u007B",  # a loop over a JSON text would read it
    ],
)
def test_what_a_templating_engine_would_evaluate_is_refused(engine: EngineName, value: Any) -> None:
    type = {str: "string", dict: "object", list: "array"}[value.__class__]
    assert "engine would evaluate" in refused(declared(engine, x={"type": type}), {"x": value})


@pytest.mark.parametrize("value", ['{"a": {"b": 1}}', "}}", "{x}", "f{", "${HOME} `id` $", "'; rm -rf /"])
def test_other_braces_and_a_shell_s_characters_are_plain_text(value: str) -> None:
    if not value.endswith("{"):
        assert declared("argo", x={"type": "string"}).validate({"x": value}) == {"x": value}
    assert declared("rayjob", x={"type": "string"}).validate({"x": value}) == {"x": value}


def test_nothing_templates_a_ray_job() -> None:
    assert declared("rayjob", x={"type": "string"}).validate({"x": "$(id)"}) == {"x": "$(id)"}
    assert declared("rayjob", x={"type": "string"}).validate({"x": "{{x}}"}) == {"x": "{{x}}"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([float("nan")], "not finite"),
        ([[float("-inf")]], "not finite"),
        (["a\0b"], "NUL"),
        (["\ud800"], "surrogate"),
        ([MAX_INTEGER + 1], "integer beyond"),
        ([-(2**63)], "integer beyond"),
        ([b"raw"], "no JSON value"),
        ([{1: 2}], "no string"),
        ([object()], "no JSON value"),
        (nested(MAX_DEPTH + 1), "nested deeper"),
        (nested(100_000), "nested deeper"),
    ],
)
def test_what_json_does_not_hold_is_refused(engine: EngineName, value: Any, said: str) -> None:
    assert said in refused(declared(engine, x={"type": "array"}), {"x": value})
    assert declared(engine, x={"type": "array"}).validate({"x": nested(MAX_DEPTH)})


def test_all_together_are_64_kib_at_most() -> None:
    parameters = declared(a={"type": "string"}, b={"type": "string"})
    room = MAX_JSON - len('{"a":"","b":""}')
    assert parameters.validate({"a": "x" * (room // 2), "b": "x" * (room - room // 2)})
    assert refused(parameters, {"a": "x" * room, "b": "x"}) == (
        f"parameters: are {MAX_JSON + 1} bytes as JSON, at most {MAX_JSON} are allowed"
    )
    assert refused(parameters, {"a": "ä" * (room // 2), "b": "xx"})


def test_of_a_ray_job_the_form_counts_that_it_gets() -> None:
    assert refused(declared("rayjob", a={"type": "string"}), {"a": "$" * 20_000})
    assert declared("argo", a={"type": "string"}).validate({"a": "$" * 20_000})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"type": "text"}, "type: "),
        ({"type": "string", "minimum": 1}, "minimum: is not for type string"),
        ({"type": "integer", "minLength": 1}, "minLength: is not for type integer"),
        ({"type": "string", "items": {"type": "string"}}, "items: is not for type string"),
        ({"type": "boolean", "enum": [True]}, "enum: is not for type boolean"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum: is above maximum"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength: is above maxLength"),
        ({"type": "integer", "maximum": 2.5}, "maximum: has to be an integer"),
        ({"type": "string", "pattern": "("}, "pattern: is none that can be used"),
        ({"type": "string", "pattern": "(?=a)"}, "pattern: is none that can be used: error: look-around"),
        ({"type": "string", "enum": ["a", 1]}, "enum: value 1: Input should be a valid string"),
        ({"type": "string", "enum": []}, "enum: "),
        ({"type": "integer", "default": "1"}, "default: Input should be a valid integer"),
        ({"type": "integer", "default": 1, "maximum": 0}, "default: Input should be less than or equal to 0"),
        ({"type": "string", "default": "c", "enum": ["a"]}, 'default: Input should be one of "a"'),
        ({"type": "string", "default": "c", "required": True}, "default: is of no use"),
        ({"type": "string", "defualt": "c"}, "defualt: "),
        ({"type": "array", "items": {"type": "string", "default": "a"}}, "default: "),
    ],
)
def test_a_declaration_that_is_wrong_is_refused_before_any_run(words: dict[str, Any], said: str) -> None:
    assert misdeclared(**words).startswith(said)


def test_a_default_that_would_be_evaluated_is_refused_too() -> None:
    with pytest.raises(Misfit, match="would evaluate") as caught:
        declared("argo", x={"type": "string", "default": "{{workflow.name}}"})
    assert caught.value.word == "x.default"


def test_they_are_told_as_they_are_declared() -> None:
    words = {"type": "string", "required": True, "pattern": "^s3://", "maxLength": 9, "description": "Where."}
    (info,) = declared(source=words).infos()
    assert info.model_dump(exclude_defaults=True) == {
        "name": "source",
        "type": "string",
        "required": True,
        "pattern": "^s3://",
        "max_length": 9,
        "description": "Where.",
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=12,
)
ALL_TYPES = {
    "s": {"type": "string", "maxLength": 40},
    "i": {"type": "integer"},
    "n": {"type": "number", "default": 1},
    "b": {"type": "boolean"},
    "a": {"type": "array"},
    "o": {"type": "object"},
}


@given(st.dictionaries(st.sampled_from([*ALL_TYPES, "unknown"]), JSON), st.sampled_from(ENGINES))
def test_what_passes_is_json_and_nothing_that_is_evaluated(given: dict[str, Any], engine: EngineName) -> None:
    values, said = attempted(declared(engine, **ALL_TYPES), given)
    if values is None:
        assert re.match(r"parameters\.([sinbao]|unknown): ", said)
        return
    text = json.dumps(values, allow_nan=False)
    assert json.loads(text) == values
    assert len(text.encode()) <= MAX_JSON * 6
    assert engine == "rayjob" or "{{" not in text
    assert {**given, **dict.fromkeys(values)}.keys() <= ALL_TYPES.keys()


@given(st.lists(st.text(alphabet="{}x=\\u07bB"), min_size=2, max_size=3))
def test_values_put_side_by_side_begin_no_expression(parts: list[str]) -> None:
    parameters = declared("argo", **{f"p{number}": {"type": "string"} for number in range(len(parts))})
    values, _ = attempted(parameters, {f"p{number}": part for number, part in enumerate(parts)})
    assert values is None or "{{" not in "".join(values.values())


@given(st.text(alphabet="qz7", min_size=12, max_size=30), st.sampled_from(list(ALL_TYPES)))
def test_no_value_is_told(secret: str, name: str) -> None:
    for value in (secret, [secret, b""], {secret: b""}, {secret: "{{"}, [secret * 6000]):
        parameters = declared("argo", **{**ALL_TYPES, "s": {"type": "string", "pattern": "^a"}})
        assert secret not in attempted(parameters, {name: value})[1]
