"""The scale simulation: that its counting misses nothing, and one short run of the whole."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from handler_core import streams
from handler_core.codec import encode
from handler_core.connection import Connection
from handler_core.contract.answer import StreamEvent
from handler_core.contract.chat import ChatRequest, ChatResponse
from handler_core.contract.errors import ErrorInfo, ErrorType
from handler_core.jetstream import Api
from handler_core.testing import connection, nats_server, until
from tools.scale_sim.load import Load
from tools.scale_sim.truth import Counts, count, read
from tools.scale_sim.upstream import whole, words

ROOT = Path(__file__).resolve().parents[2]
TURNS = ("t1", "t2", "t3")


# -- what the counting sees


class Room:
    """Three turns that a server has stored, and a subscriber who listens."""

    def __init__(self, nc: Connection) -> None:
        self.nc = nc
        self.api = Api(nc)
        self.load = Load(nc, [], lambda: 0.0, seed=1)
        self.sequences: dict[str, int] = {}

    async def answer(self, name: str, *, text: str | None = None, success: bool = True) -> None:
        text = " ".join(words(name)) if text is None else text
        half = len(text) // 2
        for seq, content in enumerate((text[:half], text[half:]), start=1):
            await self.event(name, seq, content=content)
        await self.final(name, text, success=success)
        await self.event(name, 3, type="done", done=True)

    async def event(self, name: str, seq: int, *, attempt: int = 1, type: Any = "chunk", **fields: Any) -> None:
        event = StreamEvent(request_id=name, seq=seq, attempt=attempt, type=type, timestamp=time.time(), **fields)
        sequence = await self.api.publish(f"evt.chat.response.stream.{name}", encode(event), {})
        self.sequences[f"{name}.{seq}"] = sequence

    async def final(self, name: str, text: str, *, success: bool = True) -> None:
        error = None if success else ErrorInfo(type=ErrorType.INTERNAL, message="broken", retryable=False)
        response = ChatResponse(request_id=name, response=text, success=success, error=error)
        self.sequences[name] = await self.api.publish(f"evt.chat.response.{name}", encode(response), {})

    async def remove(self, what: str) -> None:
        await self.api.request("STREAM.MSG.DELETE.AI_EVENTS", {"seq": self.sequences[what]})

    async def counts(self, *names: str) -> Counts:
        """Counted once the subscriber has got what was published so far."""
        await self.nc.flush()
        finals = sum(name.startswith("t") and "." not in name for name in self.sequences)
        await until(lambda: self.load.answered >= finals, "the subscriber has the final responses")
        return count(names or TURNS, await read(self.nc), self.load.seen)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    with nats_server() as server:
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
            room = Room(nc)
            async with room.load.listening():
                for name in TURNS:
                    await room.answer(name)
                yield room


async def test_turns_that_are_all_answered_once_are_good(room: Room) -> None:
    counts = await room.counts()
    assert (counts.published, counts.answered, counts.lost, counts.duplicated) == (3, 3, 0, 0)
    assert counts.good


async def test_a_stored_answer_that_is_removed_is_a_lost_turn(room: Room) -> None:
    await room.remove("t2")
    counts = await room.counts()
    assert (counts.answered, counts.lost) == (2, 1)
    assert counts.problems == {"lost": ["t2"]}
    assert not counts.good


async def test_a_turn_that_nobody_has_answered_is_lost(room: Room) -> None:
    counts = await room.counts(*TURNS, "t4")
    assert counts.problems == {"lost": ["t4"]}


async def test_a_second_final_response_is_a_duplicate(room: Room) -> None:
    await room.final("t1", " ".join(words("t1")))
    counts = await room.counts()
    assert (counts.answered, counts.duplicated) == (2, 1)
    assert counts.problems == {"duplicated": ["t1"]}
    assert not counts.good


async def test_a_second_end_of_a_stream_is_a_duplicate(room: Room) -> None:
    await room.event("t1", 4, type="done", done=True)
    assert (await room.counts()).problems == {"duplicated": ["t1"]}


async def test_a_duplicate_that_only_the_subscriber_saw_is_one(room: Room) -> None:
    await until(lambda: room.load.answered == len(TURNS), "the subscriber has the final responses")
    room.load.seen["t3"].finals *= 2
    assert (await room.counts()).problems == {"duplicated": ["t3"]}


async def test_an_event_that_is_removed_makes_an_answer_incoherent(room: Room) -> None:
    await room.remove("t1.2")
    assert (await room.counts()).problems == {"incoherent": ["t1"]}


async def test_an_answer_of_two_attempts_spliced_is_incoherent(room: Room) -> None:
    await room.answer("t4", text=" ".join([*words("a")[:7], *words("b")[7:]]))
    assert (await room.counts("t4")).problems == {"incoherent": ["t4"]}


async def test_an_answer_after_a_restart_is_taken_over_and_good(room: Room) -> None:
    text = " ".join(words("t4"))
    await room.event("t4", 1, content="other.0/20 other.1/20 ")
    await room.event("t4", 2, attempt=2, type="restart")
    await room.event("t4", 3, attempt=2, content=text)
    await room.final("t4", text)
    await room.event("t4", 4, attempt=2, type="done", done=True)
    counts = await room.counts(*TURNS, "t4")
    assert (counts.answered, counts.taken_over) == (4, 1)
    assert counts.good


async def test_an_error_for_an_answer_is_a_failed_turn(room: Room) -> None:
    await room.answer("t4", success=False)
    assert (await room.counts("t4")).problems == {"failed": ["t4"]}


async def test_what_did_not_reach_the_subscriber_is_not_seen_whole(room: Room) -> None:
    await until(lambda: room.load.seen["t3"].complete, "the subscriber has the answer")
    room.load.seen["t3"].events.pop()
    assert (await room.counts()).problems == {"unseen": ["t3"]}


async def test_a_request_that_is_still_queued_is_not_lost(room: Room) -> None:
    await room.api.publish("ai.chat.request", encode(ChatRequest(request_id="t4", query="Who?")), {})
    counts = await room.counts(*TURNS, "t4")
    assert counts.problems == {"queued": ["t4"]}
    assert not counts.good


async def test_a_dead_letter_is_never_good(room: Room) -> None:
    await room.api.publish("dlq.AI_CHAT.chat_handler", b"", {})
    counts = await room.counts()
    assert counts.dead_letters == 1
    assert not counts.good


async def test_a_message_handed_out_again_is_a_redelivery(room: Room) -> None:
    await room.api.publish("ai.chat.request", encode(ChatRequest(request_id="t4", query="Who?")), {})
    inbox = room.nc.new_inbox()
    arrived = await room.nc.subscribe(inbox)
    for settled in (b"-NAK", b"+ACK"):
        await room.nc.publish("$JS.API.CONSUMER.MSG.NEXT.AI_CHAT.chat_handler", b"", reply=inbox)
        message = await arrived.next_msg(timeout=5)
        await room.nc.publish(message.reply, settled)
    counts = await room.counts()
    assert counts.redelivered == 1


def test_a_text_is_whole_with_every_word_of_one_answer_in_order() -> None:
    text = words("a1")
    assert whole(" ".join(text))
    assert not whole("")
    assert not whole("hello")
    assert not whole(" ".join(text[:-1]))
    assert not whole(" ".join([*text, text[-1]]))
    assert not whole(" ".join([*text[:3], *words("b2")[3:]]))


# -- the whole


@contextlib.contextmanager
def simulation(out: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tools.scale_sim", "--out", str(out), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:  # it ends its processes itself, unless it hangs
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
        process.kill()


def ends(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=90)
    return process.returncode, stdout, stderr


@pytest.mark.timeout(120)
def test_a_short_burst_is_answered_by_more_workers_and_nothing_of_the_one_that_is_killed_is_lost(
    tmp_path: Path,
) -> None:
    phases = ("--phases", "0.3", "1.5", "0.5", "0.5", "0.5", "--burst", "6", "--answer", "0.5", "1")
    with simulation(
        tmp_path, *phases, "--max-replicas", "2", "--kill", "1", "--pace", "100", "--settle", "40"
    ) as process:
        code, stdout, stderr = ends(process)
    assert code == 0, stderr
    run = json.loads((tmp_path / "run.json").read_text())
    found = run["figures"]
    assert found["published"] == found["answered"] == len(run["turns"]) > 0
    assert (found["lost"], found["duplicated"], found["dead_letters"], found["left_in_the_queue"]) == (0, 0, 0, 0)
    assert (found["pods_killed"], found["pods_stopped"]) == (1, found["pods_started"] - 1)
    assert found["pods_started"] >= 3  # the first one, one for the burst, and one in the killed one's place
    assert found["turns_running_when_a_pod_was_killed"] > 0
    assert found["taken_over"] > 0
    assert "lost                                                 0" in stdout
    assert "desired" in stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.timeout(120)
def test_an_interrupt_ends_all_processes_and_prints_the_counts_so_far(tmp_path: Path) -> None:
    with simulation(tmp_path, "--phases", "60", "1", "1", "1", "1", "--quiet", "5") as process:
        assert process.stderr is not None
        assert "desired" in process.stderr.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        code, stdout, stderr = ends(process)
    assert code == 130, stderr
    assert "published" in stdout
    assert len(children) >= 3, "the server, the upstream and a worker"
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
