"""The calls of Kubeflow Pipelines' v2beta1 API that runs need, and the ids of what they name."""

import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from handler_core.clients.failures import UpstreamError
from handler_core.errors import NotFound
from pipeline_bridge.api import Api
from pipeline_bridge.attempts import passing
from pipeline_bridge.engine import Run
from pipeline_bridge.manifests import unevaluated

Object = dict[str, Any]

PAGE: Final = 100
"""Runs asked for in one call; their ids stay within what servers take for a request line."""
_ROOT: Final = "/apis/v2beta1"
_PAGES: Final = 10
_REMEMBER: Final = 120.0
"""Seconds for which an id is believed."""
_id = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE).fullmatch


class KubeflowApi:
    """Runs of Kubeflow Pipelines, over HTTP."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._ids: dict[tuple[str, ...], tuple[str, float]] = {}

    async def named(self, run: Run) -> list[Object]:
        """The runs that bear a request's name, the oldest first."""
        found = await self._listed("runs", _equals("display_name", run.name), run.namespace)
        ours = {"display_name": run.name, "description": _description(run)}
        same = [each for each in found if isinstance(each.get("run_id"), str) and ours.items() <= each.items()]
        return sorted(same, key=_age)

    async def get(self, run_id: str) -> Object:
        """One run; an `UpstreamError` of status 404 where there is none."""
        run = await self._api.get(f"{_ROOT}/runs/{quote(run_id)}")
        if run.get("run_id") != run_id:
            raise self._api.nonsense("another run, or none")
        return run

    async def listed(self, run_id: str, namespace: str) -> Object | None:
        """One run as a list shows it; None where it does not."""
        found = await self._listed("runs", _equals("run_id", run_id), namespace)
        return next((run for run in found if run.get("run_id") == run_id), None)

    async def all_of(self, run_ids: Sequence[str], namespace: str) -> list[Object]:
        """Those of at most `PAGE` runs that there are."""
        wanted = {"operation": "IN", "key": "run_id", "string_values": {"values": list(run_ids)}}
        return await self._listed("runs", wanted, namespace)

    async def create(self, run: Run) -> Object:
        """Start a run.

        Raises:
            NotFound: there is no such pipeline, version or experiment.
            InvalidRequest: a parameter is one that the Argo below would evaluate.
        """
        for name, value in run.parameters.items():
            unevaluated(name, value)
        pipeline, version, experiment = await self._references(run)
        body = {
            "display_name": run.name,
            "description": _description(run),
            "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version},
            "runtime_config": {"parameters": run.parameters},
        }
        if experiment:
            body["experiment_id"] = experiment
        try:
            created = await self._api.post(f"{_ROOT}/runs", body)
        except UpstreamError as error:
            if error.status in {400, 404}:
                self._ids.clear()  # what is remembered may be what was refused
            raise
        if not isinstance(created.get("run_id"), str):
            raise self._api.nonsense("a run without an id")
        return created

    async def terminate(self, run_id: str) -> None:
        """Have a run stopped; refused with 400 when it has ended or is being stopped."""
        await self._api.post(f"{_ROOT}/runs/{quote(run_id)}:terminate", {})

    async def _references(self, run: Run) -> tuple[str, str, str]:
        """The ids of a run's pipeline, version and experiment; no experiment is an empty one, the server's default."""
        named = run.reference
        pipeline = await self._find("pipelines", "pipeline_id", named["pipeline"], run.namespace)
        below = f"pipelines/{quote(pipeline)}/versions"
        if wanted := named.get("version"):
            version = await self._find(below, "pipeline_version_id", wanted, "")
        else:
            version = await self._newest(below, named["pipeline"])
        experiment = named.get("experiment") or ("Default" if run.namespace else "")
        if experiment:  # with many users the server has no default: the namespace is that of the experiment
            experiment = await self._find("experiments", "experiment_id", experiment, run.namespace)
        return pipeline, version, experiment

    async def _newest(self, versions: str, pipeline: str) -> str:
        """Not remembered: a new version counts from the next run on."""
        page = await self._api.get(f"{_ROOT}/{versions}", {"page_size": "1", "sort_by": "created_at desc"})
        for version in _objects(page.get("pipeline_versions")):
            if isinstance(found := version.get("pipeline_version_id"), str):
                return found
        raise NotFound(f"{self._api.name}: pipeline {pipeline!r} has no version", stage="submit")

    async def _find(self, path: str, key: str, wanted: str, namespace: str) -> str:
        """The id of what has this id or name."""
        place = (path, wanted, namespace)
        found, until = self._ids.get(place, ("", 0.0))
        if not found or time.monotonic() > until:
            found = await self._with_id(path, key, wanted) or await self._with_name(path, key, wanted, namespace)
            self._ids[place] = found, time.monotonic() + _REMEMBER
        return found

    async def _with_id(self, path: str, key: str, wanted: str) -> str:
        if not _id(wanted):
            return ""
        try:
            found = (await self._api.get(f"{_ROOT}/{path}/{quote(wanted)}")).get(key)
        except UpstreamError as error:
            if error.status == 404:
                return ""
            raise
        return found if isinstance(found, str) else ""

    async def _with_name(self, path: str, key: str, wanted: str, namespace: str) -> str:
        what = key.removesuffix("_id").replace("_", " ")
        for where in (namespace, "") if namespace and path == "pipelines" else (namespace,):  # the shared ones, too
            for field in ("display_name", "name"):  # older servers have but one of the two
                try:
                    listed = await self._listed(path, _equals(field, wanted), where)
                except UpstreamError as error:
                    if error.status != 400:
                        raise
                    continue
                ids = {
                    str(each[key]) for each in listed if each.get(field) == wanted and isinstance(each.get(key), str)
                }
                if len(ids) > 1:
                    raise NotFound(
                        f"{self._api.name}: there are {len(ids)} of {what} {wanted!r}: give the id", stage="submit"
                    )
                if ids:
                    return ids.pop()
        raise NotFound(f"{self._api.name}: there is no {what} {wanted!r}", stage="submit")

    async def _listed(self, path: str, predicate: Object, namespace: str) -> list[Object]:
        text = json.dumps({"predicates": [predicate]}, separators=(",", ":"))
        query = {
            "page_size": str(PAGE),
            # The server decodes it once more than the URL, which changes only these two.
            "filter": text.replace("%", "%25").replace("+", "%2B"),
        }
        if namespace:
            query["namespace"] = namespace
        listed: list[Object] = []
        kind = path.rpartition("/")[2]
        for _ in range(_PAGES):
            try:
                page = await self._api.get(f"{_ROOT}/{path}", query)
            except UpstreamError as error:
                if error.status != 404 or path != kind:
                    raise
                # There is such a list, if an empty one: this was a proxy that lost its way.
                raise passing(error) from None
            listed += _objects(page.get("pipeline_versions" if kind == "versions" else kind))
            if not (token := page.get("next_page_token")):
                break
            query["page_token"] = str(token)
        return listed


def _equals(key: str, value: str) -> Object:
    """A predicate of the server's filters; it ignores case, so what it finds is to be compared again."""
    return {"operation": "EQUALS", "key": key, "string_value": value}


def _objects(value: Any) -> list[Object]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _age(run: Object) -> tuple[datetime, str]:
    """What orders runs by when they were created; those of the same second by their id, the same for everybody."""
    try:
        created = datetime.fromisoformat(run["created_at"])
    except (KeyError, TypeError, ValueError):
        created = datetime.max.replace(tzinfo=UTC)
    return created.replace(tzinfo=created.tzinfo or UTC), run["run_id"]


def _description(run: Run) -> str:
    """What tells a request's run from one that somebody else has given its name."""
    return f"Request {run.request_id}"
