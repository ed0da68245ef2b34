"""The probe understands what nodes say, and survives what they should not say."""

from __future__ import annotations

import hashlib
import os
import pwd
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import NodeError
from rbee.inventory import Node
from rbee.node.diagnosis import ConnectionFacts, findings, obstacle
from rbee.node.probe import Gpu, Probe, Python, parse, probe, script
from rbee.setup.base.platforms import Target
from rbee.transport.connection import Completed
from rbee_remote.protocol import ErrorCode
from tests.doubles.connection import FakeConnection
from tests.patience import PATIENCE_S

LINUX = b"""system=Linux
machine=x86_64
user=bee
uid=1000
user_home=/home/bee
shell=/usr/bin/fish
libc=glibc 2.36
os=Debian GNU/Linux 12 (bookworm)
cores=8
ram_total_kb=16000000
ram_available_kb=8000000
boot_id=0f7e4a4c
home=/home/bee/.rbee/node
home_writable=yes
disk_free_kb=50000000
home_mount=rw,relatime
home_problem=
payload=00112233445566aa.zip
runtime=cpu-abc
uv=uv-0.9.1
kill_user_processes=no
python=3.12.4 1 /opt/python/bin/python3.12
python=3.11.2 0 /usr/bin/python3.11
compiler=/usr/bin/c++
nvidia=NVIDIA H100 80GB HBM3, 81559, 80000, 550.54.15
end=yes
"""
NAME = hashlib.sha256(b"/home/bee/.rbee/node").hexdigest()[:8]


def _said(*lines: str) -> Probe:
    return parse(LINUX + "\n".join(lines).encode())


def test_a_linux_node_is_understood() -> None:
    found = parse(LINUX)
    assert found == Probe(
        system="Linux",
        machine="x86_64",
        libc="glibc 2.36",
        os_release="Debian GNU/Linux 12 (bookworm)",
        user="bee",
        home="/home/bee/.rbee/node",
        shell="/usr/bin/fish",
        python="/opt/python/bin/python3.12",
        python_version=(3, 12, 4),
        pythons=(
            Python("/opt/python/bin/python3.12", (3, 12, 4), True),
            Python("/usr/bin/python3.11", (3, 11, 2), False),
        ),
        has_ensurepip=True,
        compiler="/usr/bin/c++",
        cores=8,
        ram_total_mb=16384,
        ram_available_mb=8192,
        disk_free_mb=51200,
        home_writable=True,
        run_dir=f"/tmp/rbee-1000/{NAME}",
        boot_id="0f7e4a4c",
        gpus=(Gpu("nvidia", "NVIDIA H100 80GB HBM3", 85520, 83886, "550.54.15"),),
        payloads=frozenset({"00112233445566aa"}),
        runtimes=frozenset({"cpu-abc"}),
        uv=frozenset({"uv-0.9.1"}),
    )
    assert found.summary == (
        "Debian GNU/Linux 12 (bookworm) x86_64, 8 cores, 8.2 of 16.4 GB free, NVIDIA H100 80GB HBM3, Python 3.12.4"
    )


def test_a_mac_is_understood() -> None:
    found = parse(
        b"system=Darwin\nmachine=arm64\nhome=/Users/bee/.rbee/node\nlibc=macos 14.5\nuid=501\n"
        b"ram_total_bytes=17179869184\nram_available_pages=262144\npage_size=16384\n"
    )
    assert (found.machine, found.libc, found.gpus) == ("aarch64", "macos 14.5", (Gpu("apple", "Apple GPU"),))
    assert (found.ram_total_mb, found.ram_available_mb) == (17179, 4294)
    assert found.python_version is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("cgroup:memory.max=max", "cgroup:memory.current=1"), (16384, 8192)),
        (("cgroup:memory.max=4000000000", "cgroup:memory.current=1000000000"), (4000, 3000)),
        (("cgroup:memory.max=4000000000", "cgroup:memory.current=5000000000"), (4000, 0)),
        (("cgroup:memory/memory.limit_in_bytes=9223372036854771712",), (16384, 8192)),
        (("cgroup:memory/memory.limit_in_bytes=2000000000",), (2000, 2000)),
    ],
)
def test_the_limit_of_a_container_is_the_end_of_its_memory(lines: tuple[str, ...], expected: tuple[int, int]) -> None:
    found = _said(*lines)
    assert (found.ram_total_mb, found.ram_available_mb) == expected


