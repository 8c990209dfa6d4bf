"""What a stream republishes reaches its reader once and in order, over connections that are lost."""

import asyncio
from types import SimpleNamespace

from handler_core import streams
from handler_core.connection import Connection
from handler_core.jetstream import Api
from handler_core.testing import connection, nats_server
from handlers_cli.feed import Feed

ONE, TWO = "ai.voice.transcription.one", "ai.voice.transcription.two"


async def store(nc: Connection, *texts: str, subject: str = ONE) -> None:
    for text in texts:
        await Api(nc).publish("evt." + subject.removeprefix("ai."), text.encode(), {})


async def heard(feed: Feed, count: int) -> list[str]:
    async with asyncio.timeout(20):
        return [(await feed.next()).data.decode() for _ in range(count)]


async def test_what_was_there_before_is_left_out(nc: Connection) -> None:
    await store(nc, "before")
    async with Feed(nc, ONE) as feed:
        await store(nc, "a", "b")
        assert await heard(feed, 2) == ["a", "b"]


async def test_what_is_not_from_the_stream_is_left_out(nc: Connection) -> None:
    async with Feed(nc, ONE) as feed:
        await nc.publish(ONE, b"made up")
        await nc.publish(ONE, b"made up too", headers={"Nats-Sequence": "x"})
        await store(nc, "a")
        assert await heard(feed, 1) == ["a"]


async def test_what_is_read_from_the_stream_does_not_come_again(nc: Connection) -> None:
    async with Feed(nc, ONE, TWO) as feed:
        await store(nc, "a")
        await store(nc, "b", subject=TWO)
        await store(nc, "c")
        assert [item.data for item in await feed.stored()] == [b"a", b"b", b"c"]
        feed.look()
        await store(nc, "d")
        assert await heard(feed, 1) == ["d"]


async def test_what_came_while_the_connection_was_lost_is_read_before_what_comes_after() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            await streams.apply(Api(nc))
            async with Feed(nc, ONE) as feed:
                await store(nc, "a")
                assert await heard(feed, 1) == ["a"]
                lost = asyncio.Event()
                nc.on_reconnect.append(lost.set)
                server.kill()
                await asyncio.to_thread(server.start)
                async with connection(server.url) as other:
                    await store(other, "b", "c")
                    await lost.wait()
                    await store(other, "d")
                assert await heard(feed, 3) == ["b", "c", "d"]


async def test_a_message_of_the_new_connection_waits_for_those_that_were_missed(nc: Connection) -> None:
    # nats-py hands messages out before it says that it has reconnected; the stream has what came in between.
    async with Feed(nc, ONE) as feed:
        await feed._subscriptions.pop().unsubscribe()
        assert await nc.responds(5)
        await store(nc, "a", "b")
        last = await Api(nc).last("AI_EVENTS", "evt.voice.transcription.one")
        assert last is not None
        nc.stats["reconnects"] += 1
        await feed._take(SimpleNamespace(subject=ONE, data=b"b", headers={"Nats-Sequence": str(last.sequence)}))
        assert await heard(feed, 2) == ["a", "b"]
