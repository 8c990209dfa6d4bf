"""The image that all others stand on: Python, TLS, time zones, and what scanners read."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from handler_core.testing import free_port, until
from handler_core.testing_images import BASE, PYTHON, Engine

CERTIFICATES = """
import glob, ssl
context = ssl.create_default_context()
context.load_verify_locations('/etc/ssl/certs/ca-certificates.crt')
assert len(context.get_ca_certs()) > 100, context.get_ca_certs()
assert len(glob.glob(ssl.get_default_verify_paths().capath + '/*.[0-9]')) > 100
"""
ZONES = """
import datetime, zoneinfo
summer, winter = datetime.datetime(2026, 7, 1), datetime.datetime(2026, 1, 1)
for name in ('Europe/Berlin', 'America/New_York', 'Asia/Kolkata'):
    zone = zoneinfo.ZoneInfo(name)
    print(*(zone.utcoffset(time) // datetime.timedelta(minutes=1) for time in (summer, winter)))
"""
PACKAGES = """
import email, pathlib
for path in sorted(pathlib.Path('/var/lib/dpkg/status.d').iterdir()):
    if path.suffix != '.md5sums':
        state = email.message_from_string(path.read_text())
        print(state['Package'], state['Version'], state['Status'] or 'install ok installed', sep='|')
"""
DEBIAN = """
import platform
print(open('/etc/debian_version').read().strip())
print(platform.freedesktop_os_release()['ID'])
"""
FETCH = """
import ssl, sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())
except urllib.error.URLError as error:
    print(type(error.reason).__name__)
"""
ALIVE = """
import os, http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(os.environ['ANSWER']) if self.path == '/well' else 404)
        self.end_headers()
http.server.HTTPServer(('127.0.0.1', int(os.environ['HEALTH_PORT'])), Handler).serve_forever()
"""


@pytest.fixture
def image(image_of: Callable[[str], str]) -> str:
    return image_of(BASE)


async def test_it_runs_python_with_nothing_that_builds_or_installs(engine: Engine, image: str) -> None:
    code = (
        "import sys; from importlib.util import find_spec\n"
        "print(sys.version_info[:2], [name for name in ('pip', 'ensurepip', 'venv', 'idlelib') if find_spec(name)])"
    )
    assert await engine.run(image, code) == (0, "(3, 15) []\n", "")


async def test_it_trusts_public_certificate_authorities(engine: Engine, image: str) -> None:
    assert await engine.run(image, CERTIFICATES) == (0, "", "")


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[str]:
    """A server with a certificate of an authority of its own, whose certificate is in `tmp_path`."""
    authority = trustme.CA()
    tmp_path.chmod(0o755)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    yield f"https://127.0.0.1:{port}/"
    await runner.cleanup()


@pytest.mark.parametrize(("known", "said"), [(True, "hello\n"), (False, "SSLCertVerificationError\n")])
async def test_it_speaks_tls_with_those_whose_authority_it_knows(
    engine: Engine, image: str, guarded: str, tmp_path: Path, known: bool, said: str
) -> None:
    environment = {"SSL_CERT_FILE": "/authority/ca.crt"} if known else {}
    code = FETCH.replace("sys.argv[1]", repr(guarded))
    options = ("--volume", f"{tmp_path}:/authority:ro,z")
    assert await engine.run(image, code, environment, options=options) == (0, said, "")


async def test_it_knows_the_time_of_the_world(engine: Engine, image: str) -> None:
    assert await engine.run(image, ZONES) == (0, "120 60\n-240 -300\n330 330\n", "")


async def test_scanners_find_its_packages_with_their_versions(engine: Engine, image: str) -> None:
    status, printed, problems = await engine.run(image, PACKAGES)
    assert (status, problems) == (0, "")
    packages = {name: version for name, version, state in (line.split("|") for line in printed.splitlines())}
    assert all(packages.values())
    assert {"base-files", "libc6", "ca-certificates", "tzdata", "zlib1g"} <= packages.keys()
    assert [name for name in packages if name.startswith("libssl3")]
    assert [name for name in packages if name.startswith(("python3.15", "libpython3.15"))]


async def test_scanners_are_told_that_it_is_debian(engine: Engine, image: str) -> None:
    status, printed, problems = await engine.run(image, DEBIAN)
    assert (status, problems) == (0, "")
    version, system = printed.splitlines()
    assert version
    assert system == "debian"


@pytest.mark.parametrize(("answer", "healthy"), [("200", 0), ("503", 1), ("none", 1)])
async def test_the_health_check_of_all_services_is_in_it_and_tells_healthy_from_unhealthy(
    engine: Engine, image: str, image_of: Callable[[str], str], answer: str, healthy: int
) -> None:
    port, check = free_port(), engine.healthcheck(image_of("tts_module"))
    environment = {"HEALTH_PORT": str(port), "HEALTH_PATH": "/well", "ANSWER": answer}
    code = ALIVE if answer != "none" else "import time; time.sleep(60)"
    with engine.running(image, environment, "-c", code, options=PYTHON) as container:
        await until(lambda: container.pid, "it runs", timeout=30)
        if answer != "none":
            await until(lambda: _listens(port), "its server listens", timeout=30)
        status, said = await container.execute(*check)
    assert status == healthy, said


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
