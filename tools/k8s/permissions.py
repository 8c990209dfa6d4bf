"""What each service may do in NATS, derived from what it declares: its consumers and endpoints, and what it reads,
publishes and subscribes to besides; and the server's configuration with these users.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from handler_core.contract.control import CANCEL_SUBJECT
from handler_core.service import Service
from handler_core.streams import Consumer
from tools.k8s.scaling import SCALINGS

OPERATOR = "operator"


@dataclass(frozen=True)
class User:
    """A user of NATS: the subjects that he may publish and subscribe to, and no others."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def variable(self) -> str:
        """The server's environment variable that has the password."""
        return f"{self.name.upper()}_PASSWORD"

    @property
    def inbox(self) -> str:
        """The prefix of the subjects at which replies to this user arrive: NATS_INBOX_PREFIX."""
        return f"_INBOX_{self.name}"


PROVISIONER = User(
    "provisioner",
    publish=(
        "$JS.API.STREAM.INFO.*",
        "$JS.API.STREAM.CREATE.*",
        "$JS.API.STREAM.UPDATE.*",
        "$JS.API.CONSUMER.INFO.*.*",
        "$JS.API.CONSUMER.DURABLE.CREATE.*.*",
    ),
    subscribe=("_INBOX_provisioner.>",),
)
"""Makes streams and consumers, changes them, and deletes none."""


def services() -> list[Service[Any]]:
    """The services that are scaled, imported."""
    return [import_module(f"{scaling.service}.service").service for scaling in SCALINGS]


def user_of(service: Service[Any], callers: Sequence[str] = ()) -> User:
    """The user of a service.

    Args:
        callers: users whose replies go to an inbox prefix of their own, `_INBOX_{caller}`; those that have NATS's own
            prefix, or one below it (`_INBOX.{caller}`), need not be named.
    """
    publish = [subject for consumer in service.consumers for subject in _consuming(consumer)]
    publish += [f"$JS.API.STREAM.MSG.GET.{stream.name}" for stream in service.reads]
    publish += service.publishes
    subscribe = [f"_INBOX_{service.name}.>", CANCEL_SUBJECT.format(request_id="*"), *service.subscribes]
    if service.subjects:
        publish += ["_INBOX.>", *(f"_INBOX_{caller}.>" for caller in callers)]
        subscribe += [*_joined(service.subjects), *_listed(service.name)]
    return User(service.name, tuple(publish), tuple(subscribe))


def _consuming(consumer: Consumer) -> Iterable[str]:
    stream, name = consumer.stream, consumer.name
    yield f"$JS.API.CONSUMER.INFO.{stream}.{name}"
    yield f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"
    yield f"$JS.ACK.{stream}.{name}.>"
    yield f"dlq.{stream}.{name}"


def _listed(name: str) -> Iterable[str]:
    """Where a service is asked who it is, alone or with all others (ADR-32)."""
    yield "$SRV.*"
    yield f"$SRV.*.{name}"
    yield f"$SRV.*.{name}.*"


def _joined(subjects: Iterable[str]) -> list[str]:
    """The subjects; those that differ in nothing but their last token as one, with `*` for it."""
    last: dict[str, list[str]] = {}
    for subject in subjects:
        head, _, tail = subject.rpartition(".")
        last.setdefault(head, []).append(tail)
    return [f"{head}.{tails[0] if len(tails) == 1 else '*'}" for head, tails in last.items()]


def users(callers: Sequence[str] = ()) -> list[User]:
    """All users but the operator: the provisioner, and one for each service."""
    return [PROVISIONER, *(user_of(service, callers) for service in services())]


def authorization(users: Iterable[User]) -> str:
    """The part of a NATS server's configuration that has these users and the operator, who may do everything.

    Passwords are the server's environment variables.
    """
    blocks = [_block(user) for user in users]
    operator = f"    {{ user: {OPERATOR}, password: ${OPERATOR.upper()}_PASSWORD }}"
    return "\n".join(["authorization {", "  users: [", operator, *blocks, "  ]", "}", ""])


def _block(user: User) -> str:
    lines = [f"    {{ user: {user.name}, password: ${user.variable}, permissions: {{"]
    for verb, subjects in (("publish", user.publish), ("subscribe", user.subscribe)):
        lines += [f"        {verb}: [", *(f"          {json.dumps(subject)}" for subject in subjects), "        ]"]
    return "\n".join([*lines, "    } }"])


def nsc_commands(account: str, users: Iterable[User]) -> list[str]:
    """The `nsc` commands that make these users in an account of a server with JWT authentication."""
    made = ("nsc", "add", "user", "--account", account, "--name")
    return [
        shlex.join([*made, user.name, "--allow-pub", ",".join(user.publish), "--allow-sub", ",".join(user.subscribe)])
        for user in users
    ]
