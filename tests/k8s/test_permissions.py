"""The users that are derived from declarations: those that the documentation shows, and enough on a real server."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler_core import pipelines, provision
from handler_core.contract.pipeline import TriggerRequest
from handler_core.jetstream import Api
from handler_core.testing import NatsServer, connection, login, nats_server, serving, stored, until
from pipeline_bridge.service import Settings, service
from tools.k8s import nsc
from tools.k8s.permissions import PROVISIONER, User, nsc_commands, users
from tools.k8s.render import ROOT

AUTHORIZATION = ROOT / "k8s" / "nats" / "authorization.conf"
CATALOGUE = ROOT / "k8s" / "examples" / "pipelines" / "pipelines.yaml"
PAGES = {
    "chat_handler": "streams",
    "voice_assistant": "voice",
    "tts_module": "tts",
    "stt_module": "stt",
    "pipeline_bridge": "pipelines",
}
"""Where each user is shown. What is shown there is tried on real servers by the services' own tests."""


def documented(name: str, page: str) -> User:
    """A user as a page of the documentation shows it."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    shown = re.search(rf"\{{ user: {name},.*?publish: \[(.*?)\]\s*subscribe: \[(.*?)\]", text, re.DOTALL)
    assert shown is not None, f"docs/{page}.md shows no user {name}"
    return User(name, *(tuple(re.findall(r'"([^"]+)"', part)) for part in shown.groups()))


@pytest.mark.parametrize("name", PAGES)
def test_a_service_has_the_permissions_that_its_page_shows(name: str) -> None:
    [derived] = [user for user in users(callers=["alice"]) if user.name == name]
    shown = documented(name, PAGES[name])
    assert sorted(derived.publish) == sorted(shown.publish)
    assert sorted(derived.subscribe) == sorted(shown.subscribe)


def test_the_provisioner_has_the_permissions_that_its_page_shows_and_an_inbox_of_its_own() -> None:
    assert sorted(PROVISIONER.publish) == sorted(documented("provisioner", "streams").publish)
    assert PROVISIONER.subscribe == ("_INBOX_provisioner.>",)


@pytest.mark.parametrize("user", users(), ids=lambda user: user.name)
def test_none_may_do_everything_or_read_the_replies_of_others(user: User) -> None:
    everything = {">", "$JS.>", "$JS.API.>", "evt.>", "ai.>", "*.>"}
    assert not everything & {*user.publish, *user.subscribe}
    assert [subject for subject in user.subscribe if subject.startswith("_INBOX")] == [f"{user.inbox}.>"]
    assert not [subject for subject in user.publish if "DELETE" in subject and "AI_STT.*" not in subject]
    assert len(set(user.publish)) == len(user.publish)


def test_a_caller_with_an_inbox_prefix_of_its_own_is_answered_by_those_that_reply() -> None:
    answering = [user.name for user in users(["alice", "bob"]) if {"_INBOX_alice.>", "_INBOX_bob.>"} <= {*user.publish}]
    assert answering == ["chat_handler", "voice_assistant", "tts_module", "pipeline_bridge"]


@pytest.fixture
def guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsServer]:
    """A server with the rendered file, and its passwords in its environment; the operator's is a bcrypt hash."""
    monkeypatch.setenv("OPERATOR_PASSWORD", '"$2b$04$abcdefghijklmnopqrstuugZ4cCtXYvT3AWc2gHnp4bhaIZgm6TGC"')
    for user in users():
        monkeypatch.setenv(user.variable, f"{user.name}-password")
    config = tmp_path / "nats.conf"
    config.write_text(f"include {json.dumps(AUTHORIZATION.name)}\n")
    (tmp_path / AUTHORIZATION.name).write_text(AUTHORIZATION.read_text())
    with nats_server("--config", str(config)) as server:
        yield server


async def test_the_rendered_file_serves_a_provisioner_a_service_and_an_operator(
    guarded: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = login("provisioner", "provisioner-password")
    assert await provision.apply(provision.Settings(nats_url=guarded.url, **own), replicas=1, wait=10) == 0
    settings = Settings(
        nats_url=guarded.url,
        health_host="127.0.0.1",
        health_port=0,
        pipelines_file=CATALOGUE,
        **login("pipeline_bridge", "pipeline_bridge-password"),
    )
    operator = {"nats_user": "operator", "nats_password": "secret-1"}
    async with serving(service, settings), connection(guarded.url, **operator) as nc:
        assert (await pipelines.catalogue(nc)).pipelines
        assert (await nc.request("$SRV.INFO.pipeline_bridge", b"", 10)).data
        await pipelines.trigger(Api(nc), TriggerRequest(request_id="r1", pipeline="no-such-pipeline"))

        async def refused() -> bool:
            return bool(await stored(nc, "AI_PIPELINE_STATUS", "evt.pipeline.status.r1"))

        await until(refused, "the run has a status")
        await until(lambda: settled(nc), "its trigger is settled")
    assert guarded.violations("pipeline_bridge") == guarded.violations("provisioner") == []


async def settled(nc: object) -> bool:
    return not await stored(nc, "AI_PIPELINE", ">")  # type: ignore[arg-type]


async def test_a_service_of_the_rendered_file_cannot_do_the_work_of_another(guarded: NatsServer) -> None:
    closed = [
        "$JS.API.CONSUMER.MSG.NEXT.AI_CHAT.chat_handler", "$JS.API.STREAM.DELETE.AI_TTS", "$JS.API.STREAM.CREATE.OWN",
        "$JS.API.STREAM.MSG.GET.KV_AI_SESSIONS", "evt.chat.response.r1", "ai.chat.request", "ai.turn.cancel.r1",
    ]  # fmt: skip
    private = ["_INBOX.>", "_INBOX_chat_handler.>", "ai.chat.ask", "$KV.>", "evt.>", ">"]
    async with connection(guarded.url, **login("tts_module", "tts_module-password")) as nc:
        for subject in closed:
            await nc.publish(subject, b"{}")
        for subject in private:
            await nc.subscribe(subject)
        await nc.flush()
    kept_from = [f'Publish "{subject}"' for subject in closed] + [f'Subscription "{subject}"' for subject in private]
    assert guarded.violations("tts_module") == kept_from


def test_nsc_is_told_the_same_users(capsys: pytest.CaptureFixture[str]) -> None:
    assert nsc.main(["AI", "--caller", "alice"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == nsc_commands("AI", users(["alice"]))
    for line, user in zip(lines, users(["alice"]), strict=True):
        words = shlex.split(line)
        assert words[: words.index("--allow-pub")] == ["nsc", "add", "user", "--account", "AI", "--name", user.name]
        assert words[words.index("--allow-pub") + 1].split(",") == list(user.publish)
        assert words[words.index("--allow-sub") + 1].split(",") == list(user.subscribe)
