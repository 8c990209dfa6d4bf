"""`handlers say`, `voices`, `listen` and `talk` as a user runs them: against real NATS, models and services."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler_core.audio import read_wav
from handler_core.testing import free_port, nats_server, process

HANDLERS = Path(sys.executable).parent / "handlers"
AUDIO = Path(__file__).parent.parent / "audio"
SERVICES = ("tts_module", "stt_module", "voice_assistant")

pytestmark = pytest.mark.timeout(120)


def wait_for(url: str) -> None:
    give_up = time.monotonic() + 40
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
            if reply.status == 200:
                return
        assert time.monotonic() < give_up, f"{url} did not become ready"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def stack() -> Iterator[dict[str, str]]:
    """The environment of a running stack that can speak and listen, without documents."""
    port = free_port()
    local = f"http://127.0.0.1:{port}"
    urls = dict.fromkeys(("LLM_URL", "EMBEDDINGS_URL", "STT_URL", "TTS_URL"), local)
    with nats_server() as nats, contextlib.ExitStack() as running:
        environment = {"NATS_URL": nats.url, "MILVUS_URI": f"http://127.0.0.1:{free_port()}", **urls, "COLUMNS": "120"}
        applied = run(environment, "streams", "apply")
        assert applied.returncode == 0, applied.stderr
        running.enter_context(process("local_inference", {"HOST": "127.0.0.1", "PORT": str(port)}))
        health = {name: free_port() for name in SERVICES}
        for name, place in health.items():
            own = {**environment, "HEALTH_HOST": "127.0.0.1", "HEALTH_PORT": str(place)}
            running.enter_context(process(name, own))
        wait_for(f"{local}/health")
        for place in health.values():
            wait_for(f"http://127.0.0.1:{place}/readyz")
        yield environment


def run(environment: dict[str, str], *arguments: str, data: bytes = b"") -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [str(HANDLERS), *arguments],
        env={**os.environ, **environment},
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
    )
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def test_a_text_is_spoken_and_what_is_spoken_is_understood(stack: dict[str, str], tmp_path: Path) -> None:
    said = run(stack, "say", "-", "-o", str(tmp_path / "said.wav"), data=b"What happens when the server is restarted?")
    assert said.returncode == 0, said.stderr
    format, pcm, truncated = read_wav((tmp_path / "said.wav").read_bytes())
    assert 1 < format.seconds(len(pcm)) < 10
    assert not truncated
    heard = run(stack, "listen", str(tmp_path / "said.wav"), "--fast")
    assert heard.returncode == 0, heard.stderr
    assert "server" in heard.stdout


def test_a_voice_that_is_listed_can_be_asked_for_and_no_other(stack: dict[str, str], tmp_path: Path) -> None:
    known = json.loads(run(stack, "voices", "--json").stdout)["voices"]
    place = str(tmp_path / "out.wav")
    assert run(stack, "say", "Hello.", "-o", place, "--speaker", known[0]["name"]).returncode == 0
    refused = run(stack, "say", "Hello.", "-o", place, "--speaker", "nobody")
    assert refused.returncode == 1
    assert "validation_error: speaker: no voice 'nobody'" in refused.stderr


def test_a_piped_session_is_heard_while_it_comes_and_ctrl_c_ends_it(stack: dict[str, str]) -> None:
    audio = (AUDIO / "two_sentences.wav").read_bytes()
    listening = subprocess.Popen(
        [str(HANDLERS), "listen", "-", "--json", "--fast"],
        env={**os.environ, **stack},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert listening.stdin is not None
    assert listening.stdout is not None
    listening.stdin.write(audio)
    listening.stdin.flush()  # and the pipe stays open
    events: list[dict[str, object]] = []
    while not any(event.get("is_final") for event in events):
        events.append(json.loads(listening.stdout.readline()))
    listening.send_signal(signal.SIGINT)
    rest, told = listening.communicate(timeout=40)
    events += [json.loads(line) for line in rest.splitlines()]
    assert listening.returncode == 130, told
    assert (events[0]["status"], events[-1]["status"], events[-1]["reason"]) == ("started", "ended", "end")
    assert b"Traceback" not in told


def test_a_spoken_question_is_answered_in_text_and_audio(stack: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "answer.wav"
    asked = run(stack, "talk", str(AUDIO / "dead_letter.wav"), "--no-rag", "-o", str(place), "--trace")
    assert asked.returncode == 0, asked.stderr
    assert "dead letter" in asked.stdout.splitlines()[0]
    assert "extractive" in asked.stdout
    for stage in ("stt", "llm", "tts", "transcript", "first audio", "trace_id"):
        assert stage in asked.stdout
    assert read_wav(place.read_bytes()).format.sample_rate == 24_000


def test_a_live_session_is_answered_by_voice(stack: dict[str, str], tmp_path: Path) -> None:
    spoken = run(
        stack, "listen", str(AUDIO / "dead_letter.wav"), "--fast", "--respond", "--no-rag", "--answers", str(tmp_path)
    )
    assert spoken.returncode == 0, spoken.stderr
    assert "dead letter" in spoken.stdout
    assert "< I am an extractive" in spoken.stdout
    [answer] = tmp_path.iterdir()
    assert read_wav(answer.read_bytes()).format.sample_rate == 24_000
