"""`make demo` as its two audiences see it: a stranger who lets it finish, and one who changes his mind."""

import os
import re
import signal
import subprocess
import sys
import wave
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, str(ROOT / "tools" / "demo.py")]

pytestmark = pytest.mark.timeout(300)


def leftovers(marker: str) -> list[str]:
    """Command lines of processes that a demo with this marker in its environment has left running."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"DEMO_TEST={marker}".encode() in environment.split(b"\0") and command:
            found.append(command)
    return found


def start(marker: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    return subprocess.Popen(
        DEMO, env={**environment, "DEMO_TEST": marker}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_demo_answers_in_writing_and_in_speech_and_leaves_nothing_but_the_spoken_answer() -> None:
    marker = f"{os.getpid()}-whole"
    demo = start(marker)
    printed, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, printed
    written, spoken = printed.split("$ handlers ask")[1].split("$ handlers talk")
    answer = written.split("Sources")[0]
    assert len(set(re.findall(r"\[\d\]", answer))) >= 2, printed
    assert len(re.findall(r"^ +\[\d\].* cited +docs/", printed, re.MULTILINE)) >= 2, printed
    assert "Where the time went" in written
    assert "what happens when a worker dies" in spoken.lower()
    assert "Where the time went" in spoken
    with wave.open(str(ROOT / "build" / "demo" / "answer.wav")) as audio:
        assert audio.getnframes() > audio.getframerate(), "the spoken answer is shorter than a second"
    assert leftovers(marker) == []


def test_ctrl_c_in_the_middle_ends_everything() -> None:
    marker = f"{os.getpid()}-interrupted"
    demo = start(marker)
    assert demo.stdout is not None
    for line in demo.stdout:
        if "chat_handler" in line and "ready" in line:
            break
    demo.send_signal(signal.SIGINT)
    printed, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, printed
    assert "interrupted" in printed
    assert leftovers(marker) == []
