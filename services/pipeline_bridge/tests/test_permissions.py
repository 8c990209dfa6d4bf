"""The permissions that docs/pipelines.md shows: enough for all that the bridge does, and for a client to be itself."""

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from handler_core import pipelines, streams
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.pipeline import TriggerRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, guarded_server, login, serving, until
from local_cluster.testing import RunningCluster
from pipeline_bridge.engine import run_name
from pipeline_bridge.service import service

from .conftest import Caller, SettingsFor, states, stopped

PAGE = Path(__file__).parents[3] / "docs" / "pipelines.md"


@pytest.fixture
def guarded() -> Iterator[NatsServer]:
    with guarded_server(PAGE) as server:
        yield server


@pytest.fixture
async def operator(guarded: NatsServer) -> AsyncIterator[Caller]:
    async with connection(guarded.url, nats_user="operator", nats_password="o") as nc:
        await streams.apply(Api(nc))
        yield Caller(nc)


@pytest.fixture
async def alice(guarded: NatsServer, operator: Caller) -> AsyncIterator[Connection]:
    async with connection(guarded.url, **login("alice", "x")) as nc:
        yield nc


async def test_they_suffice_for_runs_a_takeover_a_cancellation_and_a_dead_letter(
    guarded: NatsServer, operator: Caller, alice: Connection, cluster: RunningCluster, settings: SettingsFor
) -> None:
    own = settings(nats_url=guarded.url, **login("pipeline_bridge", "p"))

    async def trigger(pipeline: str) -> str:
        request = TriggerRequest(request_id=uuid.uuid4().hex, pipeline=pipeline, response_subject="_INBOX_alice.end")
        await pipelines.trigger(Api(alice), request, "alice")
        return str(request.request_id)

    async with serving(service, own):
        assert "private" in [each.name for each in (await pipelines.catalogue(alice, "alice")).pipelines]
        assert (await pipelines.catalogue(operator.nc)).pipelines
        canceled, taken_over = await trigger("private"), await trigger("private")
        for request_id in (canceled, taken_over):
            await operator.until(request_id, "submitted")
        await operator.cancel(canceled)
        name = run_name("private", canceled)
        await until(lambda: stopped(cluster, "argo", name), "it is stopped")
        assert states(await operator.until(canceled))[-1] == "canceled"
        refused = await operator.until(await trigger("no-such-pipeline"))
    async with serving(service, own):
        cluster.workflows.advance(run_name("private", taken_over), "Succeeded")
        assert states(await operator.until(taken_over)) == ["submitted", "succeeded"]
        await operator.settled()
    assert states(refused) == ["error"]
    assert len(await operator.letters()) == 1
    assert guarded.violations("pipeline_bridge") == guarded.violations("alice") == []


async def test_a_client_cannot_act_as_another_or_read_what_runs_are_given(
    guarded: NatsServer, alice: Connection
) -> None:
    trigger = encode(TriggerRequest(request_id="r1", pipeline="private"))
    closed = [
        "ai.pipeline.trigger", "ai.pipeline.user.bob.trigger", "ai.pipeline.list", "ai.pipeline.user.bob.list",
        "evt.pipeline.status.r1", "evt.pipeline.run.r1", "ai.pipeline.status.r1", "ai.turn.cancel.r1",
        "$JS.API.STREAM.MSG.GET.AI_PIPELINE_STATUS", "$JS.API.STREAM.MSG.GET.AI_PIPELINE",
    ]  # fmt: skip
    private = ["evt.>", "ai.pipeline.trigger", "ai.pipeline.user.*.trigger", "_INBOX_pipeline_bridge.>", ">"]
    for subject in closed:
        await alice.publish(subject, trigger)
    for subject in private:
        await alice.subscribe(subject)
    await alice.flush()
    kept_from = [f'Publish "{subject}"' for subject in closed] + [f'Subscription "{subject}"' for subject in private]
    assert guarded.violations("alice") == kept_from
