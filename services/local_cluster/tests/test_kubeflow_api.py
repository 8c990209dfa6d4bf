"""Kubeflow Pipelines over HTTP: what clients of the real server meet, its refusals above all."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from local_cluster.testing import RunningCluster, running

RUNS = "/apis/v2beta1/runs"


class Client:
    """A cluster, and requests of its Kubeflow."""

    def __init__(self, cluster: RunningCluster, session: aiohttp.ClientSession) -> None:
        self.cluster = cluster
        self.kubeflow = cluster.kubeflow
        self._session = session

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        async with self._session.request(method, path, **request) as response:
            return response.status, await response.json()

    async def get(self, path: str, **query: Any) -> Any:
        status, body = await self.call("GET", path, params=query)
        assert status == 200, body
        return body

    async def create(self, name: str = "run", **fields: Any) -> dict[str, Any]:
        reference = {"pipeline_id": self.kubeflow.pipeline_id("rag-query")}
        body = {"display_name": name, "pipeline_version_reference": reference, **fields}
        status, run = await self.call("POST", RUNS, json=body)
        assert status == 200, run
        return dict(run)


@asynccontextmanager
async def kubeflow(hold: bool = True, **options: Any) -> AsyncIterator[Client]:
    async with running(hold=hold, **options) as cluster, aiohttp.ClientSession(cluster.url) as session:
        yield Client(cluster, session)


def equals(key: str, value: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "string_value": value}]})


async def test_a_new_run_is_pending_of_the_newest_version_and_leaves_out_what_is_empty() -> None:
    async with kubeflow() as client:
        run = await client.create(runtime_config={"parameters": {"question": "why?", "top_k": 5}}, unknown_field=1)
        newest = client.kubeflow.version_id("rag-query", "2")
        assert run["pipeline_version_reference"]["pipeline_version_id"] == newest
        assert run["experiment_id"] == client.kubeflow.experiment_id("Default")
        assert run["runtime_config"] == {"parameters": {"question": "why?", "top_k": 5}}
        assert (run["state"], run["finished_at"]) == ("PENDING", "1970-01-01T00:00:00Z")
        assert run["created_at"].endswith("Z")
        assert not {"description", "error", "namespace", "recurring_run_id", "unknown_field"} & set(run)
        assert await client.get(f"{RUNS}/{run['run_id']}") == run


async def test_each_post_makes_another_run_even_of_the_same_name() -> None:
    async with kubeflow() as client:
        first, second = await client.create("same"), await client.create("same")
        assert first["run_id"] != second["run_id"]
        found = await client.get(RUNS, filter=equals("display_name", "same"))
        assert {run["run_id"] for run in found["runs"]} == {first["run_id"], second["run_id"]}
        assert (found["total_size"], client.kubeflow.created) == (2, 2)


async def test_a_run_passes_through_its_states() -> None:
    async with kubeflow(hold=False) as client:
        await client.create("quick")
        run = await client.kubeflow.until("quick", "SUCCEEDED")
        assert [entry["state"] for entry in run["state_history"]] == ["PENDING", "RUNNING", "SUCCEEDED"]
        assert run["finished_at"] == run["state_history"][-1]["update_time"]


@pytest.mark.parametrize(
    ("outcome", "state"), [("failed", "FAILED"), ("SKIPPED", "SKIPPED"), ("canceled", "CANCELED"), ("?", "SUCCEEDED")]
)
async def test_a_parameter_says_how_a_run_ends(outcome: str, state: str) -> None:
    async with kubeflow(hold=False) as client:
        await client.create("asked", runtime_config={"parameters": {"outcome": outcome}})
        run = await client.kubeflow.until("asked", state)
        assert ("error" in run) == (state == "FAILED")


async def test_a_held_run_stays_until_it_is_advanced_or_released() -> None:
    async with kubeflow() as client:
        run_id = (await client.create("held"))["run_id"]
        client.kubeflow.advance("held", "PAUSED")
        assert (await client.get(f"{RUNS}/{run_id}"))["state"] == "PAUSED"
        client.kubeflow.advance(run_id, "RUNNING", "waiting for a GPU")
        assert (await client.get(f"{RUNS}/{run_id}"))["error"]["message"] == "waiting for a GPU"
        client.kubeflow.release("held")
        assert (await client.kubeflow.until("held", "SUCCEEDED"))["run_id"] == run_id
        with pytest.raises(KeyError):
            client.kubeflow.advance("nobody", "RUNNING")
        with pytest.raises(ValueError, match="no state of a run"):
            client.kubeflow.advance("held", "Running")


@pytest.mark.parametrize("last", ["CANCELED", "FAILED"])
async def test_termination_passes_through_canceling(last: str) -> None:
    async with kubeflow() as client:
        client.kubeflow.terminated_state = last
        run = await client.create("stop")
        assert await client.call("POST", f"{RUNS}/{run['run_id']}:terminate") == (200, {})
        ended = await client.kubeflow.until("stop", last)
        assert [entry["state"] for entry in ended["state_history"]] == ["PENDING", "CANCELING", last]


async def test_a_run_that_is_being_stopped_or_has_ended_cannot_be_terminated() -> None:
    async with kubeflow() as client:
        client.kubeflow.hold(stops=True)
        run_id = (await client.create("stop"))["run_id"]
        assert (await client.call("POST", f"{RUNS}/{run_id}:terminate"))[0] == 200
        for state in ("CANCELING", "SUCCEEDED"):
            client.kubeflow.advance(run_id, state)
            status, body = await client.call("POST", f"{RUNS}/{run_id}:terminate")
            assert (status, body["code"]) == (400, 3)
            assert body["details"][0]["message"] == f"Failed to terminate a run {run_id}. Row not found"


async def test_a_failed_run_can_be_tried_again_and_a_deleted_one_is_gone() -> None:
    async with kubeflow() as client:
        run_id = (await client.create())["run_id"]
        assert (await client.call("POST", f"{RUNS}/{run_id}:retry"))[0] == 400
        client.kubeflow.advance(run_id, "FAILED")
        assert await client.call("POST", f"{RUNS}/{run_id}:retry") == (200, {})
        assert (await client.get(f"{RUNS}/{run_id}"))["state"] == "PENDING"
        assert await client.call("DELETE", f"{RUNS}/{run_id}") == (200, {})
        status, body = await client.call("GET", f"{RUNS}/{run_id}")
        message = f"Failed to get a run: Run {run_id} not found."
        assert (status, body["code"], body["error"], body["message"]) == (404, 5, message, message)


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"display_name": ""}, 400, "The run name is empty"),
        ({"pipeline_version_reference": None}, 400, "missing pipeline source"),
        ({"pipeline_version_reference": {"pipeline_id": "nope"}}, 404, "Pipeline nope not found."),
        ({"experiment_id": "nope"}, 404, "Experiment nope not found."),
        ({"runtime_config": {"parameters": [1]}}, 400, "runtime_config"),
    ],
)
async def test_a_run_that_refers_to_nothing_is_refused(change: dict[str, Any], status: int, message: str) -> None:
    async with kubeflow() as client:
        reference = {"pipeline_id": client.kubeflow.pipeline_id("rag-query")}
        body = {"display_name": "run", "pipeline_version_reference": reference, **change}
        answered, error = await client.call("POST", RUNS, json=body)
        assert (answered, client.kubeflow.created) == (status, 0)
        assert message in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff"])
async def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    async with kubeflow() as client:
        status, error = await client.call("POST", RUNS, data=body)
        assert (status, error["code"]) == (400, 3)


async def test_a_version_of_another_pipeline_is_not_found() -> None:
    async with kubeflow() as client:
        other = client.kubeflow.version_id("voice-pipeline", "1")
        reference = {"pipeline_id": client.kubeflow.pipeline_id("rag-query"), "pipeline_version_id": other}
        body = {"display_name": "run", "pipeline_version_reference": reference}
        assert (await client.call("POST", RUNS, json=body))[0] == 404


@pytest.mark.parametrize("descending", [True, False])
async def test_pages_go_through_all_runs_once_though_others_are_created_meanwhile(descending: bool) -> None:
    async with kubeflow() as client:
        before = {(await client.create(f"run-{number}"))["run_id"] for number in range(7)}
        sort_by = "created_at desc" if descending else "created_at"
        query: dict[str, Any] = {"page_size": 3, "sort_by": sort_by}
        seen: list[str] = []
        while True:
            page = await client.get(RUNS, **query)
            seen += [run["run_id"] for run in page["runs"]]
            if "next_page_token" not in page:
                break
            query = {"page_size": 3, "page_token": page["next_page_token"]}  # which says how it is sorted
            await client.create("later")
        assert len(seen) == len(set(seen))
        assert before <= set(seen)


async def test_pages_have_twenty_runs_unless_asked_and_two_hundred_at_most() -> None:
    async with kubeflow() as client:
        for number in range(201):
            client.kubeflow.create(
                {
                    "display_name": str(number),
                    "pipeline_version_reference": {"pipeline_id": client.kubeflow.pipeline_id("rag-query")},
                }
            )
        first, most = await client.get(RUNS), await client.get(RUNS, page_size=1000)
        assert (len(first["runs"]), first["total_size"]) == (20, 201)
        assert len(most["runs"]) == 200


async def test_a_list_of_nothing_is_an_empty_object() -> None:
    async with kubeflow() as client:
        assert await client.get(RUNS) == {}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"filter": equals("color", "red")}, 'no support for filtering on unrecognized field "color"'),
        ({"filter": "{"}, "failed to parse valid filter"),
        ({"filter": '{"predicates": [{"operation": "EQUALS", "key": "name"}]}'}, "failed to parse valid filter"),
        ({"filter": '{"predicate": []}'}, "failed to parse valid filter"),
        (
            {"filter": '{"predicates": [{"operation": "IS", "key": "name", "string_value": "a"}]}'},
            "invalid predicate operation: IS",
        ),
        (
            {"filter": '{"predicates": [{"operation": "IN", "key": "name", "string_value": "a"}]}'},
            "cannot use operator IN",
        ),
        ({"sort_by": "color"}, 'Invalid sorting field: "color"'),
        ({"sort_by": "created_at down"}, "invalid sort by format"),
        ({"page_size": "-1"}, "page size should be greater than 0"),
        ({"page_size": "many"}, "page_size"),
        ({"page_token": "nope"}, "Invalid package token"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(query: dict[str, str], message: str) -> None:
    async with kubeflow() as client:
        status, body = await client.call("GET", RUNS, params=query)
        assert (status, body["code"]) == (400, 3)
        assert message in body["message"]


async def test_a_page_token_goes_with_the_order_that_it_was_made_for() -> None:
    async with kubeflow() as client:
        await client.create("a")
        await client.create("b")
        token = (await client.get(RUNS, page_size=1, sort_by="created_at desc"))["next_page_token"]
        status, body = await client.call("GET", RUNS, params={"page_token": token, "sort_by": "name"})
        assert status == 400
        assert "does not match" in body["message"]
        assert (await client.call("GET", RUNS, params={"page_token": token, "sort_by": "created_at desc"}))[0] == 200


async def test_filters_ignore_case_are_decoded_twice_and_all_count() -> None:
    async with kubeflow() as client:
        run = await client.create("One+one")
        await client.create("other")
        assert await client.get(RUNS, filter=equals("name", "one+ONE")) == {}
        assert (await client.get(RUNS, filter=quote(equals("name", "one+ONE"))))["runs"] == [run]
        both = {
            "predicates": [
                {"operation": "IN", "key": "state", "stringValues": {"values": ["PENDING", "RUNNING"]}},
                {"operation": "IS_SUBSTRING", "key": "display_name", "stringValue": "oth"},
                {"operation": "GREATER_THAN", "key": "created_at", "timestamp_value": "2020-01-01T00:00:00Z"},
            ]
        }
        found = await client.get(RUNS, filter=json.dumps(both))
        assert [run["display_name"] for run in found["runs"]] == ["other"]


async def test_pipelines_versions_and_experiments_are_found_by_name() -> None:
    async with kubeflow(kubeflow_experiments="nightly") as client:
        by_name = equals("name", "rag-query")
        (pipeline,) = (await client.get("/apis/v2beta1/pipelines", filter=by_name))["pipelines"]
        assert await client.get(f"/apis/v2beta1/pipelines/{pipeline['pipeline_id']}") == pipeline
        versions = f"/apis/v2beta1/pipelines/{pipeline['pipeline_id']}/versions"
        listed = await client.get(versions, sort_by="created_at desc")
        assert [version["display_name"] for version in listed["pipeline_versions"]] == ["2", "1"]
        newest = listed["pipeline_versions"][0]
        assert await client.get(f"{versions}/{newest['pipeline_version_id']}") == newest
        by_name = equals("display_name", "nightly")
        (experiment,) = (await client.get("/apis/v2beta1/experiments", filter=by_name))["experiments"]
        assert await client.get(f"/apis/v2beta1/experiments/{experiment['experiment_id']}") == experiment
        assert (await client.create(experiment_id=experiment["experiment_id"]))[
            "experiment_id"
        ] in client.kubeflow.experiments


@pytest.mark.parametrize(
    "path", ["pipelines/no", "pipelines/no/versions", "experiments/no", "runs/no", "nothing", "runs/a:archive"]
)
async def test_what_is_not_there_is_told_in_the_form_of_the_gateway(path: str) -> None:
    async with kubeflow() as client:
        status, body = await client.call("GET", f"/apis/v2beta1/{path}")
        assert (status, body["code"], set(body)) == (404, 5, {"error", "code", "message", "details"})


async def test_an_installation_for_many_wants_to_know_the_namespace() -> None:
    async with kubeflow(kubeflow_namespace="team", kubeflow_experiments="theirs") as client:
        assert (await client.call("GET", RUNS))[0] == 400
        reference = {"pipeline_id": client.kubeflow.pipeline_id("rag-query")}
        body = {"display_name": "run", "pipeline_version_reference": reference}
        assert (await client.call("POST", RUNS, json=body))[0] == 400
        run = await client.create(experiment_id=client.kubeflow.experiment_id("theirs"))
        assert (await client.get(RUNS, namespace="team"))["runs"] == [run]
        assert await client.get(RUNS, namespace="other") == {}
        assert (await client.get("/apis/v2beta1/healthz"))["multi_user"] is True


async def test_without_a_token_that_is_known_only_its_health_is_told() -> None:
    async with kubeflow(tokens=["secret"]) as client:
        status, body = await client.call("GET", RUNS)
        assert (status, body["code"]) == (401, 16)
        assert (await client.call("GET", RUNS, headers={"Authorization": "Bearer secret"}))[0] == 200
        assert (await client.call("GET", "/apis/v2beta1/healthz"))[0] == 200
        client.cluster.tokens.clear()
        client.cluster.tokens.add("new")
        assert (await client.call("GET", RUNS, headers={"Authorization": "Bearer secret"}))[0] == 401


async def test_injected_errors_have_the_form_of_the_gateway() -> None:
    async with kubeflow() as client:
        client.cluster.faults.add(status=429, retry_after=7, match={"path": "/runs$"})
        async with aiohttp.ClientSession(client.cluster.url) as session, session.get(RUNS) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "7")
            assert (await response.json())["code"] == 8
        assert (await client.call("GET", RUNS))[0] == 200


async def test_whoever_waits_for_a_state_sees_it_pass_by() -> None:
    async with kubeflow(hold=False) as client, asyncio.TaskGroup() as group:
        waiting = [group.create_task(client.kubeflow.until("quick", state)) for state in ("PENDING", "RUNNING")]
        ended = group.create_task(client.kubeflow.until("quick", "SUCCEEDED"))
        await asyncio.sleep(0)
        await client.create("quick")
        assert (await ended)["state"] == "SUCCEEDED"
        assert [task.result()["state"] for task in waiting] == ["PENDING", "RUNNING"]
