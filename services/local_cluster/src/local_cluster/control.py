"""What is asked of the emulator itself, beside the APIs that it emulates."""

from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from local_cluster.fault import Fault
from local_cluster.faults import Faults
from local_cluster.store import Store

_FAULTS: TypeAdapter[Fault | list[Fault]] = TypeAdapter(Fault | list[Fault])


class _Compaction(BaseModel):
    model_config = ConfigDict(extra="forbid")

    watches: bool = False


class _Restart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    down: float = Field(default=0.0, ge=0, le=3600)


def add_control(app: web.Application, store: Store, faults: Faults) -> None:
    """Serve `/control/…`, open to whoever reaches it, and have every connection end when the application shuts down."""
    control = _Control(store, faults)
    app.add_routes(
        [
            web.get("/control/faults", control.show_faults),
            web.post("/control/faults", control.add_faults),
            web.delete("/control/faults", control.clear_faults),
            web.post("/control/compact", control.compact),
            web.post("/control/restart", control.restart),
            web.post("/control/silence", control.silence),
            web.post("/control/land", control.land),
            web.get("/control/calls", control.calls),
        ]
    )
    app.on_shutdown.append(control.shut_down)


class _Control:
    def __init__(self, store: Store, faults: Faults) -> None:
        self._store = store
        self._faults = faults

    async def show_faults(self, request: web.Request) -> web.Response:
        return web.json_response(
            [fault.model_dump(mode="json", exclude_defaults=True) for fault in self._faults.armed()]
        )

    async def add_faults(self, request: web.Request) -> web.Response:
        try:
            given = _FAULTS.validate_json(await request.read())
        except ValidationError as error:
            return _wrong(error)
        for fault in given if isinstance(given, list) else [given]:
            self._faults.arm(fault)
        return await self.show_faults(request)

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._faults.clear()
        return await self.show_faults(request)

    async def compact(self, request: web.Request) -> web.Response:
        try:
            asked = _Compaction.model_validate_json(await request.read() or b"{}")
        except ValidationError as error:
            return _wrong(error)
        self._store.compact(watches=asked.watches)
        return web.json_response({"version": self._store.version})

    async def restart(self, request: web.Request) -> web.Response:
        try:
            asked = _Restart.model_validate_json(await request.read() or b"{}")
        except ValidationError as error:
            return _wrong(error)
        self._faults.restart(asked.down, spare=request.transport)
        return web.json_response({"down": asked.down})

    async def silence(self, request: web.Request) -> web.Response:
        self._faults.silence()
        return web.json_response({"silenced": sum(self._faults.open.values())})

    async def land(self, request: web.Request) -> web.Response:
        late = self._faults.late
        self._faults.land()
        return web.json_response({"landed": late})

    async def calls(self, request: web.Request) -> web.Response:
        open_now = {call: count for call, count in self._faults.open.items() if count}
        return web.json_response({"calls": dict(self._faults.calls), "open": open_now})

    async def shut_down(self, _: web.Application) -> None:
        await self._faults.end()


def _wrong(error: ValidationError) -> web.Response:
    problems: list[Any] = [
        {"field": ".".join(map(str, problem["loc"])), "problem": problem["msg"]} for problem in error.errors()
    ]
    return web.json_response({"problems": problems}, status=400)
