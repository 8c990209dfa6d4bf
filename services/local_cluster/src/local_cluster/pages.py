"""Lists as the Kubernetes API gives them: of one moment, page by page."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from local_cluster.resources import Resource
from local_cluster.selection import selecting
from local_cluster.status import StatusError, bad_request, expired, from_the_future
from local_cluster.store import Key, Store, key_of

Query = Mapping[str, str]

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
_INCONSISTENT = -1
"""The version of a list that goes on with whatever there is."""


def whole(query: Query, name: str) -> int:
    """A whole number of a query; 0 if it is absent.

    Raises:
        StatusError: 400 if it is none.
    """
    text = query.get(name, "")
    if text and not (text.isascii() and text.isdecimal()):
        raise bad_request(f'{name}: Invalid value: "{text}": it is not a whole number')
    return int(text or 0)


def page(query: Query, store: Store, resource: Resource, namespace: str | None) -> dict[str, Any]:
    """What a list answers.

    Args:
        query: `limit`, `continue`, `resourceVersion`, `resourceVersionMatch`, `labelSelector`, `fieldSelector`.
        namespace: None: all.

    Raises:
        StatusError: 400; 410 for a page or version that is forgotten; 504 for a version that is to come.
    """
    label_selector, field_selector = query.get("labelSelector", ""), query.get("fieldSelector", "")
    selects = selecting(label_selector, field_selector)
    limit = whole(query, "limit")
    version, after = _moment(query, limit, store)
    try:
        objects = store.objects(resource, namespace, version=version)
    except StatusError as error:
        if error.code == 410 and after:
            raise expired(_TOO_OLD, _token(_INCONSISTENT, after)) from None
        raise
    found = [item for item in objects if selects(item) and (after is None or key_of(item) > after)]
    metadata: dict[str, Any] = {"continue": "", "resourceVersion": str(version)}
    if limit and len(found) > limit:
        metadata["continue"] = _token(version, key_of(found[limit - 1]))
        if not label_selector and not field_selector:
            metadata["remainingItemCount"] = len(found) - limit
        found = found[:limit]
    kind = resource.kind + "List"
    return {"apiVersion": resource.api_version, "items": found, "kind": kind, "metadata": metadata}


def _moment(query: Query, limit: int, store: Store) -> tuple[int, Key | None]:
    """The version that is listed, and the object after which it begins."""
    wanted, match = whole(query, "resourceVersion"), query.get("resourceVersionMatch", "")
    if token := query.get("continue"):
        if wanted:
            raise bad_request("specifying resource version is not allowed when using continue")
        version, after = _read_token(token)
        return (store.version if version == _INCONSISTENT else version), after
    if match not in ("", "Exact", "NotOlderThan") or (match and not query.get("resourceVersion")):
        raise bad_request(f'resourceVersionMatch: Invalid value: "{match}"')
    if wanted and (match == "Exact" or (limit and not match)):
        return wanted, None
    if wanted > store.version:
        raise from_the_future(wanted, store.version)
    return store.version, None


def _token(version: int, after: Key) -> str:
    return base64.urlsafe_b64encode(json.dumps({"rv": version, "start": after}).encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, Key]:
    try:
        read = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, name = read["start"]
        return int(read["rv"]), (str(namespace), str(name))
    except (ValueError, KeyError, TypeError):
        raise bad_request(f'continue key is not valid: "{token}"') from None
