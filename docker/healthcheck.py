"""Ends with 0 when the service in this container answers that it is well: what HEALTHCHECK runs, a few times a minute.

It asks whether the service lives, and not whether it is ready, which it is not while NATS is away: what restarts the
unhealthy would restart every service then, to no avail. Where readiness is wanted, `HEALTH_PATH` is set to /readyz.

Python's own `socket` would load twenty modules for it; what it is built on is enough.
"""

import _socket
import posix
import sys

port = int(posix.environ.get(b"HEALTH_PORT") or b"8080")
path = posix.environ.get(b"HEALTH_PATH") or b"/livez"
answer = b""
# A service that listens on `::` listens there alone.
for family, host in ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1")):
    try:
        connection = _socket.socket(family)
        connection.settimeout(2)
        connection.connect((host, port))
        connection.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path)
        answer = connection.recv(64)
        break
    except OSError:
        continue
sys.exit(answer[9:12] != b"200")
