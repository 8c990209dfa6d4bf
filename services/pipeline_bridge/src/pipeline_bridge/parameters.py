"""Parameters: what a pipeline declares, in words of JSON Schema, and the validator that is made of it.

What passes it is safe wherever an engine puts it: plain JSON of bounded size and depth, and nothing that a templating
engine would take for its own.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, SchemaError, SchemaValidator, core_schema

from handler_core.contract.pipeline import ParameterInfo
from handler_core.errors import InvalidRequest
from pipeline_bridge.engine import EngineName
from pipeline_bridge.manifests import environment_json

MAX_JSON: Final = 64 * 1024
"""Bytes of all parameters as JSON. Linux takes 128 KiB in one argument or variable, etcd 1.5 MiB in one resource."""
MAX_DEPTH: Final = 16
MAX_INTEGER: Final = 2**53 - 1
"""Beyond it JSON readers round (RFC 8259, section 6); Kubeflow's does."""

_MAX_NAMED: Final = 3
_EVALUATED: Final = re.compile(r"\{\{|\{\Z|\\u007b|\$\(", re.IGNORECASE)
"""Where a template's expression begins, or a variable that Kubernetes expands in arguments and in the environment; or
would begin, with what the template puts behind it, or once it is read as JSON."""
_ONLY_FOR: Final = {
    "enum": ("string", "integer", "number"),
    "minimum": ("integer", "number"),
    "maximum": ("integer", "number"),
    "min_length": ("string",),
    "max_length": ("string",),
    "pattern": ("string",),
    "items": ("array",),
}

ParameterName = Annotated[str, StringConstraints(pattern="^[A-Za-z_][A-Za-z0-9_-]{0,62}$")]


class Misfit(ValueError):
    """A word of a declaration that does not fit the others."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


class Declared(BaseModel):
    """A map of the catalogue: keys that are unknown are errors, and one without a value counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None or name not in cls.model_fields}
        return data


