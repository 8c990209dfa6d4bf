"""Calls and watches of a Kubernetes API server: a real one to HTTP, TLS and files, that answers as it is told."""

import asyncio
import base64
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from handler_core.clients.failures import UpstreamError
from pipeline_bridge import cluster as cluster_module
from pipeline_bridge import credentials as credentials_module
from pipeline_bridge.cluster import MAX_CALLS, Cluster, Events

PATH = "/apis/argoproj.io/v1alpha1/namespaces/argo/workflows"
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """An API server in which the test decides on every answer."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.answer: Answer = echo
        self.requests: list[web.Request] = []
        self.tokens: list[str] = []

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        self.tokens.append(request.headers.get("Authorization", "").removeprefix("Bearer "))
        return await self.answer(request)


async def echo(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "type": request.headers.get("Content-Type"),
            "body": json.loads(body) if body else None,
        }
    )


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    app = web.Application()
    server = Server(TestServer(app, scheme="https" if tls else "http", host="127.0.0.1"))
    app.router.add_route("*", "/{tail:.*}", server.handle)
    await server.server.start_server(ssl=tls)
    try:
        yield server
    finally:
        await server.server.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


def kubeconfig(path: Path, url: str, user: dict[str, Any] | None = None, authority: str = "") -> str:
    """A kubeconfig of one context, `here`; JSON is YAML as well."""
    trust = {"certificate-authority-data": authority} if authority else {}
    described = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url, **trust}}],
        "users": [{"name": "u", "user": {"token": "secret-token"} if user is None else user}],
    }
    file = path / "kubeconfig"
    file.write_text(json.dumps(described))
    return str(file)


@asynccontextmanager
async def connected(**arguments: Any) -> AsyncIterator[Cluster]:
    cluster = await Cluster.connect(**arguments)
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def cluster(server: Server, tmp_path: Path) -> AsyncIterator[Cluster]:
    async with connected(kubeconfig=kubeconfig(tmp_path, server.url)) as cluster:
        yield cluster


def failing(status: int, body: bytes = b"", **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return answer


def refusing(token: str) -> Answer:
    """What a server answers to whom it knew by this token until now."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") == f"Bearer {token}":
            return web.json_response({"kind": "Status", "message": "Unauthorized", "code": 401}, status=401)
        return await echo(request)

    return answer


# --- calls


async def test_a_call_carries_token_query_and_body_and_gives_the_decoded_answer(
    server: Server, cluster: Cluster
) -> None:
    query = {"labelSelector": "app.kubernetes.io/managed-by=pipeline-bridge", "continue": "a+b/c=&d"}
    answer = await cluster.request("POST", PATH, query=query, body={"a": ["ü", 1]})
    assert answer == {
        "method": "POST",
        "path": PATH,
        "query": query,
        "type": "application/json",
        "body": {"a": ["ü", 1]},
    }
    assert server.tokens == ["secret-token"]
    assert server.requests[0].headers["User-Agent"] == "pipeline-bridge"


async def test_a_patch_has_its_own_content_type(cluster: Cluster) -> None:
    answer = await cluster.request("PATCH", f"{PATH}/a", body={}, content_type="application/merge-patch+json")
    assert (answer["type"], answer["body"]) == ("application/merge-patch+json", {})


async def test_a_refusal_has_the_status_and_the_message_of_the_status_object(server: Server, cluster: Cluster) -> None:
    status = {"kind": "Status", "status": "Failure", "message": 'workflows "a" not found', "code": 404}
    server.answer = failing(404, json.dumps(status).encode())
    with pytest.raises(UpstreamError, match=r'kubernetes: HTTP 404: workflows "a" not found') as raised:
        await cluster.request("GET", f"{PATH}/a")
    assert (raised.value.status, raised.value.retryable) == (404, False)


async def test_an_error_body_that_is_no_utf8_hides_nothing(server: Server, cluster: Cluster) -> None:
    server.answer = failing(503, b"\xff\xfe\xfa")
    with pytest.raises(UpstreamError) as raised:
        await cluster.request("GET", PATH)
    assert (raised.value.status, raised.value.retryable) == (503, True)


