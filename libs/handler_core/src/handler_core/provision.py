"""`python -m handler_core.provision`: streams and consumers made as declared, before the first worker starts.

The same as `handlers streams apply`, from any handler's image: a Job in Kubernetes, or the first container of a pod.
Settings are NATS's and those of logs; exits 1 when NATS is not reached in time, refuses, or has something that cannot
be changed in place, and when a file for TLS cannot be used.
"""

import argparse
import asyncio
import sys

import structlog

from handler_core import logs, streams
from handler_core.config import SettingsError, load_or_exit
from handler_core.config.base import masked
from handler_core.config.nats import NatsSettings
from handler_core.config.service import LogSettings
from handler_core.connection import connect
from handler_core.errors import HandlerError
from handler_core.jetstream import Api, JetStreamError
from handler_core.lifecycle import close

log = structlog.get_logger("handler_core.provision")


class Settings(NatsSettings, LogSettings):
    """How to reach NATS, and what to log."""


def main(argv: list[str] | None = None) -> None:
    """Apply the declarations once."""
    parser = argparse.ArgumentParser(prog="python -m handler_core.provision", description="Make streams and consumers.")
    parser.add_argument("--replicas", type=int, choices=(1, 3, 5), default=1, help="copies of each stream (default: 1)")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds to wait for NATS (default: 60)")
    arguments = parser.parse_args(argv)
    settings = load_or_exit(Settings)
    logs.configure(settings, "provision")
    sys.exit(asyncio.run(apply(settings, arguments.replicas, arguments.wait)))


async def apply(settings: Settings, replicas: int, wait: float) -> int:
    """Make them; gives the exit code of the process."""
    try:
        async with asyncio.timeout(wait):
            nc = await connect(settings, "provision", on_closed=lambda: None)
            try:
                changed = await streams.apply(Api(nc), replicas=replicas)
            finally:
                await close(nc)
    except streams.NotInPlace as refused:
        for difference in refused.differences:
            log.error("cannot_be_changed", difference=str(difference))
        return 1
    except TimeoutError:
        log.error("nats_not_reached", url=masked(settings.nats_url), seconds=wait)
        return 1
    except (JetStreamError, HandlerError, SettingsError, OSError) as error:
        log.error("provisioning_failed", error=str(error))
        return 1
    for difference in changed:
        log.info("provisioned", kind=difference.kind, name=difference.name, field=difference.field)
    log.info("as_declared", streams=len(streams.STREAMS), consumers=len(streams.CONSUMERS), changed=len(changed))
    return 0


if __name__ == "__main__":
    main()
