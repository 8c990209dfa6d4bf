"""`handlers`: the command line beside the services."""

from pathlib import Path
from typing import Annotated

import typer

from handlers_cli import bench, dlq, pipeline_commands, sessions, voice_commands
from handlers_cli.session import run, settings

app = typer.Typer(
    name="handlers",
    help="Ask the handlers questions, talk to them, feed them documents, run pipelines, and look after the streams.\n\n"
    "Settings come from the environment, under the services' own names: NATS_URL, EMBEDDINGS_URL, MILVUS_URI, …",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
streams_app = typer.Typer(help="Create and compare the JetStream streams and consumers.", no_args_is_help=True)
app.add_typer(streams_app, name="streams")
app.add_typer(dlq.app, name="dlq")
app.add_typer(sessions.app, name="sessions")
app.add_typer(pipeline_commands.app, name="pipeline")
app.add_typer(bench.app, name="bench")
app.command(epilog="Example: [bold]handlers say 'Good morning.' -o morning.wav[/]")(voice_commands.say)
app.command(epilog="Example: [bold]handlers voices --refresh[/]")(voice_commands.voices)
app.command(epilog="Example: [bold]arecord -f S16_LE -r 16000 | handlers listen -[/]")(voice_commands.listen)
app.command(epilog="Example: [bold]handlers talk question.wav -o answer.wav[/]")(voice_commands.talk)

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
    session: Annotated[str | None, typer.Option(help="Go on with, or begin, the conversation of this name.")] = None,
    request_id: Annotated[str | None, typer.Option(help="Name the turn; a name used before gives that answer.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Draw the stages as a waterfall.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the request's id on stderr.")] = False,
    timeout: Timeout = 120.0,
) -> None:
    """Ask a question: the answer as it is written, then its sources and where the time went.

    Ctrl-C cancels the turn.
    """
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
        "session_id": session,
        "request_id": request_id,
    }
    run(ask(settings(), fields, json=json, timeout=timeout, trace=trace, verbose=verbose))


@app.command(epilog="Example: [bold]handlers cancel 0c1f5e --reason 'asked the wrong thing'[/]")
def cancel(
    request_id: Annotated[str, typer.Argument(help="The turn, as `handlers ask --verbose` and the like print it.")],
    reason: Annotated[str, typer.Option(help="Kept with the cancel.")] = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait for the turn's end; 0 not to.", min=0)] = 5.0,
) -> None:
    """Cancel a turn, running, queued or yet to come, and say what became of it. Exits 1 when it had ended already."""
    from handlers_cli.cancel import cancel

    run(cancel(settings(), request_id, reason, wait))


@app.command(epilog="Example: [bold]handlers services chat_handler[/]")
def services(
    name: Annotated[str | None, typer.Argument(help="Only this service, or NAME.ID for one instance.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the first reply.", min=0.1)] = 2.0,
) -> None:
    """List the running NATS micro services, their endpoints and how these fare. Exits 1 when none answers."""
    from handlers_cli.services import services

    run(services(settings(), name, wait, json=json))


@app.command(epilog="Example: [bold]handlers doctor --timeout 2[/]")
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for each check.", min=0.1)] = 5.0,
) -> None:
    """Check every setting, endpoint, stream and consumer, and say what to fix. Exits 1 when a check failed."""
    from handlers_cli.doctor import doctor

    run(doctor(timeout, json=json))


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


@streams_app.command(
    "render", epilog="Example: [bold]handlers streams render --replicas 3 --namespace ai | kubectl apply -f -[/]"
)
def streams_render(
    replicas: Annotated[int, typer.Option(help="Copies of each stream: 1, 3 or 5.", min=1, max=5)] = 1,
    namespace: Annotated[str | None, typer.Option(help="Namespace of the resources.")] = None,
    account: Annotated[str | None, typer.Option(help="NACK's Account resource that says how to reach NATS.")] = None,
    server: Annotated[
        list[str] | None, typer.Option(help="NATS URL, where the controller's own is not meant; may be repeated.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Print the declarations as resources of NACK, the JetStream controller for Kubernetes. Needs no NATS.

    What they have no field for is an error.
    """
    from handlers_cli.render import render

    render(replicas=replicas, namespace=namespace, account=account, servers=server or (), json=json)


@app.command(epilog="Example: [bold]handlers lag --monitor http://127.0.0.1:8222 --lag-threshold 5[/]")
def lag(
    monitor: Annotated[
        str | None,
        typer.Option(
            envvar="NATS_MONITOR_URL",
            metavar="URL",
            help="Read NATS's monitoring port, as KEDA does, and not JetStream.",
        ),
    ] = None,
    account: Annotated[str, typer.Option(help="With --monitor: the account of the streams.")] = "$G",
    lag_threshold: Annotated[int, typer.Option(help="Messages for one replica; KEDA's lagThreshold.", min=1)] = 10,
    max_replicas: Annotated[int, typer.Option(help="KEDA's maxReplicaCount.", min=1)] = 100,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Read again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="With --watch: how often.", min=0.1)] = 2.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Show how far the consumers are behind, and the replicas that KEDA would want; exit code 1 if one is missing."""
    from handlers_cli.lag import Options, lag

    options = Options(monitor, account, lag_threshold, max_replicas, every if watch else None, json=json)
    run(lag(settings(), options))


if __name__ == "__main__":
    app()
