"""kubernetes-asyncio's loaders without the rest of it, each in a process of its own: what is imported is global."""

import subprocess
import sys


def python(code: str) -> str:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


CONNECTED = """
import asyncio, json, pathlib, sys, tempfile
from pipeline_bridge.cluster import Cluster

async def main():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }, file)
        file.flush()
        cluster = await Cluster.connect(kubeconfig=file.name)
        await cluster.close()

asyncio.run(main())
"""


def test_nothing_but_the_loaders_is_loaded_to_connect() -> None:
    loaded = python(CONNECTED + "print(*sys.modules)").split()
    assert "kubernetes_asyncio.config.kube_config" in loaded
    library = {name.split(".")[1] for name in loaded if name.startswith("kubernetes_asyncio.")}
    assert library == {"client", "config"}
    left_out = ("kubernetes_asyncio.client.", "urllib3", "dateutil", "six", "multiprocessing")
    assert not [name for name in loaded if name.startswith(left_out)]


def test_the_library_that_was_imported_before_is_used_as_it_is() -> None:
    code = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_asyncio
from kubernetes_asyncio import client, config
from pipeline_bridge import slim
print(slim.loaders() is config, hasattr(client, "V1Pod"))
"""
    connected = "print('connected')"
    assert python(f"{code}\n{CONNECTED}\n{connected}") == "True True\nconnected"


def test_loading_twice_gives_the_same() -> None:
    assert python("from pipeline_bridge import slim; print(slim.loaders() is slim.loaders())") == "True"


def test_what_is_left_out_says_so() -> None:
    code = """
import asyncio, json, tempfile
from pipeline_bridge import slim

async def main():
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }, file)
        file.flush()
        await slim.loaders().new_client_from_config(file.name)

try:
    asyncio.run(main())
except RuntimeError as error:
    print(error)
"""
    assert python(code).startswith("left out of kubernetes-asyncio here")


def test_without_the_library_the_error_says_what_to_install() -> None:
    code = """
import sys
import importlib.util
sys.path[:] = [part for part in sys.path if "site-packages" not in part]
spec = importlib.util.spec_from_file_location("slim", SOURCE)
slim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slim)
try:
    slim.loaders()
except ModuleNotFoundError as error:
    print(error.name, "install" in str(error))
"""
    from pipeline_bridge import slim

    assert python(f"SOURCE = {slim.__file__!r}\n{code}") == "kubernetes_asyncio True"
