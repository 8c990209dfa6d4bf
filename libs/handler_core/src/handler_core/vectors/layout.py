"""What is in a collection: rows as they are stored, hits as they are found, and what the fields are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler_core.contract.chat import FilterTerm
from handler_core.errors import Internal, InvalidRequest
from handler_core.filters import expression

_SCALARS = {"BOOL", "INT8", "INT16", "INT32", "INT64", "FLOAT", "DOUBLE", "VARCHAR", "ARRAY", "JSON"}


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search found."""

    id: str
    text: str
    score: float
    """As the collection's metric gives it: cosine similarity for collections made here."""
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A passage as it is stored.

    Longest, in bytes: `id` and `content_hash` 128, `source` 4,096, `text` 65,535, `metadata` 65,536 as JSON.
    """

    id: str
    text: str
    source: str
    content_hash: str
    metadata: Mapping[str, Any]
    vector: Sequence[float]

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "source": self.source,
            "content_hash": self.content_hash,
            "metadata": dict(self.metadata),
            "vector": list(self.vector),
        }


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a collection, made by `VectorStore.ensure_collection` or not."""

    collection: str
    names: frozenset[str]
    id_field: str
    text_field: str
    vector_field: str
    dimension: int
    output_fields: tuple[str, ...]
    filter_field: str | None
    """What a filter applies to: the JSON field `metadata`, else `$meta`, the dynamic fields, if there are any."""

    def check_dimension(self, dimension: int) -> None:
        """Raise `Internal` unless the collection's vectors have so many dimensions."""
        if self.dimension != dimension:
            raise Internal(
                f"collection {self.collection} holds vectors of {self.dimension} dimensions, but the embedding has "
                f"{dimension}: it was filled with another embedding model"
            )

    def condition(self, filter: Mapping[str, FilterTerm] | None) -> str:
        """`filter` as a Milvus expression; raises `InvalidRequest` where that is not possible."""
        if not filter:
            return ""
        if self.filter_field is None:
            raise InvalidRequest(f"filter: collection {self.collection} has no metadata")
        return expression(filter, field=self.filter_field)

    def hit(self, found: Mapping[str, Any]) -> Hit:
        """A result of pymilvus's search."""
        entity = {name: _plain(value) for name, value in found["entity"].items() if name != self.id_field}
        text = entity.pop(self.text_field, None)
        own = entity.pop("metadata", None) if self.filter_field == "metadata" else None
        metadata = {**entity, **own} if isinstance(own, dict) else entity
        return Hit(
            id=str(found[self.id_field]), text=str(text or ""), score=float(found["distance"]), metadata=metadata
        )


def read_layout(described: Mapping[str, Any], text_field: str) -> Layout:
    """The layout that pymilvus's description of a collection tells.

    Raises:
        Internal: it has no float vectors, or no `text_field`.
    """
    collection = described["collection_name"]
    kinds = {field["name"]: field["type"].name for field in described["fields"]}
    dynamic = bool(described.get("enable_dynamic_field"))
    vector = next((field for field in described["fields"] if field["type"].name == "FLOAT_VECTOR"), None)
    if vector is None:
        raise Internal(f"collection {collection} has no field of float vectors")
    if text_field not in kinds and not dynamic:
        raise Internal(f"collection {collection} has no field {text_field}")
    output = [name for name, kind in kinds.items() if kind in _SCALARS and name != "content_hash"]
    return Layout(
        collection=collection,
        names=frozenset(kinds),
        id_field=next(field["name"] for field in described["fields"] if field.get("is_primary")),
        text_field=text_field,
        vector_field=vector["name"],
        dimension=int(vector["params"]["dim"]),
        output_fields=tuple([*output, "$meta"] if dynamic else output),
        filter_field="metadata" if kinds.get("metadata") == "JSON" else "$meta" if dynamic else None,
    )


def _plain(value: Any) -> Any:
    """As JSON has it: the value of an array field comes as one of protobuf's sequences."""
    return value if value is None or isinstance(value, (str, int, float, dict)) else list(value)
