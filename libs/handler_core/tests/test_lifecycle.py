"""What a process does beside its work when it is a container's first."""

import subprocess
import sys

# A process that adopts orphans as a container's first does; it leaves one behind, and waits for a child of its own.
ADOPTS = """
import asyncio, ctypes, os, sys
from handler_core import lifecycle

lifecycle.REAP_INTERVAL = 0.3
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def orphan():
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(3)  # by then its parent may have ended or not: it is adopted either way
        os._exit(0)
    os.wait()


async def main():
    async with lifecycle.reaping(PID):
        orphan()
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(7)")
        print("child", await child.wait())
        await asyncio.sleep(SECONDS)
    try:
        print("left", os.waitpid(-1, 0)[1])
    except ChildProcessError:
        print("left none")


asyncio.run(main())
"""


def run(pid: int, seconds: float) -> str:
    code = ADOPTS.replace("PID)", f"{pid})").replace("SECONDS", str(seconds))
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30).stdout


def test_a_containers_first_process_buries_orphans_and_leaves_children_to_those_who_wait_for_them() -> None:
    assert run(1, 1.2).splitlines() == ["child 7", "left none"]


def test_any_other_process_leaves_them() -> None:
    assert run(2, 0).splitlines() == ["child 7", "left 768"]
