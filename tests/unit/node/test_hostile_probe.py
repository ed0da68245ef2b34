"""A node that lies about itself gets an error or quoted scripts, and no say in the keeper's paths, time and memory."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rbee.base.errors import NodeError, RbeeError
from rbee.base.files import LocalFile
from rbee.cleanup import payload_commands
from rbee.inventory import Node
from rbee.node.probe import Probe, parse
from rbee.setup import attach, bootstrap, prerequisites
from rbee.setup.base import node_scripts
from rbee.setup.base.node_scripts import Place
from rbee.setup.base.payload import build_payload
from rbee.setup.base.platforms import Target
from rbee.setup.runtime import Runtime
from rbee.setup.wheels.cache import WheelCache
from rbee.transport import upload
from rbee.transport.connection import quote
from rbee_remote.protocol import ErrorCode
from tests.doubles.connection import FakeConnection
from tests.hostile import PROBE
from tests.patience import PATIENCE_S

LINES = PROBE.format(payload="d" * 16, runtime="e" * 16, run_name="f" * 8).splitlines()
NODE = Node(name="gpu1", host="192.0.2.1")

#: Each makes a file in the current folder where a shell takes it for more than a word.
TRAPS = [
    "$(: >canary)",
    "`: >canary`",
    "'; : >canary; '",
    '"; : >canary; "',
    "'$(: >canary)'",
    "\\'; : >canary; #",
    " & : >canary &",
    "|| : >canary",
    "\nEND\n: >canary\n",
    "\r: >canary",
    "'\"'\"'; : >canary; '",
    "${x:=$(: >canary)}",
    "; : >canary",
    ">canary",
    "-rf",
    "../../../../tmp",
    "\0",
    "\x1b]52;c;QQ==\x07",
    "~",
    "*",
    "%s%n",
    "é\u202e\u200b",
]

values = (
    st.sampled_from(TRAPS) | st.text(max_size=30) | st.integers().map(str) | st.sampled_from(["9" * 4000, "x" * 10**6])
)


@st.composite
def lies(draw: st.DrawFn) -> bytes:
    """A probe's answer in which some values are something else, in part or as a whole."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        key, _, value = lines[at].partition("=")
        lines[at] = f"{key}={draw(st.sampled_from(['', value, '/', f'{value}/']))}{draw(values)}"
    return "\n".join(draw(st.permutations(lines))).encode(errors="replace")


def found_by(output: bytes) -> Probe | None:
    try:
        return parse(output)
    except NodeError as error:
        assert error.code is ErrorCode.NODE_UNSUPPORTED
        return None


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(lies())
@example(b"system=Linux\nhome=/h\nlibc=glibc 2.99999999999\n")
@example(b"system=Linux\nhome=/h\nlibc=../../../x 2.36\nmachine=../../y\n")
@example(b"system=Darwin\nhome=/h\nlibc=macos 99999999.1\nmachine=arm64\n")
def test_a_lie_has_no_say_in_what_the_keeper_does_with_its_own_disk_and_time(output: bytes) -> None:
    found = found_by(output)
    if found is None:
        return
    target = Target.of(found, (3, 11))
    assert len(target.wheel_platforms()) < 2000
    runtime = Runtime.choose(found, NODE, WheelCache(Path("/nowhere"), Path("/nowhere")))
    assert PurePosixPath(runtime.key).name == runtime.key
    try:
        bootstrap.plan(found, "d" * 16, runtime.key)
        prerequisites.check(found, runtime.backend, makes_runtime=True)
    except RbeeError as error:
        assert error.code is not ErrorCode.INTERNAL
    else:
        assert PurePosixPath(target.name).name == target.name, "it is a folder's name in the keeper's cache"
    assert len(found.summary) < 50_000


def test_a_probe_without_end_is_read_as_far_as_is_sane() -> None:
    many_keys = b"".join(b"k%d=v\n" % number for number in range(2_000_000))
    found = parse(b"system=Linux\nhome=/h\n" + many_keys)
    assert found.home == "/h"
    assert parse(b"system=Linux\nhome=/h\n" + b"runtime=x\n" * 2_000_000).runtimes == {"x"}


