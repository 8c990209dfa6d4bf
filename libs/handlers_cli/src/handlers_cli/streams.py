"""`handlers streams`: make the server match the declarations, or say how it differs."""

import typer

from handler_core import streams
from handler_core.jetstream import Api, JetStreamError
from handlers_cli.session import connected, err, out, say_error
from handlers_cli.settings import CliSettings

_NO_ROOM = frozenset({10002, 10023, 10047})
"""The account's or the server's storage would not hold what a stream may grow to."""


async def apply(config: CliSettings, replicas: int, wait: float) -> None:
    """Create and update; prints one line for each change, and exits 1 when something cannot be changed in place."""
    async with connected(config, wait) as nc:
        try:
            changed = await streams.apply(Api(nc), replicas=replicas)
        except streams.NotInPlace as refused:
            for difference in refused.differences:
                err.print(f"[bold red]refused[/] {difference}", markup=True)
            err.print("Back up what the stream holds, delete it (nats stream rm), and apply again.")
            raise typer.Exit(1) from None
        except JetStreamError as error:
            if error.err_code not in _NO_ROOM:
                raise
            wanted = -(-sum(stream.max_bytes for stream in streams.STREAMS) // (1 << 30))
            text = f"the streams reserve up to {wanted} GiB on each server: give it a larger disk or max_file_store"
            say_error(f"{error}; {text}")
            raise typer.Exit(1) from None
    for difference in changed:
        if difference.field == "missing":
            out.print(f"created {difference.kind} {difference.name}")
        else:
            out.print(f"updated {difference.kind} {difference.name}: {difference.field} is now {difference.declared!r}")
    declared = len(streams.STREAMS), len(streams.CONSUMERS)
    out.print(f"{declared[0]} streams and {declared[1]} consumers are as declared, {len(changed)} changed")


async def diff(config: CliSettings, replicas: int, wait: float) -> None:
    """Print what differs; exits 1 when something does."""
    async with connected(config, wait) as nc:
        differences = await streams.diff(Api(nc), replicas=replicas)
    for difference in differences:
        out.print(str(difference), markup=False)
    if differences:
        err.print(f"{len(differences)} differences; [bold]handlers streams apply[/] mends what can be changed in place")
        raise typer.Exit(1)
    out.print(f"{len(streams.STREAMS)} streams and {len(streams.CONSUMERS)} consumers are as declared")
