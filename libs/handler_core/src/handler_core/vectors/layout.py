"""What is in a collection: rows as they are stored, hits as they are found, and what the fields are called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handler_core.contract.chat import FilterTerm
from handler_core.errors import Internal, InvalidRequest
from handler_core.filters import expression

# The numbers that Milvus's protocol has for types. Source: schema.proto of milvus-io/milvus-proto.
_JSON = 23
_FLOAT_VECTOR = 101
_SCALARS = {1, 2, 3, 4, 5, 10, 11, 21, 22, _JSON}


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that a search found."""

    id: str
    text: str
    score: float
    """As the collection's metric gives it: cosine similarity for collections made here."""
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A row that Milvus found: its key, its score, and the fields asked for."""

    key: int | str
    score: float
    fields: dict[str, Any]


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

    def hit(self, found: Found) -> Hit:
        """A result of a search, as handlers take it."""
        fields = {name: value for name, value in found.fields.items() if name != self.id_field}
        text = fields.pop(self.text_field, None)
        own = fields.pop("metadata", None) if self.filter_field == "metadata" else None
        metadata = {**fields, **own} if isinstance(own, dict) else fields
        return Hit(id=str(found.key), text=str(text or ""), score=found.score, metadata=metadata)


def read_layout(described: Any, text_field: str) -> Layout:
    """The layout that Milvus's description of a collection, a message `DescribeCollectionResponse`, tells.

    Raises:
        Internal: it has no float vectors, or no `text_field`.
    """
    collection, schema = described.collection_name, described.schema
    kinds = {field.name: field.data_type for field in schema.fields}
    vector = next((field for field in schema.fields if field.data_type == _FLOAT_VECTOR), None)
    if vector is None:
        raise Internal(f"collection {collection} has no field of float vectors")
    if text_field not in kinds and not schema.enable_dynamic_field:
        raise Internal(f"collection {collection} has no field {text_field}")
    dynamic = schema.enable_dynamic_field
    output = [name for name, kind in kinds.items() if kind in _SCALARS and name not in ("content_hash", "$meta")]
    return Layout(
        collection=collection,
        names=frozenset(kinds),
        id_field=next(field.name for field in schema.fields if field.is_primary_key),
        text_field=text_field,
        vector_field=vector.name,
        dimension=next(int(pair.value) for pair in vector.type_params if pair.key == "dim"),
        output_fields=tuple([*output, "$meta"] if dynamic else output),
        filter_field="metadata" if kinds.get("metadata") == _JSON else "$meta" if dynamic else None,
    )