@pytest.mark.parametrize(
    ("lines", "run_dir"),
    [
        ((), f"/tmp/rbee-1000/{NAME}"),
        (("run_base=/run/user/1000",), f"/run/user/1000/rbee/{NAME}"),
        # Without lingering the folder goes away with the session, and the hive's socket with it.
        (("run_base=/run/user/1000", "logout_removes=/run/user/1000"), f"/tmp/rbee-1000/{NAME}"),
        (("run_base=/scratch/run", "logout_removes=/run/user/1000"), f"/scratch/run/rbee/{NAME}"),
        (("run_base=relative",), f"/tmp/rbee-1000/{NAME}"),
        ((f"run_base=/{'long' * 30}",), f"/tmp/rbee-1000/{NAME}"),
        # Where a hive listens already, that is the place.
        (("run_base=/run/user/1000", f"hive_socket=/tmp/rbee-1000/{NAME}/hive.sock"), f"/tmp/rbee-1000/{NAME}"),
        (
            (
                "run_base=/run/user/1000",
                "logout_removes=/run/user/1000",
                f"hive_socket=/run/user/1000/rbee/{NAME}/hive.sock",
            ),
            f"/run/user/1000/rbee/{NAME}",
        ),
        (("run_base=/run/user/1000", "hive_socket=/tmp/rbee-1000/00000000/hive.sock"), f"/run/user/1000/rbee/{NAME}"),
    ],
)
def test_the_folder_for_sockets(lines: tuple[str, ...], run_dir: str) -> None:
    found = _said(*lines)
    assert found.run_dir == run_dir
    assert found.hive_socket_present == (f"hive_socket={run_dir}/hive.sock" in lines)
    assert len(f"{run_dir}/worker-0123456789abcdef.sock") <= 107


def test_a_problem_with_tmp_matters_only_where_tmp_is_used() -> None:
    problem = "tmp_problem=/tmp/rbee-1000 belongs to somebody else"
    assert _said(problem).run_dir_problem == "/tmp/rbee-1000 belongs to somebody else"
    assert _said(problem, "run_base=/run/user/1000").run_dir_problem == ""


def test_a_hive_in_a_folder_of_somebody_else_is_not_there() -> None:
    lines = ("tmp_problem=/tmp/rbee-1000 belongs to somebody else", f"hive_socket=/tmp/rbee-1000/{NAME}/hive.sock")
    found = _said(*lines)
    assert not found.hive_socket_present
    assert found.run_dir_problem
    assert not _said(*lines, "run_base=/run/user/1000").hive_socket_present


@pytest.mark.parametrize(("options", "noexec"), [("", False), ("rw,nosuid,noexec", True), ("rw,relatime", False)])
def test_noexec_is_read_from_the_mount(options: str, noexec: bool) -> None:
    assert parse(LINUX.replace(b"rw,relatime", options.encode())).home_noexec is noexec


@pytest.mark.parametrize(
    "line", ["python=", "python=3.x 1 /p", "python=2.7.18 0 /usr/bin/python", "python=3.12.1 1 relative", "nvidia=a,b"]
)
def test_lines_that_make_no_sense_count_as_not_said(line: str) -> None:
    assert _said(line) == parse(LINUX)


@pytest.mark.parametrize(
    "output", [b"", b"system=Linux\n", b"home=/x\n", b"system=Linux\nhome=relative\n", b"\xff\xfe", b"=" * 9000]
)
def test_without_system_and_home_there_is_no_probe(output: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        parse(output)
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED


KEYS = sorted({line.partition(b"=")[0] for line in LINUX.splitlines()} | {b"rocm", b"run_base", b"hive_socket"})


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.binary(max_size=60)), max_size=40))
def test_whatever_a_node_says_the_probe_is_valid_or_refused(lines: list[tuple[bytes, bytes]]) -> None:
    output = b"\n".join(key + b"=" + value for key, value in lines)
    for prefix in (b"", b"system=Linux\nhome=/h\n"):
        try:
            found = parse(prefix + output)
        except NodeError:
            continue
        assert found.home.startswith("/")
        assert found.run_dir.startswith("/")
        assert len(found.run_dir.encode()) < 108
        assert min(found.cores, 1 + found.disk_free_mb, 1 + found.ram_total_mb, 1 + found.ram_available_mb) >= 1
        assert all(finding.title for finding in findings(found, ConnectionFacts(local=False, forwarding=None)))


