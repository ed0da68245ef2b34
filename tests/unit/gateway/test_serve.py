"""The gateway's process: where it listens, who may come, and how signals end it. Real sockets, TLS and processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee.base.errors import ConfigError, RbeeError, UsageError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.gateway.access.keys import ApiKey, add_key, hash_of, new_key, revoke_key
from rbee.gateway.access.listen import parse_address
from rbee.gateway.serve import ServeOptions, Serving, serve
from rbee.inventory import LOCAL, Inventory, Node
from rbee.registry import Registry
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.audit import AUDIT_LOG
from tests.doubles.certificate import make_certificate
from tests.doubles.constructors import Constructors
from tests.patience import PATIENCE_S
from tests.unit.gateway.samples import nodes

ROOT = Path(__file__).parents[3]
LOOPBACK = (parse_address("127.0.0.1:0"),)


@pytest.fixture
def home() -> Iterator[Path]:
    """With a short path, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="rbee-", dir="/tmp") as made:
        yield Path(made)


def add(home: Path, name: str = "alice") -> dict[str, str]:
    """A key, as a header."""
    secret = new_key()
    add_key(home / "keys.toml", ApiKey(name, hash_of(secret)))
    return {"Authorization": f"Bearer {secret}"}


def context_of(home: Path, said: list[Event]) -> Context:
    settings = Settings(home)
    registry = settings.registry_path
    inventory = Inventory({LOCAL: Node(LOCAL)})
    return Context(settings, inventory, lambda: Registry.open(registry), "0" * 16, emit=said.append)


class Running:
    """A gateway in this process. urls: where it serves. said: its notices."""

    def __init__(self, urls: tuple[str, ...], parts: Constructors, said: list[Event]) -> None:
        self.urls = urls
        self.parts = parts
        self.said = said

    @asynccontextmanager
    async def client(self, at: int = 0, verify: Any = False) -> AsyncIterator[httpx.AsyncClient]:
        url = self.urls[at]
        transport = httpx.AsyncHTTPTransport(uds=url if url.startswith("/") else None, verify=verify)
        base = "http://localhost" if url.startswith("/") else url
        async with httpx.AsyncClient(transport=transport, base_url=base, timeout=PATIENCE_S) as client:
            yield client


@asynccontextmanager
async def gateway(home: Path, parts: Constructors | None = None, **options: Any) -> AsyncIterator[Running]:
    said: list[Event] = []
    parts = parts or Constructors(nodes())
    served: asyncio.Future[Serving] = asyncio.get_running_loop().create_future()
    chosen = ServeOptions(**{"keys": home / "keys.toml", "listen": LOOPBACK, **options})
    task = asyncio.create_task(serve(context_of(home, said), chosen, parts, tell=served.set_result))
    waited: list[asyncio.Future[Any]] = [task, served]
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if not served.done():
        task.result()
    assert served.result().nodes == 2
    try:
        yield Running(served.result().urls, parts, said)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await task
    link = [] if parts.link_error else ["link", "-link"]
    assert parts.log == ["fleet", "dispatcher", *link, "-dispatcher", "-fleet"]


async def test_it_serves_tcp_and_a_socket_and_ends_with_a_signal(home: Path) -> None:
    async with gateway(home, socket=home / "s") as running:
        assert running.urls[0].startswith("http://127.0.0.1:")
        assert running.urls[1] == str(home / "s")
        for at, address in ((0, "127.0.0.1"), (1, "")):
            async with running.client(at) as client:
                answer = await client.get("/v1/models")
                assert answer.json() == {"key": "", "scheme": "http", "address": address}
                page = (await client.get("/metrics")).text
                assert 'rbee_gateway_node_up{node="gpu1"} 1.0' in page
    assert not (home / "s").exists()
    audited = [json.loads(line)["action"] for line in (home / "log" / AUDIT_LOG).read_text().splitlines()]
    assert audited == ["gateway.start", "gateway.stop"]
    logged = [json.loads(line) for line in (home / "log" / "gateway.log").read_text().splitlines()]
    assert [line["path"] for line in logged if line["kind"] == "request"] == ["/v1/models"] * 2
    assert running.said == []


async def test_a_key_is_needed_once_there_is_one_on_both(home: Path) -> None:
    async with gateway(home, socket=home / "s") as running, running.client(0) as tcp, running.client(1) as unix:
        for client in (tcp, unix):
            assert (await client.get("/v1/models")).status_code == 200
        key = add(home)
        for client in (tcp, unix):
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.get("/v1/models", headers=key)).json()["key"] == "alice"
            assert (await client.get("/health")).status_code == 200
        revoke_key(home / "keys.toml", "alice")
        assert (await tcp.get("/v1/models", headers=key)).status_code == 401


async def test_a_damaged_file_of_keys_is_said_at_the_start_and_to_callers(home: Path) -> None:
    keys = home / "keys.toml"
    async with gateway(home) as running, running.client() as client:
        key = add(home)
        whole = keys.read_bytes()
        keys.write_bytes(whole + b"[keys.b")
        for headers in (key, {}):
            answer = await client.get("/v1/models", headers=headers)
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
            assert str(keys) in answer.text
        keys.write_bytes(whole)
        assert (await client.get("/v1/models", headers=key)).status_code == 200
    logged = [json.loads(line) for line in (home / "log" / "gateway.log").read_text().splitlines()]
    assert [line["status"] for line in logged if line["kind"] == "request"] == [200]
    keys.write_bytes(whole + b"[keys.b")
    with pytest.raises(ConfigError, match=str(keys)):
        async with gateway(home):
            pass


async def test_a_forged_address_is_not_believed(home: Path) -> None:
    async with gateway(home) as running, running.client() as client:
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        answer = (await client.get("/v1/models", headers=headers)).json()
        assert (answer["address"], answer["scheme"]) == ("127.0.0.1", "http")


