"""`handlers ingest`: documents into the vector store, with a progress bar."""

import dataclasses
import json as json_module
from pathlib import Path

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from handler_core.clients.http import new_session
from handler_core.upstreams import embeddings, vector_store
from handlers_cli.chunking import approximate_tokens, tokenizer_counter
from handlers_cli.ingest import EMBED_TIMEOUT, IngestReport, Progress, ingest
from handlers_cli.session import err, interactive, out
from handlers_cli.settings import CliSettings


async def ingest_command(
    config: CliSettings,
    paths: list[Path],
    collection: str | None,
    chunk_tokens: int,
    overlap: int,
    tokenizer: Path | None,
    *,
    json: bool,
) -> None:
    """Ingest and report; exits 1 when a file could not be read, 2 when the options do not fit each other."""
    if overlap > chunk_tokens // 2:
        raise typer.BadParameter("may be half of --chunk-tokens at most", param_hint="--overlap")
    collection = collection or config.collection_name
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=err, disable=not interactive(), transient=True) as bar:
        files = bar.add_task("files", total=None)
        chunks = bar.add_task("chunks", total=None)

        def show(progress: Progress) -> None:
            bar.update(files, completed=progress.files_done, total=progress.files)
            bar.update(chunks, completed=progress.chunks)

        async with new_session() as session, vector_store(config) as store:
            report = await ingest(
                paths,
                store=store,
                embeddings=embeddings(session, config, timeout=EMBED_TIMEOUT),
                collection=collection,
                on_progress=show,
                size=chunk_tokens,
                overlap=overlap,
                count=approximate_tokens if tokenizer is None else tokenizer_counter(tokenizer),
            )
    if json:
        print(json_module.dumps(dataclasses.asdict(report), default=str))
    else:
        _print(report, collection)
    if report.skipped:
        raise typer.Exit(1)


def _print(report: IngestReport, collection: str) -> None:
    for kind in ("added", "updated", "removed"):
        for source in getattr(report, kind):
            out.print(f"{kind:8} {source}", markup=False)
    for skipped in report.skipped:
        err.print(f"[yellow]skipped[/]  {escape(skipped.path)}: {escape(skipped.reason)}")
    out.print(
        f"{collection}: {report.chunks} chunks stored, {report.deleted_chunks} deleted; "
        f"{len(report.added)} files added, "
        f"{len(report.updated)} updated, {len(report.removed)} removed, {len(report.unchanged)} unchanged",
        markup=False,
    )
