"""Documents into a collection of the vector store, and kept there as they are on disk.

Every step can be interrupted: chunks are recognised by what they say, so the next run embeds only those that are not
there yet, and what is out of date is deleted last, after all that replaces it is stored.
"""

import asyncio
import hashlib
import json
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from handler_core.deadline import Deadline
from handler_core.errors import Internal, NotFound
from handler_core.vectors import Row, VectorStore
from handlers_cli.chunking import OVERLAP, SIZE, Chunk, Counter, approximate_tokens, chunk_document
from handlers_cli.documents import UnreadableDocument, read_document
from handlers_cli.files import Found, Skipped, find_files

BATCH = 32
"""Chunks in one request for embeddings: what TEI allows unless told otherwise."""
EMBED_TIMEOUT = 120.0
"""Seconds for one such request, which on a CPU may take its time."""


class Embeddings(Protocol):
    """What gives the vectors: a client of an embeddings endpoint."""

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> Sequence[Sequence[float]]:
        """A vector for each of `texts`, in their order."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it has come."""

    source: str
    """The file that was just read."""
    files_done: int
    files: int
    chunks: int
    """Embedded and stored so far."""


@dataclass(slots=True)
class IngestReport:
    """What a run did, file by file; sources in the order in which they came."""

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """Sources below an ingested directory whose files are gone."""
    chunks: int = 0
    """Embedded and stored."""
    deleted_chunks: int = 0
    skipped: list[Skipped] = field(default_factory=list)


async def ingest(
    paths: Iterable[Path | str],
    *,
    store: VectorStore,
    embeddings: Embeddings,
    collection: str,
    on_progress: Callable[[Progress], None] | None = None,
    size: int = SIZE,
    overlap: int = OVERLAP,
    count: Counter = approximate_tokens,
    batch: int = BATCH,
) -> IngestReport:
    """Bring `collection` up to date with the documents at `paths`, making it if there is none.

    A file whose chunks are all stored is left alone; of a changed one only new or moved chunks are embedded. A source
    is removed when it lies below one of the directories given (by its name, see `find_files`) and no document is found
    there by that name any more. Files that are there but cannot be read, sources elsewhere, and those of a file that
    was itself given and is missing keep their chunks. A collection belongs to one embedding model: to change it, drop
    the collection.

    Args:
        on_progress: called after each file that was read, and each batch that was stored.
        size, overlap, count: as for `chunk_document`.
        batch: chunks in one request for embeddings.

    Raises:
        HandlerError: of the embeddings endpoint or the vector store; what is stored by then is kept.
        Internal: the collection holds vectors of another dimension.
    """
    found = await asyncio.to_thread(find_files, [Path(path) for path in paths])
    try:
        await store.load(collection)
        known = await store.sources(collection)
    except NotFound:
        known = {}
    run = _Run(store, embeddings, collection, batch, found, known, on_progress)
    for source, path in found.files.items():
        try:
            chunks = await asyncio.to_thread(_read, path, source, size, overlap, count)
        except UnreadableDocument as error:
            run.report.skipped.append(Skipped(str(path), str(error)))
        else:
            await run.add(source, chunks)
        run.files_done += 1
        run.progress(source)
    await run.finish()
    return run.report


def _read(path: Path, source: str, size: int, overlap: int, count: Counter) -> dict[str, Chunk]:
    """The chunks of a file by their ids, each made of the source and the text, so that it outlives a move."""
    seen: Tally[str] = Tally()
    chunks = {}
    for chunk in chunk_document(read_document(path, source), size=size, overlap=overlap, count=count):
        text = chunk.embedded
        chunks[_hash(source, text, str(seen[text]))] = chunk
        seen[text] += 1
    return chunks


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _content_hash(chunk: Chunk) -> str:
    return _hash(chunk.text, json.dumps(chunk.metadata, sort_keys=True))


class _Run:
    """One run: what waits for its embedding, and what is to be deleted at the end."""

    def __init__(
        self,
        store: VectorStore,
        embeddings: Embeddings,
        collection: str,
        batch: int,
        found: Found,
        known: Mapping[str, int],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.report = IngestReport(skipped=list(found.skipped))
        self.files_done = 0
        self._store = store
        self._embeddings = embeddings
        self._collection = collection
        self._batch = batch
        self._found = found
        self._known = known
        self._on_progress = on_progress
        self._ensured = False
        self._waiting: list[tuple[str, Chunk]] = []
        self._obsolete: list[str] = []

    async def add(self, source: str, chunks: Mapping[str, Chunk]) -> None:
        """Compare a document with what is stored of it; embed what is new as soon as there is a batch."""
        stored = await self._store.hashes(self._collection, source) if source in self._known else {}
        new = [(key, chunk) for key, chunk in chunks.items() if stored.get(key) != _content_hash(chunk)]
        obsolete = stored.keys() - chunks.keys()
        if not chunks and not stored:
            self.report.skipped.append(Skipped(str(self._found.files[source]), "has no text"))
        elif not stored:
            self.report.added.append(source)
        else:
            (self.report.updated if new or obsolete else self.report.unchanged).append(source)
        self._obsolete += sorted(obsolete)
        self._waiting += new
        while len(self._waiting) >= self._batch:
            await self._store_batch(source)

    async def finish(self) -> None:
        """Store the rest; then delete what is out of date, and the documents that are gone."""
        if self._waiting:
            await self._store_batch(self._waiting[-1][1].source)
        for source in sorted(self._found.gone(self._known)):
            self._obsolete += await self._store.hashes(self._collection, source)
            self.report.removed.append(source)
        await self._store.delete(self._collection, self._obsolete)
        self.report.deleted_chunks = len(self._obsolete)

    def progress(self, source: str) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(source, self.files_done, len(self._found.files), self.report.chunks))

    async def _store_batch(self, source: str) -> None:
        entries = self._waiting[: self._batch]
        texts = [chunk.embedded for _, chunk in entries]
        vectors = await self._embeddings.embed(texts, deadline=Deadline.after(EMBED_TIMEOUT))
        if len(vectors) != len(texts):
            raise Internal(f"asked for the embeddings of {len(texts)} texts, got {len(vectors)}")
        if not self._ensured:
            await self._store.ensure_collection(self._collection, len(vectors[0]))
            self._ensured = True
        rows = [
            Row(key, chunk.text, chunk.source, _content_hash(chunk), chunk.metadata, vector)
            for (key, chunk), vector in zip(entries, vectors, strict=True)
        ]
        await self._store.upsert(self._collection, rows)
        del self._waiting[: len(entries)]
        self.report.chunks += len(rows)
        self.progress(source)
