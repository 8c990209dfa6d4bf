"""`/control/hold`, `/control/release` and `/control/advance`: runs moved by hand, over HTTP."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from local_cluster.steering import Steered

EngineName = Literal["argo", "rayjob", "kubeflow"]


class Hold(BaseModel):
    """Which runs are held or released: those of one engine or all, one run or all."""

    model_config = ConfigDict(extra="forbid")

    engine: EngineName | None = None
    name: str | None = Field(default=None, min_length=1)
    stops: bool = False
    """Held, they do not obey a request to stop either."""


class Advance(BaseModel):
    """The state that a run is put into."""

    model_config = ConfigDict(extra="forbid")

    engine: EngineName
    name: str
    phase: str
    message: str = ""


def add_steering(app: web.Application, engines: Mapping[str, Steered]) -> None:
    """Serve the control of the runs."""

    async def hold(request: web.Request) -> None:
        wanted = Hold.model_validate_json(await request.read() or b"{}")
        for name, engine in engines.items():
            if wanted.engine in (None, name):
                engine.hold(wanted.name, stops=wanted.stops)

    async def release(request: web.Request) -> None:
        wanted = Hold.model_validate_json(await request.read() or b"{}")
        for name, engine in engines.items():
            if wanted.engine in (None, name):
                engine.release(wanted.name)

    async def advance(request: web.Request) -> None:
        wanted = Advance.model_validate_json(await request.read())
        engines[wanted.engine].advance(wanted.name, wanted.phase, wanted.message)

    for path, act in (("hold", hold), ("release", release), ("advance", advance)):
        app.router.add_post(f"/control/{path}", _told(act))


def _told(act: Callable[[web.Request], Awaitable[None]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            await act(request)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            return web.json_response({"error": f"{where}: {first['msg']}" if where else first["msg"]}, status=400)
        except KeyError as error:
            return web.json_response({"error": f"there is no run {error.args[0]!r}"}, status=404)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({})

    return handle
