"""CUDA's libraries by a node's own way: what it is told is pure; the rest runs for real, this machine is the node."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rbee.base.events import Event, Notice, Progress
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node.session import NodeSession
from rbee.setup import own_way
from rbee.setup.base import node_scripts, pip, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.base.requirements import Locked
from rbee.setup.base.requirements_file import Link, links_to
from rbee.setup.own_way import choose, is_open
from rbee.transport.local import LocalConnection
from tests.doubles.session import session_over
from tests.tls import server_context
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_wheel
from tests.unit.setup.wheel_server import WheelServer, body, serving, status

TARGET = Target("Linux", "x86_64", "glibc", (2, 27), (3, 12))
NAME = "nvidia_cublas-13.0-py3-none-manylinux_2_27_x86_64.whl"
DIGEST = "0" * 64
LINE = Locked("nvidia-cublas", "13.0", "", (f"sha256:{DIGEST}",))
NOBODY = "https://files.example.org"


@pytest.mark.parametrize(
    ("url", "is_told"),
    [
        (f"https://files.pythonhosted.org/packages/28/d4/{'3' * 60}/{NAME}", True),
        (f"https://mirror.example.org:8443/pypi/packages/nvidia-cublas-cu12/{NAME}", True),
        (f"https://mirror.example.org/artifactory/api/pypi/pypi-remote/{'a1' * 32}/{NAME}", True),
        (f"http://mirror.example.org/{NAME}", False),
        (f"file:///srv/{NAME}", False),
        (f"https://user:secret@mirror.example.org/{NAME}", False),
        (f"https://token@mirror.example.org/{NAME}", False),
        (f"https://mirror.example.org/{NAME}?X-Amz-Signature=secret", False),
        (f"https://mirror.example.org/{NAME}#secret", False),
        (f"https://dl.example.org/aB3dE6gH9jK2mN5p/org/repo/python/{NAME}", False),
        (f"https://dl.example.org/basic/aB3dE6gH9jK2mN5pQ8sT/{NAME}", False),
        (f"https://mirror.example.org/a b/{NAME}", False),
        (f"https://mirror.example.org/\n{NAME}", False),
        ("https://", False),
        ("", False),
    ],
)
def test_an_address_that_may_be_a_secret_is_told_to_nobody(url: str, is_told: bool) -> None:
    assert is_open(url, "nvidia-cublas-cu12") is is_told


def test_the_wheel_of_the_lock_for_the_platform_is_chosen() -> None:
    wanted = Link(f"{NOBODY}/{NAME}", DIGEST)
    others = [
        Link(f"{NOBODY}/{NAME}", "1" * 64),
        Link(f"{NOBODY}/{NAME.replace('x86_64', 'aarch64')}", DIGEST),
        Link(f"{NOBODY}/{NAME.replace('nvidia_', 'other_')}", DIGEST),
        Link(f"{NOBODY}/..%2f{NAME}", DIGEST),
        Link(f"https://user:secret@files.example.org/{NAME}", DIGEST),
    ]
    assert choose(others, LINE, TARGET) is None
    found = choose([*others, wanted], LINE, TARGET)
    assert found == own_way.There(NAME, DIGEST, wanted.url)


FIND_LOCKED = pip.find_locked


async def find_here(line: Locked, _: Path) -> list[Link]:
    """As `find_locked`, without processes of its own."""
    return await asyncio.to_thread(links_to, line.name, line.hashes)


@dataclass
class Bed:
    """An index by TLS that has CUDA's libraries in tiny, and this machine as a node, whose folder is `home`."""

    server: WheelServer
    index: PackageIndex
    home: Path
    cache: Path
    wheels: list[Path]
    trusted: Path
    events: list[Event]
    session: NodeSession

    @property
    def lines(self) -> list[Locked]:
        return requirements.read("cuda13.txt")

    def offer(self, wheel: Path, data: bytes | None = None) -> None:
        project = wheel.name.partition("-")[0].replace("_", "-")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        self.server.page(f'<a href="/files/{wheel.name}#sha256={digest}">{wheel.name}</a>', f"simple/{project}/")
        self.server.paths[f"/files/{wheel.name}"] = body(wheel.read_bytes() if data is None else data)

    async def fetch(self, present: frozenset[str] = frozenset()) -> list[str]:
        place = node_scripts.Place(str(self.home), "", sys.executable)
        found = await own_way.fetch(self.session, place, self.lines, TARGET, self.cache, present)
        return [wheel.name for wheel in found]

    def there(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.home.rglob("*") if path.is_file()}

    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]


