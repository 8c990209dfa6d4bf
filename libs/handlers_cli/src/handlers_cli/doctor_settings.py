"""The settings as `handlers doctor` sees them: which are wrong, where each came from, which may be misspelt."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from handler_core.config import Settings, SettingsError, masked, names
from handlers_cli.doctor_findings import Finding, fail, ok, warn

S = TypeVar("S", bound=Settings)

CLOSE = 0.85
"""How alike a name has to be to a setting's to be taken for it misspelt."""


def read(group: type[S]) -> tuple[S | None, list[Finding]]:
    """A group of settings, None if one is wrong, and a finding for each that is wrong."""
    try:
        return group(), []
    except SettingsError as error:
        name, _, text = str(error).partition(": ")
        return None, [_wrong(name, text)]
    except ValidationError as error:
        return None, [_wrong(*_named(group, found)) for found in error.errors(include_input=False, include_url=False)]


def _wrong(name: str, text: str) -> Finding:
    return fail(f"setting {name}", text, f"set {name} right, see docs/settings.md")


def _named(group: type[Settings], error: Any) -> tuple[str, str]:
    text = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:  # of several settings together: the text names the first
        name, _, rest = text.partition(": ")
        return name, rest
    name = str(error["loc"][0])
    return (names(name, group.model_fields[name])[0] if name in group.model_fields else name), text


def described(groups: list[type[Settings]], loaded: dict[type[Settings], Settings]) -> list[Finding]:
    """One finding for each setting that is set, by whatever it is, and one for the rest."""
    findings = []
    defaults = 0
    for group in groups:
        settings = loaded.get(group)
        for field_name, field in group.model_fields.items():
            source = origin(field_name, field)
            if source is None:
                defaults += 1
            elif settings is not None:
                findings.append(
                    ok(f"setting {names(field_name, field)[0]}", f"{shown(getattr(settings, field_name))} ({source})")
                )
    return [*findings, ok("settings", f"{defaults} at their defaults"), *misspelt(groups)]


def shown(value: Any) -> str:
    """A setting's value as it may be shown: of a secret nothing, of a URL no password."""
    return "set" if isinstance(value, SecretStr) else masked(str(value))


def origin(field_name: str, field: FieldInfo) -> str | None:
    """What sets a setting, in the order that `handler_core.config` reads; None for its default."""
    environment = {name.upper() for name, value in os.environ.items() if value}
    folder = Path(os.environ.get("SECRETS_DIR") or "/run/secrets")
    for name in names(field_name, field):
        if name in environment:
            return f"environment, {name}"
    for name in names(field_name, field):
        if os.environ.get(f"{name}_FILE"):
            return f"file, {name}_FILE"
        for candidate in (folder / name, folder / name.lower()):
            if os.path.isfile(candidate):  # noqa: PTH113 - false, not an error, in a folder that is closed to us
                return f"file in SECRETS_DIR, {candidate.name}"
    return None


def misspelt(groups: list[type[Settings]]) -> list[Finding]:
    """A warning for each variable that is no setting but looks like one."""
    known = set(_known(groups))
    families = tuple({name.partition("_")[0] + "_" for name in known})
    findings = []
    for name in sorted(os.environ):
        if name.upper().startswith(families) and name.upper() not in known:
            meant = difflib.get_close_matches(name.upper(), sorted(known), 1, CLOSE)
            if meant:
                findings.append(warn(f"setting {name}", "is none, and ignored", f"did you mean {meant[0]}?"))
    return findings


def _known(groups: list[type[Settings]]) -> Iterator[str]:
    for group in groups:
        for field_name, field in group.model_fields.items():
            for name in names(field_name, field):
                yield name
                yield f"{name}_FILE"