@pytest.mark.parametrize("home", ["", "/", "//", "relative", "-rf", "/a\0b", "/a\x1b[2J", "~", "/a\tb"])
def test_a_home_that_is_none_is_refused(home: str) -> None:
    assert found_by(f"system=Linux\nhome={home}\n".encode()) is None


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of commands that do nothing: what the scripts call, and nothing else."""
    folder = tmp_path_factory.mktemp("bin")
    for name in (
        "mkdir",
        "rm",
        "find",
        "cat",
        "ln",
        "tail",
        "sed",
        "df",
        "dd",
        "wc",
        "mv",
        "chmod",
        "sync",
        "sha256sum",
    ):
        (folder / name).symlink_to("/bin/true")
    return folder


async def _scripts(found: Probe) -> list[str]:
    """All that is run on a node with values that it named itself."""
    place = Place(found.home, f"{found.home}/runtimes/uv-0.0.1", found.python)
    wheel = LocalFile(Path("llama_cpp_python-1.0-py3-none-any.whl"), "a" * 64)
    ready = bootstrap.Ready(f"{found.home}/runtimes/k/bin/python", f"{found.home}/payloads/p.zip", "d" * 16, "cpu")
    connection = FakeConnection()
    connection.answer("", b"{}")
    with pytest.raises(NodeError):
        await attach._start_hive(connection, found, ready)
    placed, staging = node_scripts.wheel_path(found.home, wheel), node_scripts.staging_path(found.home, "n" * 12)
    scripts = [
        *connection.scripts,
        node_scripts.prepare(found.home),
        node_scripts.discard(place),
        node_scripts.fetch_python(place, "3.12", 60),
        node_scripts.unpack_python(place, "n" * 12, "rbee-3.11-0", placed),
        node_scripts.create_runtime(place, "n" * 12, "k" * 16, [wheel]),
        node_scripts.build_wheel(place, staging, (wheel, placed), [(wheel, placed)], "-DX=ON"),
        upload._script(upload.Upload.of(b"", f"{found.home}/payloads/p", sha256="a" * 64, mode=0o644, keeper_id="k")),
        " ".join(map(quote, (*ready.command, "pipe", f"{found.run_dir}/hive.sock", "--ready"))),
    ]
    try:
        scripts.append(
            payload_commands.script(found, replace(build_payload(), data=b""), ("survey", "--home", found.home), b"")
        )
    except NodeError as error:
        assert error.code is ErrorCode.NODE_UNSUPPORTED
    return scripts


def _snapped(scripts: list[str], bare_path: Path, folder: Path) -> bool:
    """Whether one of the scripts made the file, run by a real shell to its end, whatever becomes of its steps."""
    unstopped = [script.replace("set -e\n", "").replace("set -eu", "").replace("exec ", "") for script in scripts]
    subprocess.run(
        ["/bin/sh", "-c", 'for script; do ( eval "$script" ); done', "sh", *unstopped],
        cwd=folder,
        env={"PATH": str(bare_path), "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return (folder / "canary").exists()


@pytest.mark.parametrize(
    ("key", "before"),
    [("home", "/nowhere/"), ("run_base", "/nowhere/"), ("python", "3.11.2 1 /nowhere/"), ("runtime", "")],
)
async def test_what_a_node_calls_its_folders_stays_a_word_in_scripts(
    key: str, before: str, bare_path: Path, tmp_path: Path
) -> None:
    lines = [line for line in LINES if not line.startswith((f"{key}=", "payload="))]
    for trap in TRAPS:
        found = found_by("\n".join([f"{key}={before}{trap}", *lines, "home=/nowhere/h"]).encode())
        if found is not None:
            assert not _snapped(await _scripts(found), bare_path, tmp_path), trap


@pytest.mark.parametrize("quoting", ["{}", "'{}'", '"{}"'])
def test_the_traps_snap_where_quoting_is_weak(quoting: str, bare_path: Path, tmp_path: Path) -> None:
    scripts = [f"mkdir -p {quoting.format(trap)}" for trap in TRAPS if "\0" not in trap]
    assert _snapped(scripts, bare_path, tmp_path)
