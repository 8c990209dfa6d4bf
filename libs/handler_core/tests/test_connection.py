"""Publishes at the limits of a real server, and every way to authenticate."""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats.errors
import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from handler_core.config import NatsSettings, SettingsError
from handler_core.connection import (
    MAX_SUBJECT,
    PENDING_LIMIT,
    RESERVE,
    BadSubject,
    Connection,
    MessageTooLarge,
    connect,
    header_block,
    parse_headers,
)
from handler_core.testing import NatsServer, connection, nats_server, until

# -- subjects and sizes


async def test_the_largest_message_passes_and_one_byte_more_is_refused_here(nc: Connection) -> None:
    heard = await nc.subscribe("large")
    assert nc.payload_room == (1 << 20) - RESERVE
    headers = header_block({"one": "1"})
    await nc.publish("large", b"x" * nc.payload_room)
    nc.send("large", b"x" * (nc.payload_room - len(headers)), headers=headers)
    for size, extra in ((nc.payload_room + 1, b""), (nc.payload_room - len(headers) + 1, headers)):
        with pytest.raises(MessageTooLarge, match=rf"{size + len(extra)} bytes to large exceeds {nc.payload_room}"):
            nc.send("large", b"x" * size, headers=extra)
    assert len((await heard.next_msg(timeout=10)).data) == nc.payload_room
    assert (await heard.next_msg(timeout=10)).headers == {"one": "1"}
    assert nc.is_connected


@pytest.mark.parametrize("letter", ["a", "é"])
async def test_the_longest_subject_passes_and_a_longer_one_is_refused_here(nc: Connection, letter: str) -> None:
    longest = letter * (MAX_SUBJECT // len(letter.encode()))
    heard = await nc.subscribe(longest)
    await nc.publish(longest, b"arrived")
    with pytest.raises(BadSubject):
        await nc.publish(longest + letter, b"")
    assert (await heard.next_msg(timeout=10)).data == b"arrived"
    assert nc.is_connected


BAD_SUBJECTS = ["", ".", "a.", ".a", "a..b", "*", ">", "a.*", "a.>", "a*", "a b", " a", "a ", "a\tb", "a\nb",
                "a\r\nPUB b 0", "a\x00b", "a\u00a0b", "a\u2028b", "a" * 513, "é" * 257]  # fmt: skip


@pytest.mark.parametrize("subject", BAD_SUBJECTS, ids=ascii)
async def test_a_bad_subject_is_refused_here_and_the_connection_survives(nc: Connection, subject: str) -> None:
    with pytest.raises(BadSubject, match="cannot publish to the subject") as caught:
        await nc.publish(subject, b"")
    assert len(caught.value.message) < 350
    await nc.flush(timeout=10)


async def test_subjects_of_other_scripts_pass(nc: Connection) -> None:
    heard = await nc.subscribe("grüße.日本")
    await nc.publish("grüße.日本", b"arrived")
    assert (await heard.next_msg(timeout=10)).subject == "grüße.日本"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nX-Evil: 1", "a\rX-Evil: 1", "a\r\n\r\nbody"])
async def test_a_header_value_cannot_start_another_header(nc: Connection, value: str) -> None:
    heard = await nc.subscribe("headers")
    await nc.publish("headers", b"data", headers={"Reason": value, "Last": "ü"})
    message = await heard.next_msg(timeout=10)
    assert message.data == b"data"
    assert message.headers is not None
    assert set(message.headers) == {"Reason", "Last"}
    assert message.headers["Last"] == "ü"


@given(st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True), st.text()))
def test_whatever_the_values_the_headers_stay_apart(headers: dict[str, str]) -> None:
    block = header_block(headers)
    assert block.endswith(b"\r\n\r\n")
    assert block.count(b"\r\n") == len(headers) + 2
    assert list(parse_headers(block)) == list(headers)


@given(st.binary())
def test_any_header_block_can_be_read(raw: bytes) -> None:
    parse_headers(raw)


# -- authentication


