"""Who gets the transcription endpoint when it is slow."""

import asyncio

import aiohttp
import pytest

from handler_core import upstreams
from handler_core.contract.stt import SessionConfig
from handler_core.telemetry import Metrics
from handler_core.testing import until
from handler_core.testing_speech import word
from stt_module.transcription import Speech, Transcriber

from .conftest import Endpoint, SettingsFor


@pytest.mark.parametrize(("concurrency", "partials"), [(8, 6), (4, 3), (2, 1), (1, 0)])
async def test_partial_transcripts_leave_room_for_final_ones(
    settings: SettingsFor, ears: Endpoint, concurrency: int, partials: int
) -> None:
    ears.open.clear()
    speech = Speech(word(1), SessionConfig())
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        transcriber = Transcriber(upstreams.stt(http, settings(), Metrics()), concurrency)
        shown = [tasks.create_task(transcriber.partial(speech)) for _ in range(2 * concurrency)]
        await until(lambda: ears.waiting == partials, "as many are under way as may be")
        await until(lambda: sum(map(asyncio.Task.done, shown)) == 2 * concurrency - partials, "the others do not wait")
        final = tasks.create_task(transcriber.final(speech, 0.0, lambda error: None))
        await until(lambda: ears.waiting == partials + 1, "the final one does not wait for them")
        ears.open.set()
    assert final.result().text == "w1"
    assert sorted(task.result() for task in shown) == [""] * (2 * concurrency - partials) + ["w1"] * partials
