"""Where handlers find what the application holds."""

import asyncio

from aiohttp import web

from local_inference.engine import Engine
from local_inference.settings import Settings
from local_inference.synthesizer import Synthesizer
from local_inference.transcriber import Transcriber

ENGINE: web.AppKey[Engine] = web.AppKey("engine")
SETTINGS = web.AppKey("settings", Settings)
TRANSCRIBER: web.AppKey[Transcriber] = web.AppKey("transcriber")
SYNTHESIZER: web.AppKey[Synthesizer] = web.AppKey("synthesizer")
ONE_AT_A_TIME = web.AppKey("one_at_a_time", asyncio.Lock)
"""Held while Coqui's server speaks."""