class Words(Declared):
    """What a value may be."""

    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    enum: list[Any] | None = Field(default=None, min_length=1, max_length=1000)
    minimum: int | float | None = None
    maximum: int | float | None = None
    min_length: int | None = Field(default=None, alias="minLength", ge=0)
    max_length: int | None = Field(default=None, alias="maxLength", ge=0)
    pattern: str | None = None
    """Found anywhere in the string unless it is anchored; matched in linear time, without look-around."""
    items: "Words | None" = None

    @model_validator(mode="after")
    def _fit(self) -> Self:
        for field, types in _ONLY_FOR.items():
            if getattr(self, field) is not None and self.type not in types:
                raise Misfit(self._word(field), f"is not for type {self.type}")
        for low, high in (("minimum", "maximum"), ("min_length", "max_length")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise Misfit(self._word(low), f"is above {self._word(high)}")
            if self.type == "integer" and (isinstance(least, float) or isinstance(most, float)):
                raise Misfit(low if isinstance(least, float) else high, "has to be an integer, as the type is")
        bare = self._bare()
        try:
            plain = SchemaValidator(bare)
        except SchemaError as error:
            raise Misfit("pattern", f"is none that can be used: {str(error).splitlines()[-1].strip()[:200]}") from None
        for number, value in enumerate(self.enum or ()):
            if said := wrong(plain, value):
                raise Misfit("enum", f"value {number}: {said}")
        return self

    def core(self) -> CoreSchema:
        """The schema of such a value."""
        bare = self._bare()
        return bare if self.enum is None else core_schema.no_info_after_validator_function(_one_of(self.enum), bare)

    def _bare(self) -> CoreSchema:
        match self.type:
            case "string":
                return core_schema.str_schema(
                    strict=True, pattern=self.pattern, min_length=self.min_length, max_length=self.max_length
                )
            case "integer":
                return core_schema.int_schema(strict=True, ge=_int(self.minimum), le=_int(self.maximum))
            case "number":
                return core_schema.float_schema(strict=True, allow_inf_nan=False, ge=self.minimum, le=self.maximum)
            case "boolean":
                return core_schema.bool_schema(strict=True)
            case "array":
                return core_schema.list_schema(None if self.items is None else self.items.core(), strict=True)
            case "object":
                return core_schema.dict_schema(core_schema.str_schema(strict=True), strict=True)

    @classmethod
    def _word(cls, field: str) -> str:
        return cls.model_fields[field].alias or field


class Parameter(Words):
    """One parameter; without `required` or `default` it may be left out, and stays out."""

    description: str = Field(default="", max_length=1000)
    required: bool = False
    default: Any = None

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        if self.default is not None:
            if self.required:
                raise Misfit("default", "is of no use where the parameter is required")
            if said := wrong(SchemaValidator(self.core()), self.default):
                raise Misfit("default", said)
        return self

    def info(self, name: str) -> ParameterInfo:
        """How it is told to users."""
        return ParameterInfo(name=name, **self.model_dump(exclude={"items"}))


class Parameters:
    """The validator of one pipeline's parameters.

    Raises:
        Misfit: a default is one that the engine would evaluate.
    """

    def __init__(self, declared: Mapping[str, Parameter], engine: EngineName) -> None:
        self._declared = declared
        self._engine = engine
        self._templated = engine in ("argo", "kubeflow")
        fields = {}
        for name, parameter in declared.items():
            schema = parameter.core()
            if parameter.default is not None:
                if said := _objection(parameter.default, self._templated):
                    raise Misfit(f"{name}.default", said)
                schema = core_schema.with_default_schema(schema, default=parameter.default, validate_default=True)
            fields[name] = core_schema.typed_dict_field(schema, required=parameter.required)
        self._validator = SchemaValidator(core_schema.typed_dict_schema(fields, extra_behavior="forbid"))

    def validate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a run: those given, which are of the declared types already, and the defaults.

        One that is None counts as absent. A `number` becomes a float.

        Raises:
            InvalidRequest: names each parameter that is wrong (the first three), never its value.
        """
        found = {name: value for name, value in given.items() if value is not None or name not in self._declared}
        wrong = {
            name: said
            for name in found
            if name in self._declared and (said := _objection(found[name], self._templated))
        }
        if wrong:
            raise _refusal([f"parameters.{name}: {said}" for name, said in wrong.items()])
        try:
            values: dict[str, Any] = self._validator.validate_python(found)
        except ValidationError as error:
            raise _refusal([self._said(item) for item in _errors(error)]) from None
        if (size := self._size(values)) > MAX_JSON:
            raise _refusal([f"parameters: are {size} bytes as JSON, at most {MAX_JSON} are allowed"])
        return values

    def infos(self) -> list[ParameterInfo]:
        """How they are told to users."""
        return [parameter.info(name) for name, parameter in self._declared.items()]

    def _said(self, item: Any) -> str:
        place = ".".join(str(step)[:64] for step in ("parameters", *item["loc"]))
        place = "".join(char if char.isprintable() else "?" for char in place)
        if item["type"] == "missing":
            return f"{place}: is required"
        if item["type"] == "extra_forbidden":
            return f"{place}: is unknown; there {_listed(list(self._declared))}"
        return f"{place}: {item['msg']}"

    def _size(self, values: dict[str, Any]) -> int:
        if self._engine == "rayjob":
            return len(environment_json(values))
        return len(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode())


def wrong(validator: SchemaValidator, value: Any) -> str:
    """What a validator has against a value; empty when nothing."""
    try:
        validator.validate_python(value)
    except ValidationError as error:
        return str(_errors(error)[0]["msg"])
    return ""


def _errors(error: ValidationError) -> list[Any]:
    return error.errors(include_input=False, include_url=False, include_context=False)


def _refusal(said: list[str]) -> InvalidRequest:
    more = [f"and {len(said) - _MAX_NAMED} more"] if len(said) > _MAX_NAMED else []
    return InvalidRequest("; ".join([*said[:_MAX_NAMED], *more]), stage="parameters")


def _listed(names: list[str]) -> str:
    return f"are {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else "are none"


def _int(bound: int | float | None) -> int | None:
    return None if bound is None else int(bound)


def _one_of(values: list[Any]) -> Callable[[Any], Any]:
    listed = ", ".join(json.dumps(value, ensure_ascii=False) for value in values)[:500]

    def check(value: Any) -> Any:
        if value not in values:
            raise PydanticCustomError("enum", "Input should be one of {values}", {"values": listed})
        return value

    return check


def _objection(value: Any, templated: bool, depth: int = 1) -> str:
    """What keeps a value out of every pipeline, or out of one whose engine evaluates templates; empty when nothing."""
    if depth > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH}"
    if isinstance(value, str):
        return _text_objection(value, templated)
    if isinstance(value, dict):
        each = (said for pair in value.items() for part in pair if (said := _objection(part, templated, depth + 1)))
        return next(each, "") if all(type(name) is str for name in value) else "has a key that is no string"
    if isinstance(value, list):
        return next((said for part in value if (said := _objection(part, templated, depth + 1))), "")
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, int):
        return "" if abs(value) <= MAX_INTEGER else f"has an integer beyond {MAX_INTEGER}, which JSON does not keep"
    if isinstance(value, float):
        return "" if abs(value) < float("inf") else "has a number that is not finite"
    return "has something that is no JSON value"


def _text_objection(text: str, templated: bool) -> str:
    if "\0" in text:
        return "has a NUL character, which no argument or environment variable can hold"
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return "has half of a surrogate pair, which is no text"
    if templated and _EVALUATED.search(text):
        return "must not contain '{{', its escape or '$(', nor end with '{': the engine would evaluate what follows"
    return ""
