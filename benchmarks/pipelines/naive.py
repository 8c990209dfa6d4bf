"""A pipeline bridge as it is usually written: the whole Kubernetes client, and a watch for each run.

It works (create, watch, publish each phase, ack at the end), has no memory of what it began, and writes its statuses to
plain NATS; the connection pool is as large as its runs need.
"""

import asyncio
import contextlib
import os
import signal
from typing import Any

import msgpack
import nats
import uvloop
from kubernetes_asyncio import client, config, watch
from nats.aio.client import Client
from nats.aio.msg import Msg

PLACE = {"group": "argoproj.io", "version": "v1alpha1", "namespace": "argo", "plural": "workflows"}
RUNS = int(os.environ["MAX_IN_FLIGHT"])
DONE = ("Succeeded", "Failed", "Error")


async def follow(connection: Client, api: Any, message: Msg) -> None:
    trigger = msgpack.unpackb(message.data)
    request_id = trigger["request_id"]
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": f"run-{request_id}"},
        "spec": {"workflowTemplateRef": {"name": "batch-inference"}},
    }
    await api.create_namespaced_custom_object(**PLACE, body=manifest)

    async def tell(status: str) -> None:
        body = {"request_id": request_id, "status": status, "run_id": f"run-{request_id}"}
        await connection.publish(f"ai.pipeline.status.{request_id}", msgpack.packb(body))

    await tell("submitted")
    seen = ""
    changes = watch.Watch()
    selector = f"metadata.name=run-{request_id}"
    async with changes.stream(api.list_namespaced_custom_object, **PLACE, field_selector=selector) as events:
        async for event in events:
            phase = event["raw_object"].get("status", {}).get("phase", "")
            if phase and phase != seen:
                seen = phase
                await tell(phase.lower())
            if phase in DONE:
                break
    await message.ack()


async def keep_alive(messages: dict[int, Msg]) -> None:
    while True:
        await asyncio.sleep(3)
        for message in list(messages.values()):
            await message.in_progress()


async def main() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await config.load_kube_config(config_file=os.environ["KUBECONFIG"])
    settings = client.Configuration.get_default_copy()
    settings.connection_pool_maxsize = RUNS
    connection = await nats.connect(os.environ["NATS_URL"])
    subscription = await connection.jetstream().pull_subscribe_bind("pipeline_bridge", "AI_PIPELINE")
    held: dict[int, Msg] = {}
    async with client.ApiClient(settings) as api_client, asyncio.TaskGroup() as tasks:
        api = client.CustomObjectsApi(api_client)

        async def handle(message: Msg) -> None:
            held[id(message)] = message
            try:
                await follow(connection, api, message)
            finally:
                del held[id(message)]

        async def pull() -> None:
            while True:
                with contextlib.suppress(TimeoutError):
                    for message in await subscription.fetch(100, timeout=1):
                        tasks.create_task(handle(message))

        ends = [tasks.create_task(pull()), tasks.create_task(keep_alive(held))]
        await stop.wait()
        for task in ends:
            task.cancel()


if __name__ == "__main__":
    uvloop.run(main())
