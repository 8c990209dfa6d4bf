"""Ingestion into a real Milvus Lite server: a collection follows the files, whatever happens on the way."""

import hashlib
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from handler_core.deadline import Deadline
from handler_core.errors import DownstreamUnavailable, Internal
from handler_core.testing_milvus import milvus_lite_server
from handler_core.vectors import Row, VectorStore
from handlers_cli.files import find_files
from handlers_cli.ingest import IngestReport, Progress, ingest

_names = (f"ingest_{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with milvus_lite_server(tmp_path_factory.mktemp("milvus")) as uri:
        yield uri


class HashedEmbeddings:
    """The same vector for the same text, and `fail_after` so many batches an error."""

    def __init__(self, *, fail_after: int = 10**9, dimension: int = 8) -> None:
        self.texts: list[str] = []
        self.batches: list[int] = []
        self._fail_after = fail_after
        self._dimension = dimension

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> list[list[float]]:
        if len(self.batches) >= self._fail_after:
            raise DownstreamUnavailable("the embeddings endpoint is gone")
        self.batches.append(len(texts))
        self.texts += texts
        return [[float(byte) for byte in hashlib.sha256(text.encode()).digest()[: self._dimension]] for text in texts]


class Site:
    """A directory of documents and the collection that is to follow it."""

    def __init__(self, root: Path, store: VectorStore) -> None:
        self.root = root
        self.store = store
        self.collection = next(_names)

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    async def ingest(self, *paths: Path, embeddings: HashedEmbeddings | None = None, batch: int = 32) -> IngestReport:
        return await ingest(
            paths or [self.root],
            store=self.store,
            embeddings=embeddings or HashedEmbeddings(),
            collection=self.collection,
            batch=batch,
        )

    async def texts(self) -> dict[str, list[str]]:
        """The texts stored of each source."""
        hits = await self.store.search(self.collection, [1.0] * 8, top_k=1000, deadline=Deadline.after(30))
        stored: dict[str, list[str]] = {}
        for hit in sorted(hits, key=lambda hit: (hit.metadata["source"], hit.metadata["ordinal"])):
            stored.setdefault(hit.metadata["source"], []).append(hit.text)
        return stored


@pytest.fixture
async def site(tmp_path: Path, milvus_uri: str) -> AsyncIterator[Site]:
    (tmp_path / "docs").mkdir()
    async with VectorStore(milvus_uri) as store:
        yield Site(tmp_path / "docs", store)


async def test_documents_are_stored_with_readable_sources_and_where_each_chunk_stands(site: Site) -> None:
    site.write("guide/loop.md", "# The loop\nIt pulls.\n## Settle\nIt acks.")
    site.write("note.txt", "A note.")

    report = await site.ingest()

    assert report == IngestReport(added=["docs/note.txt", "docs/guide/loop.md"], chunks=3)
    assert await site.texts() == {"docs/guide/loop.md": ["It pulls.", "It acks."], "docs/note.txt": ["A note."]}
    hits = await site.store.search(
        site.collection,
        [1.0] * 8,
        top_k=9,
        filter={"source": "docs/guide/loop.md", "ordinal": 1},
        deadline=Deadline.after(30),
    )
    assert [hit.metadata for hit in hits] == [
        {
            "source": "docs/guide/loop.md",
            "title": "The loop",
            "headings": ["The loop", "Settle"],
            "ordinal": 1,
            "start_line": 4,
        }
    ]


async def test_a_second_run_embeds_nothing(site: Site) -> None:
    site.write("a.md", "# A\nText.")
    site.write("b.md", "Same. \n\n# B\nSame.\n# B\nSame.")
    await site.ingest()
    again = HashedEmbeddings()

    report = await site.ingest(embeddings=again)

    assert again.batches == []
    assert report == IngestReport(unchanged=["docs/a.md", "docs/b.md"])
    assert len((await site.texts())["docs/b.md"]) == 3


async def test_a_changed_file_replaces_its_chunks_and_embeds_only_what_is_new(site: Site) -> None:
    site.write("a.md", "# One\nKept.\n# Two\nOld.")
    await site.ingest()
    site.write("a.md", "# One\nKept.\n# Two\nNew.")
    embeddings = HashedEmbeddings()

    report = await site.ingest(embeddings=embeddings)

    assert embeddings.texts == ["One > Two\n\nNew."]
    assert report == IngestReport(updated=["docs/a.md"], chunks=1, deleted_chunks=1)
    assert await site.texts() == {"docs/a.md": ["Kept.", "New."]}


async def test_a_chunk_that_moved_tells_its_new_place(site: Site) -> None:
    site.write("a.md", "# A\nText.")
    await site.ingest()
    site.write("a.md", "\n\n\n# A\nText.")
    await site.ingest()
    hits = await site.store.search(site.collection, [1.0] * 8, top_k=9, deadline=Deadline.after(30))
    assert [(hit.text, hit.metadata["start_line"]) for hit in hits] == [("Text.", 5)]


async def test_files_that_are_gone_leave_the_collection_and_others_stay(site: Site) -> None:
    site.write("a.md", "A.")
    site.write("sub/b.md", "B.")
    await site.ingest()
    other = site.root.parent / "docs2"
    other.mkdir()
    (other / "c.md").write_text("C.")
    await site.ingest(other)
    (site.root / "sub" / "b.md").unlink()

    report = await site.ingest()

    assert report == IngestReport(unchanged=["docs/a.md"], removed=["docs/sub/b.md"], deleted_chunks=1)
    assert await site.texts() == {"docs/a.md": ["A."], "docs2/c.md": ["C."]}


async def test_an_emptied_file_loses_its_chunks(site: Site) -> None:
    site.write("a.md", "A.")
    await site.ingest()
    site.write("a.md", "")
    assert await site.ingest() == IngestReport(updated=["docs/a.md"], deleted_chunks=1)
    assert await site.texts() == {}


async def test_a_bad_file_is_named_and_the_others_go_on(site: Site) -> None:
    site.write("a.pdf", "no pdf")
    site.write("b.md", "B.")
    site.write("empty.md", " \n")
    report = await site.ingest(site.root, site.root / "missing")
    assert report.added == ["docs/b.md"]
    assert [(Path(skipped.path).name, skipped.reason.partition(":")[0]) for skipped in report.skipped] == [
        ("missing", "is no file or directory"),
        ("a.pdf", "is no readable PDF"),
        ("empty.md", "has no text"),
    ]


async def test_a_file_that_cannot_be_read_for_now_keeps_what_is_stored(site: Site) -> None:
    site.write("a.md", "A.")
    await site.ingest()
    (site.root / "a.md").write_bytes(b"\x00 broken")
    report = await site.ingest()
    assert (report.removed, len(report.skipped)) == ([], 1)
    assert await site.texts() == {"docs/a.md": ["A."]}


async def test_the_same_file_named_twice_is_taken_once(site: Site) -> None:
    site.write("a.md", "A.")
    assert await site.ingest(site.root, site.root / "a.md") == IngestReport(added=["docs/a.md"], chunks=1)


@pytest.mark.parametrize("batches", range(5))
async def test_a_run_that_breaks_off_is_completed_by_the_next(site: Site, batches: int) -> None:
    site.write("a.md", "# 1\na1\n# 2\na2\n# 3\na3")
    site.write("b.md", "# 1\nb1\n# 2\nb2\n# 3\nb3")
    site.write("c.md", "gone later")
    await site.ingest()
    site.write("a.md", "# 1\na1\n# 2\nnew2\n# 3\nnew3\n# 4\nnew4")
    site.write("b.md", "# 1\nnew1\n# 2\nnew2")
    (site.root / "c.md").unlink()

    first = HashedEmbeddings(fail_after=batches)
    with pytest.raises(DownstreamUnavailable):
        await site.ingest(embeddings=first, batch=1)
    assert set((await site.texts())["docs/a.md"]) >= {"a1", "a2", "a3"}, "nothing is deleted before all is stored"
    second = HashedEmbeddings()
    await site.ingest(embeddings=second, batch=1)

    assert len(first.texts) + len(second.texts) == 5
    assert await site.texts() == {"docs/a.md": ["a1", "new2", "new3", "new4"], "docs/b.md": ["new1", "new2"]}
    assert await site.ingest() == IngestReport(unchanged=["docs/a.md", "docs/b.md"])


async def test_chunks_are_embedded_in_batches_over_all_files(site: Site) -> None:
    for n in range(5):
        site.write(f"{n}.md", f"# 1\nx{n}\n# 2\ny{n}")
    seen: list[Progress] = []
    embeddings = HashedEmbeddings()

    await ingest(
        [site.root],
        store=site.store,
        embeddings=embeddings,
        collection=site.collection,
        on_progress=seen.append,
        batch=4,
    )

    assert embeddings.batches == [4, 4, 2]
    assert seen[-1] == Progress("docs/4.md", files_done=5, files=5, chunks=10)
    assert [progress.chunks for progress in seen] == sorted(progress.chunks for progress in seen)


async def test_another_embedding_model_is_told_before_anything_changes(site: Site) -> None:
    site.write("a.md", "A.")
    await site.ingest()
    site.write("a.md", "B.")
    with pytest.raises(Internal, match="filled with another embedding model"):
        await site.ingest(embeddings=HashedEmbeddings(dimension=9))
    assert await site.texts() == {"docs/a.md": ["A."]}


async def test_too_few_vectors_are_an_error(site: Site) -> None:
    class Short(HashedEmbeddings):
        async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> list[list[float]]:
            return (await super().embed(texts, deadline=deadline))[1:]

    site.write("a.md", "A.")
    with pytest.raises(Internal, match="embeddings of 1 texts, got 0"):
        await site.ingest(embeddings=Short())


async def test_sources_with_quotes_are_kept_apart(site: Site) -> None:
    name = 'it\'s "x" or 1==1.md'
    site.write(name, "Odd.")
    site.write("a.md", "A.")
    await site.ingest()
    (site.root / name).unlink()
    assert (await site.ingest()).removed == [f"docs/{name}"]
    assert await site.texts() == {"docs/a.md": ["A."]}


async def test_rows_of_others_in_the_collection_are_left_alone(site: Site) -> None:
    site.write("a.md", "A.")
    await site.ingest()
    await site.store.upsert(site.collection, [Row("x", "X", "elsewhere/docs/a.md", "h", {}, [1.0] * 8)])
    await site.ingest()
    assert await site.store.sources(site.collection) == {"docs/a.md": 1, "elsewhere/docs/a.md": 1}


def test_what_is_hidden_installed_or_no_document_is_not_found(tmp_path: Path) -> None:
    for name in (
        "a.md",
        "b.PDF",
        "c.py",
        ".d.md",
        ".git/e.md",
        "node_modules/f/g.md",
        "env/h.md",
        "x/.y/i.md",
        "x/j.html",
    ):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / name).touch()
    (tmp_path / "docs" / "env" / "pyvenv.cfg").touch()
    (tmp_path / "docs" / "broken.md").symlink_to(tmp_path / "nowhere")
    found = find_files([tmp_path / "docs"])
    assert list(found.files) == ["docs/a.md", "docs/b.PDF", "docs/x/j.html"]
    assert [skipped.reason for skipped in found.skipped] == ["is no regular file"]


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ("docs", "docs/sub/a.md"),
        ("./docs", "docs/sub/a.md"),
        ("docs/sub", "docs/sub/a.md"),
        ("docs/sub/a.md", "docs/sub/a.md"),
        ("{here}/docs", "docs/sub/a.md"),
        ("{here}/docs/sub/a.md", "sub/a.md"),
        ("docs/../docs", "docs/sub/a.md"),
        (".", "here/docs/sub/a.md"),
    ],
)
def test_a_source_is_the_path_as_given_or_starts_at_its_last_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, source: str
) -> None:
    here = tmp_path / "here"
    (here / "docs" / "sub").mkdir(parents=True)
    (here / "docs" / "sub" / "a.md").touch()
    monkeypatch.chdir(here)
    assert list(find_files([Path(given.format(here=here))]).files) == [source]


def test_two_files_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    for root in ("one/docs", "two/docs"):
        (tmp_path / root).mkdir(parents=True)
        (tmp_path / root / "a.md").touch()
    found = find_files([tmp_path / "one" / "docs", tmp_path / "two" / "docs"])
    assert list(found.files.values()) == [tmp_path / "one" / "docs" / "a.md"]
    assert [skipped.reason for skipped in found.skipped] == ["another file is already known as docs/a.md"]


def test_nothing_below_a_directory_that_could_not_be_read_counts_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    (tmp_path / "docs" / "locked").mkdir(parents=True)
    scan = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_files([tmp_path / "docs"])
    assert [skipped.reason for skipped in found.skipped] == ["Permission denied"]
    assert found.gone(["docs/locked/a.md", "docs/gone.md", "other/x.md", "docs2/y.md"]) == ["docs/gone.md"]
