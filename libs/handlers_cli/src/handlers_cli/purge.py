"""`handlers dlq purge`: dead letters deleted for good."""

import typer

from handler_core.jetstream import Api
from handlers_cli.letter_view import WAIT
from handlers_cli.letters import delete
from handlers_cli.progress import progress
from handlers_cli.session import connected, err, out
from handlers_cli.settings import CliSettings


async def purge(config: CliSettings, sequences: list[int]) -> None:
    """Delete letters and say how many; exits 1 when one was not there."""
    deleted, missing = 0, []
    async with connected(config, WAIT) as nc:
        api = Api(nc)
        try:
            with progress("deleting", len(sequences)) as advance:
                for sequence in sequences:
                    if await delete(api, sequence):
                        deleted += 1
                    else:
                        missing.append(sequence)
                    advance()
        finally:
            out.print(f"{deleted} dead letter{'' if deleted == 1 else 's'} deleted")
    for sequence in missing:
        err.print(f"[bold red]error:[/] there is no dead letter {sequence}")
    if missing:
        raise typer.Exit(1)