@pytest.fixture
async def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    context, trusted = server_context(tmp_path)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    index = PackageIndex(tmp_path, monkeypatch)
    home, cache = tmp_path / "a home", tmp_path / "cache"
    home.mkdir()
    cache.mkdir()
    monkeypatch.setattr(pip, "find_locked", find_here)
    names = ("nvidia_cublas", "nvidia_cuda_runtime")
    tag = "py3-none-manylinux_2_27_x86_64"
    wheels = [write_wheel(tmp_path / "wheels", name, {"x": name.encode()}, tag=tag) for name in names]
    index.lock("cuda13.txt", *wheels)
    events: list[Event] = []
    with serving(context) as server:
        for name, value in (("PIP_INDEX_URL", f"{server.url}/simple"), ("PIP_CERT", str(trusted))):
            monkeypatch.setenv(name, value)
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        async with LocalConnection(keeper_id="0" * 16) as connection:
            settings, inventory = Settings(home=tmp_path / "rbee"), Inventory({})
            keeper = Context(settings, inventory, None, "0" * 16, emit=events.append)  # type: ignore[arg-type]
            session = session_over(connection, Node("gpu1"), keeper)
            bed = Bed(server, index, home, cache, wheels, trusted, events, session)
            for wheel in wheels:
                bed.offer(wheel)
            yield bed


async def test_a_node_with_a_way_out_fetches_them_and_tells_how_far_it_is(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pip, "find_locked", FIND_LOCKED)
    assert await bed.fetch() == [wheel.name for wheel in bed.wheels]
    assert bed.there() == {wheel.name: wheel.read_bytes() for wheel in bed.wheels}
    assert bed.notices() == []
    texts = [event.text for event in bed.events if isinstance(event, Progress) and event.done == event.total]
    assert texts == ["gpu1 fetches nvidia_cublas", "gpu1 fetches nvidia_cuda_runtime"]
    assert list(bed.cache.iterdir()) == []


async def test_what_another_runtime_there_has_is_not_fetched(bed: Bed) -> None:
    digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in bed.wheels]
    assert len(await bed.fetch(frozenset(digests))) == 2
    assert bed.there() == {}
    assert len(await bed.fetch(frozenset(digests[:1]))) == 2
    assert set(bed.there()) == {bed.wheels[1].name}


async def test_what_comes_wrong_is_uploaded_and_one_notice_says_why(bed: Bed) -> None:
    bed.offer(bed.wheels[1], b"wrong")
    assert await bed.fetch() == []
    assert bed.notices() == [
        "gpu1 cannot fetch CUDA's libraries itself, so they are uploaded "
        "(what came has another SHA-256 than the locked one)"
    ]
    assert set(bed.there()) == {bed.wheels[0].name}  # which need not be uploaded


async def test_a_node_without_a_way_out_loses_moments(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.server.paths[f"/files/{bed.wheels[0].name}"] = bed.server.hang
    monkeypatch.setattr(own_way, "LIMITS", {**own_way.LIMITS, "answer_s": 0.5})
    assert await bed.fetch() == []
    (notice,) = bed.notices()
    assert "(no answer from 127.0.0.1 within 3 s)" in notice


async def test_where_the_index_cannot_be_told_of_nothing_is_tried_and_nothing_said(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bed.server.url.removeprefix("https://")
    monkeypatch.setenv("PIP_INDEX_URL", f"https://user:secret@{address}/simple")
    assert await bed.fetch() == []
    monkeypatch.setenv("PIP_INDEX_URL", f"https://{address}/simple")
    bed.server.paths["/simple/nvidia-cuda-runtime/"] = status(404)
    assert await bed.fetch() == []
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert await bed.fetch() == []
    assert bed.there() == {}
    assert bed.events == []
    assert not any(path.startswith("/files") for path in bed.server.asked)


def test_files_of_a_host_with_a_password_are_not_named(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line, _), url = bed.lines, bed.server.url
    settings = {"PIP_INDEX_URL": f"{url}/simple", "PIP_CERT": str(bed.trusted)}
    (link,) = links_to(line.name, line.hashes, settings)
    assert link.url == f"{url}/files/{bed.wheels[0].name}"
    assert (
        links_to(line.name, line.hashes, {**settings, "PIP_INDEX_URL": f"{url.replace('//', '//me:it@')}/simple"}) == []
    )
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password it")
    (tmp_path / "netrc").chmod(0o600)
    (tmp_path / "netrc").rename(tmp_path / ".netrc")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert links_to(line.name, line.hashes, settings) == []
