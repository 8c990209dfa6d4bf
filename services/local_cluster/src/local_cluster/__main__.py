"""`python -m local_cluster`: serve until Ctrl-C or SIGTERM."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
from aiohttp import web

from handler_core import logs
from handler_core.config import SettingsError, load, printable
from handler_core.tasks import loop_factory
from local_cluster import kubeconfig
from local_cluster.app import Cluster, create_app, create_cluster
from local_cluster.settings import Settings, listed

_EPILOG = """\
Settings are environment variables; --print-config shows them all with their values. The main ones:
  HOST=127.0.0.1, PORT=8970 (0: any free one), LOG_LEVEL=info,
  PENDING_SECONDS=1, RUNNING_SECONDS=4: how long each run stays in these states,
  TOKENS=a,b: the bearer tokens that are known; without any nobody needs one.

To point the bridge at it: KUBECONFIG=<the file of --write-kubeconfig>, and KUBEFLOW_HOST and ARGO_HOST=<its URL>.

Endpoints:
"""

_SERVED = {
    "kubernetes": "/apis/argoproj.io/v1alpha1 /apis/ray.io/v1 /version",
    "kubeflow": "/apis/v2beta1/runs /apis/v2beta1/pipelines /apis/v2beta1/experiments",
    "argo": "/api/v1/workflows/{namespace}/{name}",
    "control": "/control/faults /control/calls /control/compact /control/restart /control/hold /control/advance",
}
_ENDPOINTS = "\n".join(f"  {family:<12}{paths}" for family, paths in _SERVED.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for a wrong setting, 1 where it cannot serve."""
    parser = argparse.ArgumentParser(
        prog="python -m local_cluster",
        description="Development only: a Kubernetes API with Argo Workflows and RayJobs, and Kubeflow Pipelines. "
        "Runs pass through their states and run nothing.",
        epilog=_EPILOG + _ENDPOINTS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--print-config", action="store_true", help="print the settings in force and exit")
    parser.add_argument("--write-kubeconfig", type=Path, metavar="PATH", help="write a kubeconfig for this cluster")
    options = parser.parse_args(arguments)
    try:
        settings = load(Settings)
    except SettingsError as error:
        return _fail(f"setting {error}", 2)
    if options.print_config:
        print(printable(settings))
        return 0
    logs.configure(settings, "local_cluster")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(create_cluster(settings), options.write_kubeconfig))


async def _serve(cluster: Cluster, config: Path | None) -> int:
    settings, stop = cluster.settings, asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Replies in progress are cut off: a development server that lingers is a nuisance.
    app_runner = web.AppRunner(
        create_app(cluster), handle_signals=False, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
    )
    try:
        await app_runner.setup()
        await web.TCPSite(app_runner, settings.host, settings.port).start()
        host, port = app_runner.addresses[0][:2]
        url = f"http://{host}:{port}"
        if config is not None:
            kubeconfig.write(config, url, token=next(iter(listed(settings.tokens.get_secret_value())), ""))
        log = structlog.get_logger("local_cluster")
        log.info("serving", url=url, **({"kubeconfig": str(config)} if config else {}), **_SERVED)
        async with asyncio.TaskGroup() as group:
            runs = group.create_task(cluster.serve())
            await stop.wait()
            runs.cancel()
    except FileExistsError as error:
        return _fail(f"--write-kubeconfig: {error}", 1)
    except OSError as error:
        what = f"write {config}" if error.filename else f"listen on {settings.host}:{settings.port}"
        return _fail(f"cannot {what}: {error.strerror}", 1)
    finally:
        await app_runner.cleanup()
    return 0


def _fail(message: str, code: int) -> int:
    print(f"local_cluster: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
