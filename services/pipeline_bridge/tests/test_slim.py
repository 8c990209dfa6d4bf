"""kubernetes-asyncio without its model files, each time in a process of its own: what is imported is global."""

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


def test_no_model_and_no_api_group_is_loaded_to_connect() -> None:
    told = "print(*sys.modules); print(*dir(sys.modules['kubernetes_asyncio.client.models']))"
    loaded, models = (line.split() for line in python(CONNECTED + told).splitlines())
    assert "kubernetes_asyncio.client.api_client" in loaded
    for left_out in ("kubernetes_asyncio.client.models.", "kubernetes_asyncio.client.api.", "urllib3", "dateutil"):
        assert not [name for name in loaded if name.startswith(left_out)]
    for left_out in ("kubernetes_asyncio.client.api", "kubernetes_asyncio.watch", "multiprocessing.pool"):
        assert left_out not in loaded
    assert not [name for name in models if name.startswith("V1")]


def test_what_is_left_out_can_be_imported_by_others_afterwards() -> None:
    code = """
from pipeline_bridge import slim
slim.load()
from multiprocessing.pool import ThreadPool
from dateutil.parser import parse
import urllib3
print(ThreadPool.__name__, parse("2020-02-02").year, urllib3.util.make_headers(basic_auth="a:b"))
"""
    assert python(code) == "ThreadPool 2020 {'authorization': 'Basic YTpi'}"


def test_the_library_that_was_imported_before_is_used_as_it_is() -> None:
    code = """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_asyncio
from kubernetes_asyncio import client
from pipeline_bridge import slim
library = slim.load()
print(library.ApiClient is client.ApiClient, library.Configuration is client.Configuration, hasattr(client, "V1Pod"))
"""
    assert python(code) == "True True True"


def test_loading_twice_gives_the_same() -> None:
    assert python("from pipeline_bridge import slim; print(slim.load() == slim.load())") == "True"


def test_without_the_library_the_error_says_what_to_install() -> None:
    code = """
import sys
import importlib.util
sys.path[:] = [part for part in sys.path if "site-packages" not in part]
spec = importlib.util.spec_from_file_location("slim", SOURCE)
slim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slim)
try:
    slim.load()
except ModuleNotFoundError as error:
    print(error.name, "install" in str(error))
"""
    from pipeline_bridge import slim

    assert python(f"SOURCE = {slim.__file__!r}\n{code}") == "kubernetes_asyncio True"
