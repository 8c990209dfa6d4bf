"""Messages as JSON schemas: apart, since what makes them takes more than a megabyte and is seldom asked for."""

import json
from typing import TYPE_CHECKING

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from handler_core.contract.base import Message

if TYPE_CHECKING:
    from pydantic_core import core_schema


class _Base64(GenerateJsonSchema):
    """JSON schema in which bytes are what they are in JSON here."""

    def bytes_schema(self, schema: "core_schema.BytesSchema") -> JsonSchemaValue:
        return {"type": "string", "contentEncoding": "base64"}


def json_schema(model: type[Message], mode: JsonSchemaMode) -> str:
    """A model's schema on one line, as it is read (`validation`) or as it is written (`serialization`)."""
    return json.dumps(model.model_json_schema(schema_generator=_Base64, mode=mode), separators=(",", ":"))
