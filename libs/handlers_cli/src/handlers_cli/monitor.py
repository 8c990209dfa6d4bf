"""The monitoring port of NATS, read as KEDA's nats-jetstream scaler reads it.

Source: KEDA's `pkg/scalers/nats_jetstream_scaler.go`. It asks `/jsz?acc=…&consumers=true&config=true`, finds stream
and consumer by their names, and adds `num_pending` and `num_ack_pending`. In a cluster only the consumer's leader
knows these, so the figures are taken from that server, found by the names that the servers' `/varz` tell.
"""

import contextlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp

from handler_core.clients.http import new_session
from handler_core.config import masked
from handler_core.streams import Consumer
from handlers_cli.lag import Lag, measured, missing
from handlers_cli.session import Unreachable

__all__ = ["Monitor", "new_session"]

TIMEOUT = aiohttp.ClientTimeout(total=5.0)


Found = dict[str, Any] | None


class Monitor:
    """A monitoring port.

    Args:
        url: `http://nats:8222`; as in KEDA's settings, the scheme may be left out.
        account: the account whose streams are meant; `$G` where the server has none configured.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, account: str) -> None:
        self._session = session
        self._url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._account = account
        self._known: dict[str, str] = {}

    async def lags(self, consumers: Sequence[Consumer]) -> list[Lag]:
        """The consumers' figures; one that KEDA would not find has an error instead.

        Raises:
            Unreachable: the port does not answer, or not as NATS does.
        """
        page = await self._jsz(self._url)
        return [await self._lag(page, consumer) for consumer in consumers]

    async def _lag(self, page: dict[str, Any], consumer: Consumer) -> Lag:
        stream, info = self._find(page, consumer)
        if page.get("meta_cluster", {}).get("cluster_size", 0) > 1:
            stream, info = await self._at_leader(stream, info, consumer)
        if info is not None and stream is not None:
            return measured(consumer, info, stream.get("state", {}).get("first_ts"))
        if stream is not None:
            return missing(consumer, "the consumer")
        if self._streams(page):
            return missing(consumer, "the stream")
        return Lag(consumer.stream, consumer.name, error=f"the account {self._account} has no streams here")

    async def _at_leader(self, stream: Found, info: Found, consumer: Consumer) -> tuple[Found, Found]:
        """The consumer as its leader sees it; where this server has no copy of the stream, another says who leads."""
        members = await self._members()
        others = [url for url in members.values() if url != self._url]
        while info is None and others:
            with contextlib.suppress(Unreachable):
                stream, info = self._find(await self._jsz(others.pop()), consumer)
        leader = (info or {}).get("cluster", {}).get("leader")
        url = members.get(leader) or self._beside(leader)
        if info is None or not leader or url == self._url:
            return stream, info
        return self._find(await self._jsz(url), consumer)

    async def _members(self) -> dict[str, str]:
        """The monitoring ports of the cluster's servers by their names; they have the same port number."""
        if not self._known:
            parts = urlsplit(self._url)
            port = f":{parts.port}" if parts.port else ""
            here = await self._get(f"{self._url}/varz")
            self._known[here.get("server_name", "")] = self._url
            for address in here.get("connect_urls") or []:
                url = f"{parts.scheme}://{address.rpartition(':')[0]}{port}{parts.path}"
                with contextlib.suppress(Unreachable):
                    self._known.setdefault((await self._get(f"{url}/varz")).get("server_name", ""), url)
        return self._known

    def _beside(self, name: str) -> str:
        """Where a server of this name is that does not tell its address: a pod behind the headless service we ask."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{name}.{parts.netloc}{parts.path}"

    def _streams(self, page: dict[str, Any]) -> list[dict[str, Any]]:
        accounts = (account for account in page.get("account_details") or [] if account.get("name") == self._account)
        return (next(accounts, None) or {}).get("stream_detail") or []

    def _find(self, page: dict[str, Any], consumer: Consumer) -> tuple[Found, Found]:
        """The stream and the consumer as a server sees them, None where it has none."""
        for stream in self._streams(page):
            if stream.get("name") == consumer.stream:
                found = (info for info in stream.get("consumer_detail") or [] if info.get("name") == consumer.name)
                return stream, next(found, None)
        return None, None

    async def _jsz(self, url: str) -> dict[str, Any]:
        page = await self._get(f"{url}/jsz?acc={quote(self._account, safe='$')}&consumers=true&config=true")
        if "account_details" not in page and "streams" not in page:
            raise Unreachable(f"{masked(url)} is no monitoring port of a NATS server with JetStream")
        return page

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            async with self._session.get(url, timeout=TIMEOUT) as response:
                if response.status != 200:
                    raise Unreachable(f"{masked(url)} answers {response.status}")
                page = await response.json(content_type=None)
        except aiohttp.ClientResponseError:
            raise Unreachable(f"{masked(url)} does not speak HTTP; the monitoring port is usually 8222") from None
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = str(error) or f"no answer within {TIMEOUT.total:g} s"
            raise Unreachable(f"the monitoring port does not answer: {masked(url)}: {reason}") from None
        except ValueError:
            raise Unreachable(f"{masked(url)} does not answer with JSON") from None
        if not isinstance(page, dict):
            raise Unreachable(f"{masked(url)} is no monitoring port of a NATS server")
        return page