async def test_retry_after_is_handed_on(server: Server, cluster: Cluster) -> None:
    server.answer = failing(429, b"slow down", Retry_After="7")
    with pytest.raises(UpstreamError) as raised:
        await cluster.request("GET", PATH)
    assert (raised.value.status, raised.value.retryable, raised.value.retry_after) == (429, True, 7.0)
    assert len(server.requests) == 1


async def test_an_object_too_large_for_etcd_is_not_worth_another_attempt(server: Server, cluster: Cluster) -> None:
    server.answer = failing(500, json.dumps({"message": "etcdserver: request is too large", "code": 500}).encode())
    with pytest.raises(UpstreamError) as raised:
        await cluster.request("POST", PATH, body={})
    assert (raised.value.status, raised.value.retryable) == (500, False)


@pytest.mark.parametrize("body", [b"<html>Sign in</html>", b'["a"]', b"", b"\xff"])
async def test_an_answer_that_is_no_json_object_is_an_error(server: Server, cluster: Cluster, body: bytes) -> None:
    server.answer = failing(200, body)
    with pytest.raises(UpstreamError) as raised:
        await cluster.request("GET", PATH)
    assert raised.value.outcome == "invalid"


async def test_no_server_is_a_retryable_error_that_tells_no_secret(tmp_path: Path) -> None:
    async with serving() as gone:
        config = kubeconfig(tmp_path, gone.url)
    async with connected(kubeconfig=config) as cluster:
        with pytest.raises(UpstreamError) as raised:
            await cluster.request("GET", PATH)
    assert (raised.value.status, raised.value.retryable, raised.value.outcome) == (None, True, "unreachable")
    assert "secret-token" not in repr(raised.value)


async def test_a_token_that_the_server_echoes_is_masked(server: Server, cluster: Cluster) -> None:
    server.answer = failing(403, b"who is secret-token?")
    with pytest.raises(UpstreamError, match=r"who is \*\*\*\?"):
        await cluster.request("GET", PATH)


async def test_a_connection_that_breaks_within_the_answer_is_retryable(server: Server, cluster: Cluster) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b'{"items":')
        assert request.transport is not None
        request.transport.abort()
        return response

    server.answer = half
    with pytest.raises(UpstreamError) as raised:
        await cluster.request("GET", PATH)
    assert (raised.value.retryable, raised.value.outcome) == (True, "broken")


