"""The file that tells clients of Kubernetes where the cluster is."""

import base64
import json
from pathlib import Path

_MARK = "# Written by local_cluster; it will be written anew.\n"


def write(path: Path, url: str, *, token: str = "", ca: bytes = b"", namespace: str = "default") -> Path:
    """Write a kubeconfig whose one context, `local-cluster`, is current.

    Args:
        token: the user's bearer token, if one is needed.
        ca: the certificate authority, as PEM, if it is not one of the system's.

    Raises:
        FileExistsError: there is a file that was not written here; it is left alone.
    """
    if path.exists() and not path.read_text(errors="replace").startswith(_MARK):
        raise FileExistsError(f"{path} is there, and was not written by local_cluster")
    authority = f", certificate-authority-data: {base64.b64encode(ca).decode()}" if ca else ""
    user = f"{{token: {json.dumps(token)}}}" if token else "{}"
    text = (
        "apiVersion: v1\nkind: Config\ncurrent-context: local-cluster\n"
        f"clusters:\n- name: local-cluster\n  cluster: {{server: {json.dumps(url)}{authority}}}\n"
        f"users:\n- name: local-cluster\n  user: {user}\n"
        "contexts:\n- name: local-cluster\n"
        f"  context: {{cluster: local-cluster, user: local-cluster, namespace: {json.dumps(namespace)}}}\n"
    )
    path.touch(mode=0o600)
    path.write_text(_MARK + text)
    return path