@given(st.binary(max_size=2000))
def test_noise_is_no_probe(output: bytes) -> None:
    try:
        assert parse(output).home.startswith("/")
    except NodeError as error:
        assert error.code is ErrorCode.NODE_UNSUPPORTED


# --- the script itself --------------------------------------------------------------------------------------------


def _run(home: str | None, env: dict[str, str]) -> Probe:
    done = subprocess.run(
        ["/bin/sh"], input=script(home).encode(), capture_output=True, env=env, timeout=PATIENCE_S, check=True
    )
    return parse(done.stdout)


@pytest.mark.parametrize(
    ("home", "expected"),
    [
        (None, "{0}/.rbee/node"),
        ("~", "{0}"),
        ("~/x y", "{0}/x y"),
        ("rel/it's", "{0}/rel/it's"),
        ("/abs/$HOME/`id`", "/abs/$HOME/`id`"),
    ],
)
def test_the_home_is_expanded_on_the_node(home: str | None, expected: str, tmp_path: Path) -> None:
    found = _run(home, {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert found.home == expected.format(tmp_path)
    assert found.system
    assert found.cores >= 1


def test_the_script_works_without_an_environment() -> None:
    found = _run(None, {})
    own = pwd.getpwuid(os.geteuid())
    assert found.home == f"{own.pw_dir.rstrip('/')}/.rbee/node"
    assert (found.user, found.shell) == (own.pw_name, own.pw_shell)


def test_the_script_says_what_the_processor_can_and_which_toolkits_there_are(tmp_path: Path) -> None:
    lines = ("libcudart.so.12", "libcudart.so.11.0", "libcudart.so.13", "libcublas.so.12", "libcublas.so.11.9")
    (tmp_path / "list").write_text("".join(f"\t{name} (libc6,x86-64) => /usr/lib/{name}\n" for name in lines))
    programs = {"nvidia-smi": "echo 'H100, 81559, 80000, 550'", "ldconfig": f"cat {tmp_path}/list"}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    found = _run(None, {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert found.cpu == Target.here().cpu
    assert found.cudart == {11, 12}, "a toolkit without cuBLAS is not enough"
    target = Target.of(found, (3, 11))
    assert (target.cpu, target.cudart) == (found.cpu, found.cudart)


def test_the_script_sees_what_stands_in_the_home_and_leaves_nothing_there(tmp_path: Path) -> None:
    for name in ("payloads/aa.zip", "payloads/bb.zip.part-k1", "runtimes/uv-0.9", "runtimes/whole/bin/python"):
        file = tmp_path / "node" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o755)
    (tmp_path / "node" / "runtimes" / "broken" / "bin").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    found = _run(str(tmp_path / "node"), {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})
    assert (found.payloads, found.runtimes, found.uv) == ({"aa"}, {"whole"}, {"uv-0.9"})
    assert found.home_writable
    assert not found.home_noexec
    assert found.disk_free_mb > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_script_finds_the_runtime_folder_and_its_hive(tmp_path: Path) -> None:
    import socket
    import tempfile

    with tempfile.TemporaryDirectory(prefix="rbee", dir="/tmp") as runtime:
        home = str(tmp_path)
        folder = Path(runtime) / "rbee" / hashlib.sha256(home.encode()).hexdigest()[:8]
        folder.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "hive.sock"))
            found = _run(home, {"HOME": home, "XDG_RUNTIME_DIR": runtime, "PATH": "/usr/bin:/bin"})
        assert found.run_dir == str(folder)
        assert found.hive_socket_present


async def test_one_script_is_one_round_trip() -> None:
    connection = FakeConnection()
    connection.answer("uname", Completed(LINUX, "", 0, noise=b"Welcome!\n"))
    found = await probe(connection, Node("gpu1", home="/scratch"))
    assert len(connection.scripts) == 1
    assert "home_wanted=/scratch" in connection.scripts[0]
    assert found.shell_noise_bytes == 9


# --- the doctor ---------------------------------------------------------------------------------------------------


def _levels(found: Probe, facts: ConnectionFacts) -> dict[str, str]:
    return {finding.title: finding.level for finding in findings(found, facts)}


def test_a_healthy_node_has_nothing_to_fix() -> None:
    found = findings(parse(LINUX), ConnectionFacts(local=False, forwarding=True))
    assert {finding.level for finding in found} == {"ok"}
    assert all(finding.fix == "" for finding in found)


@pytest.mark.parametrize(
    ("said", "instead", "title", "level"),
    [
        (b"machine=x86_64", b"machine=riscv64", "system", "fail"),
        (b"glibc 2.36", b"musl 1.2.4", "C library", "warn"),
        (b"home_writable=yes", b"", "home", "fail"),
        (b"home_mount=rw", b"home_mount=noexec", "home", "fail"),
        (b"home_problem=", b"home_problem=/scratch can be changed by others: chmod go-w /scratch", "home", "fail"),
        (b"home_problem=", b"home_problem=/scratch belongs to somebody else", "home", "fail"),
        (b"disk_free_kb=50000000", b"disk_free_kb=100", "disk", "warn"),
        (b"disk_free_kb=50000000", b"disk_free_kb=1000000", "disk", "warn"),
        (b"ram_available_kb=8000000", b"ram_available_kb=8000", "RAM", "warn"),
        (b"kill_user_processes=no", b"kill_user_processes=yes", "KillUserProcesses", "warn"),
        (b"end=yes", b"tmp_problem=/tmp/rbee-1000 is a symbolic link", "sockets", "fail"),
        (b"end=yes", b"landlock=-1\nlandlock=-2", "sandbox", "warn"),
    ],
)
def test_what_is_wrong_is_found_and_has_a_fix(said: bytes, instead: bytes, title: str, level: str) -> None:
    found = findings(parse(LINUX.replace(said, instead)), ConnectionFacts(local=False, forwarding=True))
    (finding,) = [finding for finding in found if finding.title == title]
    assert finding.level == level
    assert finding.fix
    error = obstacle("gpu1", found)
    assert (error is not None) is (level == "fail")
    assert error is None or (error.exit_status, error.hint) == (5, finding.fix)


def test_a_full_disk_is_in_the_way_of_a_runtime_that_is_not_there() -> None:
    full = LINUX.replace(b"disk_free_kb=50000000", b"disk_free_kb=100").replace(b"runtime=cpu-abc\n", b"")
    assert _levels(parse(full), ConnectionFacts(local=False, forwarding=True))["disk"] == "fail"


def test_findings_about_the_way_there_are_left_out_on_this_machine() -> None:
    here = _levels(parse(LINUX), ConnectionFacts(local=True, forwarding=None))
    there = _levels(parse(LINUX), ConnectionFacts(local=False, forwarding=False))
    assert set(there) - set(here) == {"login shell", "forwarding", "KillUserProcesses"}
    assert there["forwarding"] == "warn"


def test_workers_in_a_scope_of_the_users_own_outlive_the_session() -> None:
    lines = LINUX.replace(b"kill_user_processes=no", b"kill_user_processes=yes")
    for scope, level in ((b"", "warn"), (b"user_scope=yes\n", "ok")):
        found = parse(lines + scope)
        assert found.kill_user_processes
        assert _levels(found, ConnectionFacts(local=False, forwarding=True))["KillUserProcesses"] == level


def test_a_node_without_python_is_told_what_happens() -> None:
    lines = [line for line in LINUX.splitlines(keepends=True) if not line.startswith(b"python")]
    (finding,) = [
        each for each in findings(parse(b"".join(lines)), ConnectionFacts(True, None)) if each.title == "Python"
    ]
    assert (finding.level, "uv" in finding.fix) == ("warn", True)


@pytest.mark.parametrize(
    ("lines", "landlock", "words"),
    [
        (b"", None, "not known before"),
        (b"landlock=-2\n", None, "not known before"),
        (b"landlock=nonsense\nlandlock=\n", None, "not known before"),
        (b"landlock=-1\n", 0, "no Landlock"),
        (b"landlock=-2\nlandlock=4\n", 4, "Landlock 4: workers on the CPU can reach only their model"),
        (b"landlock=999999999999\n", 99, "Landlock 99"),
    ],
)
def test_whether_workers_can_be_confined_is_told(lines: bytes, landlock: int | None, words: str) -> None:
    found = parse(lines + LINUX)
    assert found.landlock == landlock
    (finding,) = [each for each in findings(found, ConnectionFacts(True, None)) if each.title == "sandbox"]
    assert words in finding.detail
