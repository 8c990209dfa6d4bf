"""What the server says of itself, and the switches for tests."""

from importlib.metadata import version

from aiohttp import web

from local_inference.accounting import FAULTS, STATS
from local_inference.faults import Faults
from local_inference.keys import ENGINE, SETTINGS, SYNTHESIZER, TRANSCRIBER
from local_inference.schemas import read


async def health(request: web.Request) -> web.Response:
    """200: the port opens only once the model is loaded."""
    return web.json_response({"status": "ok", "engine": request.app[SETTINGS].engine})


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`, with a word on what each model is."""
    engine = request.app[ENGINE]
    described = {
        engine.chat_model: engine.description,
        engine.embedding_model: f"Embeddings of {engine.dimensions} dimensions.",
    }
    for model in (request.app[TRANSCRIBER], request.app[SYNTHESIZER]):
        described[model.model] = model.description
    data = [
        {"id": name, "object": "model", "created": 0, "owned_by": "local_inference", "description": text}
        for name, text in described.items()
    ]
    return web.json_response({"object": "list", "data": data})


async def info(request: web.Request) -> web.Response:
    """TEI's `GET /info`."""
    engine = request.app[ENGINE]
    batch_size = request.app[SETTINGS].max_client_batch_size
    reply = {
        "model_id": engine.embedding_model,
        "model_sha": None,
        "model_dtype": "float32",
        "model_type": {"embedding": {"pooling": "mean"}},
        "max_concurrent_requests": 512,
        "max_input_length": engine.max_input_tokens,
        "max_batch_tokens": engine.max_input_tokens * batch_size,
        "max_batch_requests": None,
        "max_client_batch_size": batch_size,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": version("local-inference"),
        "sha": None,
        "docker_label": None,
    }
    return web.json_response(reply)


async def show_faults(request: web.Request) -> web.Response:
    """`GET /faults`."""
    return web.json_response(request.app[FAULTS].faults.model_dump())


async def put_faults(request: web.Request) -> web.Response:
    """`PUT /faults`: replaces all faults; a family or field that is not named has none."""
    request.app[FAULTS].set(await read(request, Faults))
    return await show_faults(request)


async def clear_faults(request: web.Request) -> web.Response:
    """`DELETE /faults`."""
    request.app[FAULTS].set(Faults())
    return await show_faults(request)


async def stats(request: web.Request) -> web.Response:
    """`GET /stats`: by family, requests seen, in flight, and aborted by the client."""
    return web.json_response(request.app[STATS].as_dict())