async def refusals(settings: NatsSettings) -> list[dict[str, Any]]:
    """What is logged until the server's refusal of these settings is known."""
    with capture_logs() as logged:
        attempt = asyncio.ensure_future(connect(settings, "test"))
        await until(lambda: logged or attempt.done(), "the attempt is over")
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
    return [dict(entry) for entry in logged]


async def accepted(settings: NatsSettings) -> bool:
    async with asyncio.timeout(20):
        nc = await connect(settings, "test")
    await nc.flush(timeout=10)
    await nc.close()
    return True


def settings(server: NatsServer, **given: Any) -> NatsSettings:
    return NatsSettings(**{"nats_url": server.url, **given})


async def test_user_and_password() -> None:
    with nats_server("--user", "bob", "--pass", "HUSH") as server:
        assert await accepted(settings(server, nats_user="bob", nats_password="HUSH"))
        assert await accepted(NatsSettings(nats_url=f"nats://bob:HUSH@127.0.0.1:{server.port}"))
        for wrong in (
            settings(server, nats_user="bob", nats_password="HUSH-HUSH"),
            NatsSettings(nats_url=f"nats://bob:HUSH-HUSH@127.0.0.1:{server.port}"),
            settings(server),
        ):
            (line,) = await refusals(wrong)
            assert line["event"] == "nats_unreachable"
            assert "Authorization Violation" in line["error"]
            assert "HUSH" not in str(line)


async def test_token() -> None:
    with nats_server("--auth", "HUSH") as server:
        assert await accepted(settings(server, nats_token="HUSH"))
        (line,) = await refusals(settings(server, nats_token="HUSH-HUSH"))
        assert "Authorization Violation" in line["error"]
        assert "HUSH" not in str(line)


def key_pair(prefix: int) -> "nkeys.KeyPair":
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))


def public(pair: "nkeys.KeyPair") -> str:
    return str(pair.public_key.decode())


async def test_nkey(tmp_path: Path) -> None:
    user, stranger = key_pair(nkeys.PREFIX_BYTE_USER), key_pair(nkeys.PREFIX_BYTE_USER)
    config = tmp_path / "nats.conf"
    config.write_text(f"authorization {{ users = [{{ nkey: {public(user)} }}] }}")
    with nats_server("-c", str(config)) as server:
        assert await accepted(settings(server, nats_nkey_seed=user.seed.decode()))
        (line,) = await refusals(settings(server, nats_nkey_seed=stranger.seed.decode()))
        assert "Authorization Violation" in line["error"]
        assert stranger.seed.decode() not in str(line)


def signed(kind: str, subject: "nkeys.KeyPair", issuer: "nkeys.KeyPair") -> str:
    """A JWT of NATS's operator mode."""
    limits = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1}
    claims = {
        "jti": "test",
        "iat": int(time.time()) - 60,
        "iss": public(issuer),
        "sub": public(subject),
        "name": kind,
        "nats": {"type": kind, "version": 2, **({"limits": limits} if kind == "account" else limits)},
    }
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
             for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)]  # fmt: skip
    body = b".".join(parts)
    return (body + b"." + base64.urlsafe_b64encode(issuer.sign(body)).rstrip(b"=")).decode()


def credentials_file(path: Path, jwt: str, user: "nkeys.KeyPair") -> Path:
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return path


async def test_credentials_of_operator_mode(tmp_path: Path) -> None:
    operator, user = key_pair(nkeys.PREFIX_BYTE_OPERATOR), key_pair(nkeys.PREFIX_BYTE_USER)
    account, system = key_pair(nkeys.PREFIX_BYTE_ACCOUNT), key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
    config = tmp_path / "nats.conf"
    config.write_text(
        f"operator: {signed('operator', operator, operator)}\nresolver: MEMORY\n"
        f"system_account: {public(system)}\nresolver_preload: {{\n"
        + "".join(f"{public(one)}: {signed('account', one, operator)}\n" for one in (account, system))
        + "}\n"
    )
    good = credentials_file(tmp_path / "good.creds", signed("user", user, account), user)
    forged = credentials_file(
        tmp_path / "forged.creds", signed("user", user, key_pair(nkeys.PREFIX_BYTE_ACCOUNT)), user
    )
    with nats_server("-c", str(config)) as server:
        assert await accepted(settings(server, nats_creds=good))
        (line,) = await refusals(settings(server, nats_creds=forged))
        assert "Authorization Violation" in line["error"]
        assert user.seed.decode() not in str(line)


