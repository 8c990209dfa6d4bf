"""What every group of settings rests on: where values come from, and what becomes of a wrong one."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args
from urllib.parse import unquote

from pydantic import AliasChoices, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict


class FileSource(PydanticBaseSettingsSource):
    """Values from the files that `NAME_FILE` variables name, or of files in `SECRETS_DIR`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        folder = Path(os.environ.get("SECRETS_DIR") or "/run/secrets")
        # The key that the environment's source uses, so that a value from there replaces one from here.
        key = field_name if field.validation_alias is None else names(field_name, field)[0]
        for name in names(field_name, field):
            if named := os.environ.get(f"{name}_FILE"):
                return _content(field, Path(named), f"{name}_FILE"), key, False
            for candidate in (folder / name, folder / name.lower()):
                if os.path.isfile(candidate):  # noqa: PTH113 - false, not an error, in a folder that is closed to us
                    return _content(field, candidate, name), key, False
        return None, key, False

    def __call__(self) -> dict[str, Any]:
        found = (self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items())
        return {key: value for value, key, _ in found if value}  # an empty file sets nothing, as an empty variable


def _content(field: FieldInfo, path: Path, name: str) -> str:
    """What a mounted file sets: its text, or its own path where the setting is that of a file."""
    if Path in get_args(field.annotation):
        return str(path)
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        # Without the path: whoever mistakes one for the other has put the secret there.
        raise SettingsError(f"{name}: the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: the file is not UTF-8 text") from None


def existing(path: Path | None) -> Path | None:
    """The path, for a validator, if there is a file."""
    # The path is not repeated: it may be the secret itself, set where its file's name belongs.
    if path is not None and not os.path.isfile(path):  # noqa: PTH113 - false, not an error, for any text
        raise ValueError("names no file")
    return path


def pairs(text: str) -> dict[str, str]:
    """The `name=value` pairs of a list with commas between, values percent-decoded, as W3C Baggage writes them.

    Raises:
        ValueError: it is not such a list; the text is not repeated, for it may be a secret.
    """
    found: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise ValueError("is not a list of name=value pairs with commas between")
        found[unquote(name.strip())] = unquote(value.strip())
    return found


class SettingsError(Exception):
    """A setting is wrong; the message is one line that names it."""


class Settings(BaseSettings):
    """The base of all settings; a setting does not change once read."""

    # Built when it is first read: of the groups that a service puts together only the whole ever is.
    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True, defer_build=True
    )

    def __init__(self, **given: Any) -> None:
        # Not by way of BaseSettings: it has a command line, .env files and five formats more looked at, and loaded.
        settings = type(self)
        read = {**FileSource(settings)(), **EnvSettingsSource(settings)()}
        for name in given.keys() & settings.model_fields.keys():
            for key in (name, *names(name, settings.model_fields[name])):
                read.pop(key, None)
        super(BaseSettings, self).__init__(**{**read, **given})

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked(value) if isinstance(value, str) else value


def url_field(name: str, *aliases: str, default: str | None = None) -> Any:
    """A setting that is an http(s) base URL; it may carry a path prefix."""
    return Field(default=default, validation_alias=AliasChoices(name, *aliases), pattern=r"^https?://[^\s]+$")


S = TypeVar("S", bound=Settings)


def names(field_name: str, field: FieldInfo) -> list[str]:
    """The environment variables that set a field, the preferred one first."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [str(choice) for choice in alias.choices]
    return [field_name.upper()]


def load(settings: type[S], **overrides: Any) -> S:
    """Read the settings.

    Raises:
        SettingsError: one is wrong; its message names the variable, never the value of a secret.
    """
    try:
        return settings(**overrides)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        text = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            name = str(first["loc"][0])
            if name in settings.model_fields:
                name = names(name, settings.model_fields[name])[0]
            text = f"{name}: {text}"
        raise SettingsError(text) from None


def load_or_exit(settings: type[S], **overrides: Any) -> S:
    """Read the settings, or end the process with one line that names the wrong one (exit code 2)."""
    try:
        return load(settings, **overrides)
    except SettingsError as error:
        _exit(f"setting {error}")


def _exit(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(2)


def printable(settings: Settings) -> str:
    """The effective values as `NAME=value` lines, secrets masked."""
    lines = []
    for field_name, field in type(settings).model_fields.items():
        value = getattr(settings, field_name)
        if isinstance(value, str):
            value = masked(value)
        lines.append(f"{names(field_name, field)[0]}={'' if value is None else value}")
    return "\n".join(lines)


def masked(url: str) -> str:
    """A URL, or several with commas between, without the user information and the query that may stand in it."""
    parts = []
    for part in url.split(","):
        scheme, separator, rest = part.partition("://")
        if separator:
            user, at, place = rest.rpartition("@")
            base, mark, _ = place.partition("?")
            parts.append(f"{scheme}://{'…@' if user and at else ''}{base}{'?…' if mark else ''}")
        else:
            parts.append(part)
    return ",".join(parts)
