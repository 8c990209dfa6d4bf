"""Who may do what: bearer tokens, and verbs that are refused."""

from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Access:
    """Tokens and refusals; both may change while the server runs."""

    tokens: set[str] = field(default_factory=set)
    """One of these must be the bearer token; empty: none is needed."""
    forbidden: set[str] = field(default_factory=set)
    """Verbs of Kubernetes refused with 403: create, get, list, watch, update, patch, delete."""

    def knows(self, request: web.Request) -> bool:
        """Whether a request carries a token that is known, or none is needed."""
        if not self.tokens:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and token.strip() in self.tokens
