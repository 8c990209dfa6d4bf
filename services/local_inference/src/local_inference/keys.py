"""Where handlers find what the application holds."""

from aiohttp import web

from local_inference.engine import Engine
from local_inference.settings import Settings

ENGINE: web.AppKey[Engine] = web.AppKey("engine")
SETTINGS = web.AppKey("settings", Settings)