async def test_pages_of_other_sites_may_not_ask_where_no_key_is_needed(home: Path) -> None:
    async with gateway(home, origins=("https://chat.example",)) as running, running.client() as client:
        for headers, expected in (
            ({"Host": "rebound.example"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "https://chat.example"}, 200),
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == expected


async def test_tls_and_a_certificate_that_changes(home: Path) -> None:
    certificate, key = make_certificate(home, "one")
    options: dict[str, Any] = {"certificate": certificate, "key": key, "socket": home / "s"}
    async with gateway(home, **options) as running:
        trusted = ssl.create_default_context(cafile=str(certificate))
        async with running.client(0, trusted) as client:
            assert (await client.get("/v1/models")).json()["scheme"] == "https"
        async with running.client(1) as unix:
            assert (await unix.get("/v1/models")).json()["scheme"] == "http"
        plain = running.urls[0].replace("https", "http")
        with pytest.raises(httpx.TransportError):
            await asyncio.to_thread(httpx.get, plain)
        other, other_key = make_certificate(home, "other")
        other.replace(certificate)
        other_key.replace(key)
        os.kill(os.getpid(), signal.SIGHUP)
        while not running.parts.few_nodes.reloads:
            await asyncio.sleep(0.001)
        async with running.client(0, trusted) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("/v1/models")
        certificate.write_text("no certificate")
        os.kill(os.getpid(), signal.SIGHUP)
        while running.parts.few_nodes.reloads < 2:
            await asyncio.sleep(0.001)
        async with running.client(0) as client:
            assert (await client.get("/health")).status_code == 200


async def test_heads_that_are_too_large_are_refused(home: Path) -> None:
    async with gateway(home) as running, running.client() as client:
        host, _, port = running.urls[0].removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /health HTTP/1.1\r\nX-Bomb: " + b"x" * 70_000)
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        assert (await client.get("/health")).status_code == 200


async def test_other_machines_need_keys_and_are_warned_without_tls(home: Path) -> None:
    everywhere = (parse_address("0.0.0.0:0"),)
    with pytest.raises(UsageError, match=r"0\.0\.0\.0:0 can be reached from other machines") as error:
        async with gateway(home, listen=everywhere):
            pass
    assert "`rbee keys add NAME` makes one" in error.value.hint
    add(home)
    async with gateway(home, listen=everywhere) as running:
        (notice,) = running.said
        assert isinstance(notice, Notice)
        assert "without TLS" in notice.text
    certificate, key = make_certificate(home, "one")
    async with gateway(home, listen=everywhere, certificate=certificate, key=key) as running:
        assert running.said == []


async def test_without_a_link_it_serves_all_the_same(home: Path) -> None:
    parts = Constructors(nodes())
    parts.link_error = RbeeError(ErrorCode.CONFIG_INVALID, "no socket can be made")
    async with gateway(home, parts) as running, running.client() as client:
        assert (await client.get("/health")).status_code == 200
    assert running.said == [Notice("other commands of this rbee connect by themselves: no socket can be made")]


async def test_one_gateway_for_each_home(home: Path) -> None:
    async with gateway(home):
        with pytest.raises(RbeeError, match="another `rbee serve` runs with") as error:
            await serve(context_of(home, []), ServeOptions(home / "keys.toml"), Constructors(), tell=lambda _: None)
        assert error.value.code is ErrorCode.IN_USE


# --- signals, in a process of its own ----------------------------------------------------------------------------


class Process:
    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def next_line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)

    @contextmanager
    def slow_stream(self) -> Iterator[Iterator[str]]:
        """The lines of a stream that has begun."""
        with httpx.stream("GET", f"{self.url}/slow", timeout=PATIENCE_S) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "data: begun"
            yield lines


@pytest.fixture
def process(home: Path) -> Iterator[Process]:
    words = [sys.executable, "-m", "tests.doubles.gateway_process", str(home), str(home / "s")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'remote'}"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as running:
        assert running.stdout
        served = running.stdout.readline()
        assert served.startswith("Serving(urls=('http://127.0.0.1:")
        try:
            yield Process(running, served.split("'")[1])
        finally:
            running.kill()


def test_a_signal_lets_running_requests_finish_and_takes_no_others(process: Process) -> None:
    with process.slow_stream() as lines:
        process.signal(signal.SIGTERM)
        assert "1 request has 30 s" in process.next_line()
        assert httpx.get(f"{process.url}/slow").status_code == 503
        assert httpx.get(f"{process.url}/health").status_code == 503
        httpx.post(f"{process.url}/go")
        assert [line for line in lines if line] == ["data: done"]
    assert process.next_line() == "ended 0"
    assert process.ended() == 0


def test_without_requests_a_signal_ends_it(process: Process, home: Path) -> None:
    process.signal(signal.SIGHUP)
    process.signal(signal.SIGINT)
    assert process.next_line() == "ended 1"
    assert process.ended() == 0
    assert not (home / "s").exists()


def test_a_second_signal_ends_it_at_once(process: Process) -> None:
    with process.slow_stream() as lines:
        process.signal(signal.SIGINT)
        process.next_line()
        process.signal(signal.SIGINT)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    assert process.next_line() == "REQUEST_CANCELED 0"
    assert process.ended() == 130


def test_killed_it_leaves_nothing_that_keeps_the_next_from_starting(process: Process, home: Path) -> None:
    process.process.kill()
    process.ended()
    assert (home / "s").exists()

    async def again() -> None:
        async with gateway(home, socket=home / "s") as running, running.client(1) as client:
            assert (await client.get("/health")).status_code == 200

    asyncio.run(again())
