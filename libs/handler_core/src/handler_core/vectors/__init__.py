"""The vector store: passages with their embeddings in Milvus (or Milvus Lite's server), searched and kept up to date.

Importing this is cheap: gRPC waits for the first use (or `connect`) and is imported in a thread. Searching needs no
more than that (`handler-core[search]`); filling a collection takes pymilvus (`handler-core[vectors]`).
"""

from handler_core.vectors.layout import Hit, Row
from handler_core.vectors.store import VectorStore

__all__ = ["Hit", "Row", "VectorStore"]
