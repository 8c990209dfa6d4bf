"""`handlers`: the command line beside the services."""

from pathlib import Path
from typing import Annotated

import typer

from handlers_cli.session import run, settings

app = typer.Typer(
    name="handlers",
    help="Ask the handlers questions, feed them documents, and look after their streams.\n\n"
    "Settings come from the environment, under the services' own names: NATS_URL, EMBEDDINGS_URL, MILVUS_URI, …",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
streams_app = typer.Typer(help="Create and compare the JetStream streams and consumers.", no_args_is_help=True)
app.add_typer(streams_app, name="streams")

Timeout = Annotated[float, typer.Option(help="Seconds to wait in all.", min=0.1)]


@app.command(epilog="Example: [bold]handlers ask 'What happens to a poison message?' --top-k 3[/]")
def ask(
    text: Annotated[str, typer.Argument(help="The question.", metavar="QUESTION")],
    json: Annotated[bool, typer.Option("--json", help="Print the final response as one JSON object.")] = False,
    stream: Annotated[bool, typer.Option(help="Show the answer while it is written.")] = True,
    user: Annotated[str | None, typer.Option(help="Ask as this user, on the user's own subject.")] = None,
    collection: Annotated[str | None, typer.Option(help="Collection to search.")] = None,
    filter: Annotated[str | None, typer.Option(help="Conditions on the sources' metadata, as a JSON object.")] = None,
    top_k: Annotated[int, typer.Option(help="Sources for the answer.", min=1, max=100)] = 5,
    rag: Annotated[bool, typer.Option(help="Search for sources at all.")] = True,
    rerank: Annotated[bool, typer.Option(help="Let the reranker order them.")] = True,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    premium: Annotated[bool, typer.Option(help="Use the premium endpoint.")] = False,
    timeout: Timeout = 120.0,
) -> None:
    """Ask a question: the answer as it is written, then its sources and where the time went."""
    from handlers_cli.ask import ask

    fields = {
        "query": text,
        "enable_streaming": stream and not json,
        "user_id": user,
        "collection": collection,
        "filter": filter,
        "top_k": top_k,
        "enable_rag": rag,
        "enable_reranker": rerank,
        "system_prompt": system,
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "premium": premium,
    }
    run(ask(settings(), fields, json=json, timeout=timeout))


@app.command(epilog="Example: [bold]handlers ingest README.md docs/ --collection documents[/]")
def ingest(
    paths: Annotated[
        list[Path], typer.Argument(help="Files and folders: markdown, text, HTML, PDF.", exists=True, metavar="PATH...")
    ],
    collection: Annotated[str | None, typer.Option(help="Collection to fill; COLLECTION_NAME when absent.")] = None,
    chunk_tokens: Annotated[int, typer.Option(help="Largest chunk, in tokens.", min=32, max=8192)] = 200,
    overlap: Annotated[int, typer.Option(help="Tokens that neighbouring chunks share.", min=0)] = 40,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json to count tokens with; about right without.", exists=True)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Read documents, cut them into chunks, embed and store them; what has not changed is left alone.

    A file that is gone from a folder given here leaves the collection. Interrupt it at any point: the next run goes
    on from there.
    """
    from handlers_cli.ingest_command import ingest_command

    run(ingest_command(settings(), paths, collection, chunk_tokens, overlap, tokenizer, json=json))


@streams_app.command("apply", epilog="Example: [bold]handlers streams apply --replicas 3[/]")
def streams_apply(
    replicas: Annotated[int, typer.Option(help="Copies of each stream: 1, 3 or 5.", min=1, max=5)] = 1,
    wait: Annotated[float, typer.Option(help="Seconds to wait for NATS.", min=0.1)] = 5.0,
) -> None:
    """Create what is missing and update what differs. Nothing is ever deleted; a second run changes nothing."""
    from handlers_cli.streams import apply

    run(apply(settings(), replicas, wait))


@streams_app.command("diff")
def streams_diff(
    replicas: Annotated[int, typer.Option(help="Copies of each stream: 1, 3 or 5.", min=1, max=5)] = 1,
    wait: Annotated[float, typer.Option(help="Seconds to wait for NATS.", min=0.1)] = 5.0,
) -> None:
    """Say what differs between the declarations and the server; exit code 1 when something does."""
    from handlers_cli.streams import diff

    run(diff(settings(), replicas, wait))


if __name__ == "__main__":
    app()