async def test_no_answer_in_time_is_retryable(server: Server, cluster: Cluster) -> None:
    async def never(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    server.answer = never
    with pytest.raises(UpstreamError) as raised:
        await cluster.request("GET", PATH, timeout=0.05)
    assert (raised.value.retryable, raised.value.outcome) == (True, "timeout")


async def test_calls_are_bounded_and_watches_are_not_among_them(server: Server, cluster: Cluster) -> None:
    full, go, inside = asyncio.Event(), asyncio.Event(), 0

    async def wait(request: web.Request) -> web.StreamResponse:
        nonlocal inside
        if "watch" in request.query:
            return web.Response(body=b"\n")
        inside += 1
        assert inside <= MAX_CALLS
        if inside == MAX_CALLS:
            full.set()
        await go.wait()
        inside -= 1
        return web.json_response({})

    server.answer = wait
    async with asyncio.TaskGroup() as group:
        for _ in range(MAX_CALLS + 4):
            group.create_task(cluster.request("GET", PATH))
        await full.wait()
        async with cluster.stream(PATH, {"watch": "1"}) as events:
            assert [event async for event in events] == []
        go.set()
    assert len(server.requests) == MAX_CALLS + 5


async def test_the_metrics_hook_is_told_of_calls_and_watches(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    config = kubeconfig(tmp_path, server.url)
    async with connected(kubeconfig=config, observe=lambda name, _, outcome: told.append((name, outcome))) as cluster:
        await cluster.request("GET", PATH)
        server.answer = failing(503)
        with pytest.raises(UpstreamError):
            await cluster.request("GET", PATH)
        server.answer = failing(200)
        async with cluster.stream(PATH, {}):
            pass
    assert told == [("kubernetes", "ok"), ("kubernetes", "http_503"), ("kubernetes-watch", "ok")]


# --- credentials


async def test_a_refused_token_is_read_again_and_the_call_made_once_more(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    async with connected(kubeconfig=kubeconfig(tmp_path, server.url, {"tokenFile": "token"})) as cluster:
        await cluster.request("GET", PATH)
        token.write_text("new\n")
        server.answer = refusing("old")
        await cluster.request("GET", PATH)
        await cluster.request("GET", PATH)
    assert server.tokens == ["old", "old", "new", "new"]


async def test_a_token_refused_again_is_an_error(server: Server, cluster: Cluster) -> None:
    server.answer = refusing("secret-token")
    with pytest.raises(UpstreamError) as raised:
        await cluster.request("GET", PATH)
    assert (raised.value.status, len(server.requests)) == (401, 2)


async def test_a_refused_watch_reads_the_token_again_too(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    async with connected(kubeconfig=kubeconfig(tmp_path, server.url, {"tokenFile": "token"})) as cluster:
        token.write_text("new")
        server.answer = refusing("old")
        async with cluster.stream(PATH, {"watch": "1"}):
            pass
    assert server.tokens == ["old", "new"]


async def test_a_token_file_is_read_again_from_time_to_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    async with connected(kubeconfig=kubeconfig(tmp_path, server.url, {"tokenFile": "token"})) as cluster:
        token.write_text("new")
        await cluster.request("GET", PATH)
        monkeypatch.setattr(credentials_module, "_REREAD_INTERVAL", -1.0)
        await cluster.request("GET", PATH)
    assert server.tokens == ["old", "new"]


async def test_many_calls_that_are_refused_at_once_run_the_plugin_once(server: Server, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    plugin = tmp_path / "plugin"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
    made = json.dumps({**credential, "status": {"token": "TOKEN", "expirationTimestamp": "2999-01-01T00:00:00Z"}})
    count = f'echo run >> "{runs}"; n=$(grep -c run "{runs}")'
    plugin.write_text(f"#!/bin/sh\n{count}\nsed s/TOKEN/plugin-token-$n/ <<'END'\n{made}\nEND\n")
    plugin.chmod(0o700)
    user = {"exec": {"apiVersion": credential["apiVersion"], "command": str(plugin)}}
    async with connected(kubeconfig=kubeconfig(tmp_path, server.url, user)) as cluster:
        server.answer = refusing("plugin-token-1")
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(cluster.request("GET", PATH))
    assert set(server.tokens) == {"plugin-token-1", "plugin-token-2"}
    assert runs.read_text().split() == ["run", "run"]


async def test_credentials_that_cannot_be_read_any_more_are_a_retryable_error(server: Server, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    async with connected(kubeconfig=kubeconfig(tmp_path, server.url, {"tokenFile": "token"})) as cluster:
        token.unlink()
        server.answer = refusing("old")
        with pytest.raises(UpstreamError, match="cannot read the credentials") as raised:
            await cluster.request("GET", PATH)
    assert raised.value.retryable


async def test_a_token_that_is_no_header_is_an_error_without_it(server: Server, tmp_path: Path) -> None:
    config = kubeconfig(tmp_path, server.url, {"token": "one\ntwo"})
    async with connected(kubeconfig=config) as cluster:
        with pytest.raises(UpstreamError, match="cannot stand in a header") as raised:
            await cluster.request("GET", PATH)
    assert "two" not in raised.value.message
    assert server.requests == []


async def test_the_context_is_chosen_by_its_name(server: Server, tmp_path: Path) -> None:
    config = Path(kubeconfig(tmp_path, "http://127.0.0.1:9"))
    described = json.loads(config.read_text())
    described["contexts"].append({"name": "there", "context": {"cluster": "d", "user": "v"}})
    described["clusters"].append({"name": "d", "cluster": {"server": server.url}})
    described["users"].append({"name": "v", "user": {"username": "me", "password": "pass"}})
    config.write_text(json.dumps(described))
    async with connected(kubeconfig=str(config), context="there") as cluster:
        await cluster.request("GET", PATH)
    assert server.tokens == [f"Basic {base64.b64encode(b'me:pass').decode()}"]


@pytest.mark.parametrize("text", ["", "[]", "{", "current-context: nowhere", "current-context: here\ncontexts: 3"])
async def test_a_malformed_kubeconfig_is_a_value_error_naming_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken"
    file.write_text(text)
    with pytest.raises(ValueError, match="broken"):
        await Cluster.connect(kubeconfig=str(file))


async def test_an_unknown_context_and_a_missing_file_are_value_errors(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="elsewhere"):
        await Cluster.connect(kubeconfig=kubeconfig(tmp_path, server.url), context="elsewhere")
    with pytest.raises(ValueError, match="no kubeconfig at /nowhere/config"):
        await Cluster.connect(kubeconfig="/nowhere/config")


async def test_without_pod_and_kubeconfig_there_is_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ValueError, match=r"no kubeconfig at ~/\.kube/config"):
        await Cluster.connect()


async def test_several_kubeconfigs_are_merged_and_missing_ones_passed_over(server: Server, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(tmp_path / "missing"), kubeconfig(tmp_path, server.url)])
    async with connected(kubeconfig=paths) as cluster:
        await cluster.request("GET", PATH)
    assert server.tokens == ["secret-token"]


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def secure(authority: trustme.CA) -> AsyncIterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with serving(context) as server:
        yield server


async def test_in_a_pod_the_service_account_is_used_and_its_token_read_again(
    secure: Server, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(secure.server.port))
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    token = tmp_path / "token"
    token.write_text("old\n")
    async with connected(service_account=tmp_path) as cluster:
        await cluster.request("GET", PATH)
        token.write_text("new\n")
        secure.answer = refusing("old")
        await cluster.request("GET", PATH)
    assert secure.tokens == ["old", "old", "new"]


async def test_a_pod_without_its_token_is_a_value_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ValueError, match=r"the service account: .*token file"):
        await Cluster.connect(service_account=tmp_path)


def data(blob: trustme.Blob) -> str:
    return base64.b64encode(blob.bytes()).decode()


async def test_a_client_certificate_from_a_kubeconfig_is_shown(authority: trustme.CA, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    ours = authority.issue_cert("bridge@example.org")
    user = {
        "client-certificate-data": data(ours.cert_chain_pems[0]),
        "client-key-data": data(ours.private_key_pem),
    }
    async with serving(context) as server:
        config = kubeconfig(tmp_path, server.url, user, data(authority.cert_pem))
        async with connected(kubeconfig=config) as cluster:
            assert (await cluster.request("GET", PATH))["path"] == PATH
        assert server.tokens == [""]


async def test_a_server_of_another_authority_is_not_talked_to(secure: Server, tmp_path: Path) -> None:
    config = kubeconfig(tmp_path, secure.url, authority=data(trustme.CA().cert_pem))
    async with connected(kubeconfig=config) as cluster:
        with pytest.raises(UpstreamError, match="certificate") as raised:
            await cluster.request("GET", PATH)
    assert raised.value.outcome == "unreachable"
    assert secure.requests == []


async def test_a_certificate_file_that_is_none_is_a_value_error(secure: Server, tmp_path: Path) -> None:
    config = kubeconfig(tmp_path, secure.url, authority=base64.b64encode(b"nothing").decode())
    with pytest.raises(ValueError, match="certificate"):
        await Cluster.connect(kubeconfig=config)


# --- watches


def event(name: str, version: int = 1, kind: str = "MODIFIED", **more: Any) -> dict[str, Any]:
    return {"type": kind, "object": {"metadata": {"name": name, "resourceVersion": str(version)}, **more}}


def line(of: dict[str, Any]) -> bytes:
    return json.dumps(of, ensure_ascii=False).encode() + b"\n"


def sending(*chunks: bytes, then: str = "end") -> Answer:
    """A watch of these chunks, each on its own way; then it ends, is cut or goes silent."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        assert request.transport is not None
        if then == "cut":
            request.transport.abort()
        elif then == "silent":
            await asyncio.Event().wait()
        return response

    return answer


async def read(cluster: Cluster, stall_timeout: float = 5.0) -> list[dict[str, Any]]:
    async with cluster.stream(PATH, {"watch": "1"}, stall_timeout=stall_timeout) as events:
        return [event async for event in events]


async def read_one_then_fail(cluster: Cluster, stall_timeout: float = 5.0) -> UpstreamError:
    """What a watch fails with after its first event."""
    async with cluster.stream(PATH, {"watch": "1"}, stall_timeout=stall_timeout) as events:
        assert await anext(events) == event("a")
        with pytest.raises(UpstreamError) as raised:
            await anext(events)
    return raised.value


async def test_events_come_as_they_are_until_the_server_ends_the_watch(server: Server, cluster: Cluster) -> None:
    events = [event("a", kind="ADDED"), event("", 7, "BOOKMARK"), event("a", 9, "DELETED")]
    server.answer = sending(b"".join(map(line, events[:2])) + b"\n", line(events[2]))
    assert await read(cluster) == events


async def test_characters_and_lines_may_be_cut_anywhere(cluster: Cluster, server: Server) -> None:
    events = [event("grüße", 1, message="日本語 🎉"), event("ß", 2)]
    whole = b"".join(map(line, events))
    server.answer = sending(*(whole[at : at + 1] for at in range(len(whole))))
    assert await read(cluster) == events


async def test_an_object_of_three_megabytes_is_one_event(server: Server, cluster: Cluster) -> None:
    large = event("large", message="é" * (3 * 2**19))
    server.answer = sending(line(large), line(event("small")))
    assert await read(cluster) == [large, event("small")]


async def test_an_event_without_end_is_not_collected_for_ever(
    server: Server, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "MAX_EVENT", 10_000)
    server.answer = sending(line(event("a")), b"x" * 20_000, then="silent")
    assert "more than 10000 bytes" in (await read_one_then_fail(cluster)).message


@pytest.mark.parametrize(("code", "retryable"), [(410, False), (500, True), (403, False)])
async def test_an_error_event_is_raised_with_its_status(
    server: Server, cluster: Cluster, code: int, retryable: bool
) -> None:
    status = {"kind": "Status", "code": code, "message": "so it is", "details": {"retryAfterSeconds": 3}}
    server.answer = sending(line(event("a")), line({"type": "ERROR", "object": status}))
    error = await read_one_then_fail(cluster)
    assert (error.status, error.retryable, error.retry_after) == (code, retryable, 3.0)
    assert error.message == f"kubernetes: HTTP {code}: so it is"


async def test_a_watch_refused_with_a_status_is_raised_before_it_begins(server: Server, cluster: Cluster) -> None:
    server.answer = failing(410, b'{"message": "too old resource version"}')
    with pytest.raises(UpstreamError) as raised:
        await read(cluster)
    assert raised.value.status == 410


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>\n",
        b"\xff\xfe\n",
        b"[1]\n",
        b'"text"\n',
        b'{"kind": "Status"}\n',
        b'{"type": "ADDED", "object": []}\n',
        b'{"type": "ADDED", "object": {"metadata": null}}\n',
        b'{"type": "ERROR", "object": {}}\n',
        b'{"type": "ERROR", "object": {"code": 500, "details": {"retryAfterSeconds": "x"}}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
async def test_garbage_between_events_ends_the_watch_as_an_error(
    server: Server, cluster: Cluster, garbage: bytes
) -> None:
    server.answer = sending(line(event("a")), garbage, then="silent")
    error = await read_one_then_fail(cluster)
    assert (error.status, error.outcome) == (None, "invalid")


async def test_a_watch_that_ends_in_the_middle_of_an_event_is_broken(server: Server, cluster: Cluster) -> None:
    server.answer = sending(line(event("a")), line(event("b"))[:20])
    assert (await read_one_then_fail(cluster)).outcome == "broken"


async def test_a_watch_that_is_cut_is_broken(server: Server, cluster: Cluster) -> None:
    server.answer = sending(line(event("a")), then="cut")
    assert (await read_one_then_fail(cluster)).outcome == "broken"


async def test_a_watch_that_goes_silent_is_given_up(server: Server, cluster: Cluster) -> None:
    server.answer = sending(line(event("a")), then="silent")
    assert (await read_one_then_fail(cluster, stall_timeout=0.05)).outcome == "timeout"


async def test_leaving_a_watch_closes_its_connection(server: Server, cluster: Cluster) -> None:
    left = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await sending(line(event("a")), then="silent")(request)
        finally:
            left.set()

    server.answer = answer
    async with cluster.stream(PATH, {"watch": "1"}) as events:
        assert isinstance(events, Events)
        await anext(events)
    await left.wait()
