"""Continuous pull: from the server's consumer to free slots, through whatever happens to either.

One inbox subscription takes all messages; pull requests overlap so that the server never waits for us, and ask for
free slots only so that a slow worker hoards nothing. The protocol is the server's (ADR-37 describes the client side):
statuses arrive as messages with a code and no body. What each does is in `_status`.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable

import structlog

from handler_core.connection import Connection, parse_headers
from handler_core.delivery import Delivery
from handler_core.errors import Transient
from handler_core.jetstream import Api, JetStreamError
from handler_core.limits import Limits
from handler_core.streams import NANOSECONDS, Consumer, diff_consumer
from handler_core.telemetry import Counter

log = structlog.get_logger("handler_core.pull")


class Puller:
    """Pulls from one declared consumer as long as `run` does.

    Args:
        config: the declaration, which the server's consumer has to match.
        limits: how pull requests are made.
        free: how many more messages there is room for.
        receive: takes a message; it must not block.
        restarts: counts how often pulling was set up anew.
    """

    def __init__(
        self,
        nc: Connection,
        config: Consumer,
        limits: Limits,
        *,
        free: Callable[[], int],
        receive: Callable[[Delivery], None],
        restarts: Counter,
    ) -> None:
        self.config = config
        self.bound = False
        """Whether the server's consumer exists and fits, and messages are being pulled."""
        self.problem = "not started"
        """Why it is not bound."""
        self.ack_wait = config.ack_wait
        """Seconds, as the server's consumer has it."""
        self.ack_wait_changed = asyncio.Event()
        self._nc = nc
        self._api = Api(nc)
        self._limits = limits
        self._free = free
        self._accept = receive
        self._restarts = restarts
        self._sid: int | None = None
        self._inbox = ""
        self._pending = 0
        self._uncovered = 0
        self._last_sign = 0.0
        self._silences = 0
        self._fruitless = 0
        self._fault = ""
        self._attention = asyncio.Event()
        self._stopping = False
        self._said: str | None = None

    @property
    def name(self) -> str:
        return f"{self.config.stream}/{self.config.name}"

    async def run(self) -> None:
        """Pull until `stop`, then end the subscription; what the server had sent by then is still received."""
        while not self._stopping:
            if await self._bind():
                await self._pull_until_trouble()
        await self.close()

    def stop(self) -> None:
        """Pull no more."""
        self._stopping = True
        self.bound, self.problem = False, "stopping"
        if self._sid is not None:
            self._nc.mute(self._sid)  # first, or what is handed back would come here again
        self._attention.set()

    def restart(self, reason: str) -> None:
        """Set pulling up anew: after a reconnect, or a status that says that a pull has ended."""
        if not self._fault:
            self._fault = reason
        self._attention.set()

    async def close(self) -> None:
        """End the subscription. The server drops the pull requests of an inbox that nobody listens to."""
        if self._sid is not None:
            sid, self._sid = self._sid, None
            await self._nc.detach(sid)

    # -- binding to the server's consumer

    async def _bind(self) -> bool:
        """Make sure that the server's consumer is there and fits, saying once what is wrong until it is."""
        delay = 0.25
        while not self._stopping:
            self._attention.clear()  # a reconnect from here on cuts the pause below short
            try:
                differences, actual = await diff_consumer(self._api, self.config)
            except (Transient, JetStreamError) as error:
                problem, fits = f"consumer {self.name}: {error}", False
            else:
                problem = "; ".join(map(str, differences))
                fits = not any(d.unsafe for d in differences)
                if fits and (ack_wait := actual.get("ack_wait", 0) / NANOSECONDS) and ack_wait != self.ack_wait:
                    self.ack_wait = ack_wait
                    self.ack_wait_changed.set()
            if self._stopping:
                return False
            self._say(problem, fits)
            if fits:
                await self._subscribe()
                self.bound, self.problem = True, ""
                return True
            self.bound, self.problem = False, problem
            await self._pause(delay)
            delay = min(delay * 2, 15.0)
        return False

    async def _pause(self, seconds: float) -> None:
        """Wait with jitter, or until something happens: a reconnect, `stop`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._attention.wait(), seconds * (0.75 + random.random() / 2))

    def _say(self, problem: str, fits: bool) -> None:
        if problem == self._said:
            return
        if problem:
            log.warning("consumer_differs" if fits else "consumer_unusable", problem=problem,
                        remedy="handlers streams apply", waiting=not fits)  # fmt: skip
        elif self._said:
            log.info("consumer_ready", consumer=self.name)
        self._said = problem

    async def _subscribe(self) -> None:
        await self.close()
        self._inbox = self._nc.new_inbox()
        self._sid = await self._nc.attach(self._inbox, self._receive)
        self._pending = 0
        self._last_sign = time.monotonic()
        self._fault = ""

    # -- pulling

    async def _pull_until_trouble(self) -> None:
        """Pull until the subscription has to be set up anew: a fault, a reconnect, silence, or `stop`."""
        self.pull()
        while not self._stopping and not self._fault:
            self._attention.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._attention.wait(), self._limits.idle_heartbeat / 2)
            if not self._fault and not self._stopping:
                await self._check_heartbeat()
        if self._fault and not self._stopping:
            level = "info" if self._fault in ("reconnected", "leadership change") else "warning"
            getattr(log, level)("pull_restarted", consumer=self.name, reason=self._fault)
            self._restarts.value += 1
            self._fruitless += self._fault != "reconnected"
            if self._fruitless > 1:
                self.bound, self.problem = False, f"consumer {self.name}: {self._fault}"
                self._attention.clear()
                await self._pause(min(0.25 * 2.0 ** min(self._fruitless, 6), 15.0))

    async def _check_heartbeat(self) -> None:
        silent = time.monotonic() - self._last_sign
        if self._pending <= 0 or not self._nc.is_connected or silent < 2 * self._limits.idle_heartbeat:
            return
        self._silences += 1
        self._fault = f"no heartbeat for {silent:.1f} s"
        if self._silences > 1 or not await self._nc.responds(self._limits.idle_heartbeat):
            self._fault += ", reconnecting"
            await self._nc.force_reconnect()

    def pull(self) -> None:
        """Ask for the free slots that no pending request covers, once those are half of all free ones."""
        limits, free = self._limits, self._free()
        self._uncovered = uncovered = free - self._pending
        if uncovered <= 0 or self._pending > uncovered or self._stopping or self._fault or not self._nc.is_connected:
            return
        if self._pending == 0:
            self._last_sign = time.monotonic()
        self._pending = free
        self._uncovered = 0
        request = {
            "batch": uncovered,
            "expires": int(limits.expires * NANOSECONDS),
            "idle_heartbeat": int(min(limits.idle_heartbeat, limits.expires / 2) * NANOSECONDS),
        }
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.config.stream}.{self.config.name}"
        self._nc.send(subject, json.dumps(request).encode(), reply=self._inbox)

    def _receive(self, subject: bytes, reply: bytes, data: bytes, raw_headers: bytes | None) -> None:
        """The subscription's sink: called from the parser, so it only sorts and queues."""
        self._last_sign = time.monotonic()
        if not reply.startswith(b"$JS.ACK.") or reply.count(b".") < 8:
            # A status has no reply subject; by its headers alone it could be told from no one's empty message.
            self._status(raw_headers or b"")
            return
        self._silences = self._fruitless = 0
        if self._pending > 0:
            self._pending -= 1
        self._accept(Delivery(self._nc, subject, reply, data, raw_headers))
        if self._pending <= self._uncovered:
            self.pull()  # handlers that end ask too, but none may end for long

    def _status(self, raw: bytes) -> None:
        line, _, _ = raw.partition(b"\r\n")
        if len(digits := line[9:12]) < 3 or not digits.isdigit():
            return  # no status, and no message that could be settled
        code = int(digits)
        text = line[13:].decode("utf-8", "replace").strip()
        lower = text.lower()
        if code == 100:
            self._silences = self._fruitless = 0
            return
        if self._sid is None:
            return  # the answer to a pull that has been given up
        left = parse_headers(raw).get("Nats-Pending-Messages", "")
        remaining = int(left) if left.isdecimal() else None
        if (
            code == 408 or (code == 409 and ("batch completed" in lower or "maxbytes" in lower))
        ) and remaining is not None:
            self._pending = max(0, self._pending - remaining)
            self.pull()
        elif code == 409 and "leadership change" in lower:
            self.restart("leadership change")
        else:
            # 400 bad request, 404, 503 no responders, 409 consumer deleted / push based / server shutdown / exceeded …:
            # this pull is over, and whether another can succeed has to be looked up.
            self.restart(f"{code} {text or 'no responders'}")
