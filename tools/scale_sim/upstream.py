"""A stand-in for the LLM endpoint, a process of its own: answers of a model's length and pace, each one of a kind.

Every word of an answer names that answer, its own place and how many there are, so that whoever reads a text can tell
whether it is one whole answer: no word missing, none twice, and none of another attempt's.
"""

import argparse
import asyncio
import json
import random
import uuid

from aiohttp import web

WORDS = 20


def words(name: str, count: int = WORDS) -> list[str]:
    """An answer, word by word."""
    return [f"{name}.{place}/{count}" for place in range(count)]


def whole(text: str) -> bool:
    """Whether a text is exactly one answer, from its first word to its last."""
    found = text.split()
    name, dot, rest = found[0].partition(".") if found else ("", "", "")
    count = rest.partition("/")[2]
    return bool(name and dot and count.isdigit()) and found == words(name, int(count))


def application(shortest: float, longest: float) -> web.Application:
    """`POST /v1/chat/completions`, streamed over a random time from `shortest` to `longest` seconds."""

    async def complete(request: web.Request) -> web.StreamResponse:
        await request.read()
        answer = words(uuid.uuid4().hex[:12])
        pause = random.uniform(shortest, longest) / len(answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in answer:
            await asyncio.sleep(pause)
            await response.write(_event({"delta": {"content": f"{word} "}, "finish_reason": None}))
        await response.write(_event({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n")
        return response

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", complete), web.get("/health", health)])
    return app


def _event(choice: dict[str, object]) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.scale_sim.upstream", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, nargs=2, required=True, metavar=("SHORTEST", "LONGEST"))
    arguments = parser.parse_args()
    app = application(*arguments.seconds)
    web.run_app(app, host="127.0.0.1", port=arguments.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