# -- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.pem` with `server.pem` and `client.pem` signed by it, and `other.pem`, an authority of no one's."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("certificates")

    def make(name: str, *arguments: str) -> None:
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        command = [
            openssl,
            "req",
            "-x509",
            *key,
            "-out",
            f"{name}.pem",
            "-subj",
            f"/CN={name}",
            "-days",
            "2",
            *arguments,
        ]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)

    authority = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    leaf = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "authorityKeyIdentifier=keyid")  # fmt: skip
    make("ca", *authority)
    make("other", *authority)
    make("server", *leaf, "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "extendedKeyUsage=serverAuth")
    make("client", *leaf, "-addext", "extendedKeyUsage=clientAuth")
    return folder


@pytest.fixture(scope="module")
def tls_server(certificates: Path) -> Iterator[NatsServer]:
    """A server that shows a certificate and wants one."""
    files = {name: str(certificates / name) for name in ("server.pem", "server.key", "ca.pem")}
    with nats_server("--tlsverify", "--tlscert", files["server.pem"], "--tlskey", files["server.key"],
                     "--tlscacert", files["ca.pem"]) as server:  # fmt: skip
        yield server


def with_client(folder: Path) -> dict[str, Any]:
    return {"nats_tls_cert": folder / "client.pem", "nats_tls_key": folder / "client.key"}


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_client_certificates(tls_server: NatsServer, certificates: Path, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{tls_server.port}"
    assert await accepted(NatsSettings(nats_url=url, nats_tls_ca=certificates / "ca.pem", **with_client(certificates)))


async def test_a_server_of_an_unknown_authority_is_not_trusted(tls_server: NatsServer, certificates: Path) -> None:
    stranger = settings(tls_server, nats_tls_ca=certificates / "other.pem", **with_client(certificates))
    (line,) = await refusals(stranger)
    assert "certificate verify failed" in line["error"]


async def test_a_missing_client_certificate_is_refused(tls_server: NatsServer, certificates: Path) -> None:
    assert (await refusals(settings(tls_server, nats_tls_ca=certificates / "ca.pem")))[0]["event"] == "nats_unreachable"


async def test_a_certificate_file_that_is_none_is_an_error(tls_server: NatsServer) -> None:
    with pytest.raises(SettingsError, match="NATS_TLS_CA"):
        await connect(settings(tls_server, nats_tls_ca=Path(__file__)), "test")


# -- when the server is away


async def test_connecting_waits_for_the_server_and_says_so_once(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    with capture_logs() as logged:
        attempt = asyncio.ensure_future(connect(settings(server), "test"))
        await until(lambda: logged, "the first failure is logged")
        server.start()
        try:
            nc = await attempt
            await nc.flush(timeout=10)
            await nc.close()
        finally:
            server.kill()
    events = [entry["event"] for entry in logged]
    assert events.count("nats_unreachable") == 1
    assert logged[0]["url"] == server.url


async def test_publishes_wait_for_a_lost_connection_up_to_a_limit() -> None:
    with nats_server() as server:
        async with connection(server.url) as nc:
            server.kill()
            await until(lambda: not nc.is_connected, "the connection is lost")
            nc.send("while.away", b"kept")
            for _ in range(PENDING_LIMIT // 1_000_000):
                nc.send("while.away", b"x" * 1_000_000)
            with pytest.raises(nats.errors.OutboundBufferLimitError):
                nc.send("while.away", b"x" * 1_000_000)
            server.start()
            await until(lambda: nc.is_connected, "the connection is back")
            await nc.flush(timeout=10)
