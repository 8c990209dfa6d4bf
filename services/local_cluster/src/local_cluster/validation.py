"""What the Kubernetes API demands of an object before it is stored."""

import re
from typing import Any

from local_cluster.history import Object
from local_cluster.status import Named, StatusError, bad_request, invalid

_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_QUALIFIED = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_ANNOTATIONS_LIMIT = 256 * 1024
_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character"
)
_LABEL_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character"
)
_KEY_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character"
)


def check_shape(api_version: str, kind: str, namespace: str, name: str, body: Object) -> None:
    """Refuse a body that is not of the resource, or not of the place, that its path names.

    Args:
        name: as the path names it; "" where it does not.

    Raises:
        StatusError: 400.
    """
    if not body.get("kind"):
        raise bad_request("Object 'Kind' is missing in the body of the request")
    if not body.get("apiVersion"):
        raise bad_request("Object 'apiVersion' is missing in the body of the request")
    if (found := body["apiVersion"]) != api_version:
        raise bad_request(
            f"the API version in the data ({found}) does not match the expected API version ({api_version})"
        )
    if body["kind"] != kind:
        raise bad_request(f"{body['kind']} in version {api_version!r} cannot be handled as a {kind}: wrong kind")
    metadata = body.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise bad_request("the object provided is unrecognized: metadata is not an object")
    for key in ("name", "generateName", "namespace", "uid", "resourceVersion"):
        if not isinstance(metadata.get(key), str | None):
            raise bad_request(f"json: cannot unmarshal ObjectMeta.metadata.{key}: it must be a string")
    for key in ("labels", "annotations"):
        _check_strings(key, metadata.get(key))
    if metadata.get("namespace") not in (None, "", namespace):
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    if name and metadata.get("name") != name:
        raise bad_request(
            f"the name of the object ({metadata.get('name', '')}) does not match the name on the URL ({name})"
        )


def _check_strings(key: str, values: Any) -> None:
    if values is None:
        return
    if not isinstance(values, dict) or any(not isinstance(value, str) for value in values.values()):
        raise bad_request(f"json: cannot unmarshal ObjectMeta.metadata.{key}: it must map strings to strings")


def check_metadata(resource: Named, body: Object) -> None:
    """Refuse a name, labels or annotations that are not allowed.

    Raises:
        StatusError: 422.
    """
    metadata = body["metadata"]
    name = metadata.get("name", "")
    if not name:
        problem = "Required value: name or generateName is required"
        raise invalid(resource, "", "metadata.name", problem, "FieldValueRequired")
    if len(name) > 253:
        raise _wrong(resource, name, "metadata.name", name, "must be no more than 253 characters")
    if not _SUBDOMAIN.fullmatch(name):
        raise _wrong(resource, name, "metadata.name", name, _SUBDOMAIN_RULE)
    for key, value in (metadata.get("labels") or {}).items():
        if (problem := _key_problem(key)) or (problem := _value_problem(value)):
            raise _wrong(resource, name, "metadata.labels", value if not _key_problem(key) else key, problem)
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        if problem := _key_problem(key):
            raise _wrong(resource, name, "metadata.annotations", key, problem)
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _ANNOTATIONS_LIMIT:
        problem = f"Too long: may not be more than {_ANNOTATIONS_LIMIT} bytes"
        raise invalid(resource, name, "metadata.annotations", problem, "FieldValueTooLong")


def _wrong(resource: Named, name: str, field: str, value: str, rule: str) -> StatusError:
    return invalid(resource, name, field, f'Invalid value: "{value}": {rule}')


def _key_problem(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix)):
        return f"prefix part {_SUBDOMAIN_RULE}"
    if len(name) > 63:
        return "name part must be no more than 63 characters"
    return "" if _QUALIFIED.fullmatch(name) else _KEY_RULE


def _value_problem(value: str) -> str:
    if len(value) > 63:
        return "must be no more than 63 characters"
    return "" if not value or _QUALIFIED.fullmatch(value) else _LABEL_RULE
