"""No cookies: nothing of one user's call may reach the next one's."""

from collections.abc import Callable, Iterator
from http.cookies import BaseCookie, Morsel, SimpleCookie
from types import MappingProxyType

from aiohttp.abc import AbstractCookieJar
from aiohttp.typedefs import LooseCookies
from yarl import URL


class NoCookies(AbstractCookieJar):
    """A jar that keeps nothing, as aiohttp's `DummyCookieJar`; that one's module loads pickle and calendars."""

    @property
    def unsafe(self) -> bool:
        return False

    @property
    def quote_cookie(self) -> bool:
        return True

    @property
    def cookies(self) -> "MappingProxyType[tuple[str, str], SimpleCookie]":
        return MappingProxyType({})

    @property
    def host_only_cookies(self) -> frozenset[tuple[str, str, str]]:
        return frozenset()

    def __iter__(self) -> "Iterator[Morsel[str]]":
        return iter(())

    def __len__(self) -> int:
        return 0

    def clear(self, predicate: "Callable[[Morsel[str]], bool] | None" = None) -> None:
        pass

    def clear_domain(self, domain: str) -> None:
        pass

    def update_cookies(self, cookies: LooseCookies, response_url: URL | None = None) -> None:
        pass

    def filter_cookies(self, request_url: URL) -> "BaseCookie[str]":
        return SimpleCookie()
