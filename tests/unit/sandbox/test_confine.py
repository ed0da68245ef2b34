"""What a confined process can still do, tried by real processes against the real kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.sandbox import landlock, paths
from rbee_remote.sandbox.landlock import Rule

REMOTE = Path(__file__).parents[3] / "remote"

pytestmark = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")

#: What `attempts` says of each thing that was tried.
DONE, DENIED = "done", "denied"

_TRY = """
import ctypes, json, os, resource, socket, subprocess, sys, threading
sys.path.insert(0, sys.argv[1])
places = json.loads(sys.argv[2])
from rbee_remote.sandbox import *
from rbee_remote.sandbox import confine, paths
from rbee_remote.protocol import RemoteError
SETUP
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def write(path):
    with open(path, "ab") as file:
        file.write(b"x")
def tcp():
    with socket.create_connection(("127.0.0.1", places["port"]), 5):
        pass
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("127.0.0.1", places["port"]))
def unix():
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(places["socket"])
def listen():
    with socket.socket(socket.AF_INET) as one:
        one.bind(("127.0.0.1", 0))
def signal_parent():
    os.kill(os.getppid(), 0)
def python():
    subprocess.run([sys.executable, "-I", "-c", "import json"], check=True, stderr=subprocess.DEVNULL)
def shell():
    subprocess.run(["/bin/sh", "-c", ":"], check=True)
def insides_of_parent():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, os.getppid(), None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    libc.ptrace(17, os.getppid(), None, None)
attempts = {
    "read_model": lambda: read(places["model"]), "write_model": lambda: write(places["model"]),
    "read_secret": lambda: read(places["secret"]), "list_home": lambda: os.listdir(places["home"]),
    "write_home": lambda: write(places["home"] + "/new"), "write_log": lambda: write(places["logs"] + "/audit.log"),
    "write_tmp": lambda: write("/tmp/rbee-confined"), "remove_socket": lambda: os.unlink(places["own_socket"]),
    "read_run_dir": lambda: read(places["run_dir"] + "/hive.lock"), "tcp": tcp, "udp": udp, "unix": unix,
    "listen": listen, "signal_parent": signal_parent, "insides_of_parent": insides_of_parent, "python": python,
    "shell": shell, "import_numpy": lambda: __import__("numpy"),
    "threads": lambda: threading.Thread(target=int).start(),
}
results = {}
for name in places["names"]:
    try:
        attempts[name]()
        results[name] = "done"
    except OSError as error:
        results[name] = "denied" if error.errno in (1, 13, 24, 11) else repr(error)
    except ImportError as error:
        results[name] = "denied"
limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in ("RLIMIT_CORE", "RLIMIT_FSIZE")}
sys.stdout.write(json.dumps({"results": results, "said": said, "limits": limits}))
"""


class Place:
    """A home with a secret, a node's folders, somebody who listens, and what a process in the midst of it can do."""

    def __init__(self, root: Path, listener: socket.socket, neighbour: Path) -> None:
        self.root = root
        self.model = root / "models/m.gguf"
        self.logs = root / "node/log"
        self.run_dir = root / "run"
        self.own_socket = self.run_dir / "worker.sock"
        for folder in (self.model.parent, self.logs, self.run_dir, root / ".ssh"):
            folder.mkdir(parents=True)
        for file in (self.model, root / ".ssh/id_ed25519", self.run_dir / "hive.lock", self.own_socket):
            file.write_text("x")
        self.places = {
            "model": str(self.model), "secret": str(root / ".ssh/id_ed25519"), "home": str(root),
            "logs": str(self.logs), "run_dir": str(self.run_dir), "own_socket": str(self.own_socket),
            "port": listener.getsockname()[1], "socket": str(neighbour),
        }  # fmt: skip

    def try_out(self, setup: str, *names: str) -> dict[str, Any]:
        """What became of each attempt in a process that did `setup` first, which leaves something in `said`."""
        code = _TRY.replace("SETUP", setup)
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, str(REMOTE), json.dumps({**self.places, "names": names})],
            capture_output=True,
            check=False,
            env={**os.environ, "HOME": str(self.root)},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr.decode()
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    neighbour = tmp_path / "neighbour.sock"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(neighbour))
        other.listen()
        yield Place(tmp_path / "home", listener, neighbour)


def worker(mode: str = "auto", backend: str = "cpu") -> str:
    return (
        'rules = paths.serving(places["model"], run_dir=places["run_dir"], logs=places["logs"])\n'
        f"said = confine_worker({mode!r}, {backend!r}, rules)"
    )


OUTSIDE = (
    "read_secret", "list_home", "write_home", "write_model", "write_tmp", "read_run_dir", "tcp", "udp", "unix",
    "listen", "insides_of_parent", *(["signal_parent"] if landlock.abi() >= 6 else []),
)  # fmt: skip
INSIDE = ("read_model", "write_log", "remove_socket", "import_numpy", "threads", "python")


def test_without_a_sandbox_all_of_it_works(place: Place) -> None:
    """Else the next tests would show nothing."""
    wanted = [name for name in (*OUTSIDE, *INSIDE) if name != "insides_of_parent"]
    assert place.try_out('said = ""', *wanted)["results"] == dict.fromkeys(wanted, DONE)


def test_a_worker_reaches_what_it_needs_and_nothing_else(place: Place) -> None:
    found = place.try_out(worker(), *OUTSIDE, *INSIDE)
    assert found["results"] == dict.fromkeys(OUTSIDE, DENIED) | dict.fromkeys(INSIDE, DONE)
    assert found["said"] == "landlock+seccomp"
    assert found["limits"]["RLIMIT_CORE"] == 0
    assert 0 < found["limits"]["RLIMIT_FSIZE"] <= 2**30


def test_who_reads_a_file_can_read_it_and_write_nothing(place: Place) -> None:
    wanted = ("read_model", "import_numpy", "threads")
    denied = (*OUTSIDE, "write_log", "remove_socket", "python", "shell")
    found = place.try_out('confine_reader(places["model"]); said = ""', *denied, *wanted)
    assert found["results"] == dict.fromkeys(denied, DENIED) | dict.fromkeys(wanted, DONE)


def test_who_renders_a_template_can_do_nothing(place: Place) -> None:
    denied = (*OUTSIDE, *(name for name in INSIDE if name != "threads"), "shell")
    found = place.try_out('confine_to_nothing(); said = ""', *denied)
    assert found["results"] == dict.fromkeys(denied, DENIED)


def test_no_sandbox_where_the_inventory_says_so(place: Place) -> None:
    found = place.try_out(worker("off"), "read_secret", "tcp", "unix")
    assert (found["said"], set(found["results"].values())) == ("off", {DONE})


def test_a_gpu_worker_keeps_what_a_driver_may_need(place: Place) -> None:
    found = place.try_out(worker("auto", "vulkan"), "read_secret", "unix", "shell")
    assert (found["said"], set(found["results"].values())) == ("limits", {DONE})
    assert found["limits"]["RLIMIT_CORE"] == 0


def test_a_gpu_worker_is_confined_on_demand(place: Place) -> None:
    found = place.try_out(worker("on", "cuda"), "read_secret", "tcp", "read_model")
    assert found["said"] == "landlock"
    assert found["results"] == {"read_secret": DENIED, "tcp": DENIED, "read_model": DONE}


def test_where_it_cannot_be_confined_on_fails_and_auto_goes_on(place: Place) -> None:
    """With a second thread, which would stay outside."""
    second = "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    assert place.try_out(second + worker(), "read_secret")["said"] == "limits"
    refused = f"try:\n    {worker('on').splitlines()[0]}\n    {worker('on').splitlines()[1]}\n"
    refused += "except RemoteError as error:\n    said = error.code + ': ' + error.message"
    assert place.try_out(second + refused)["said"].startswith("NODE_UNSUPPORTED: this node cannot guard its files")


@pytest.mark.parametrize("path", ["/", "HOME", "HOME/..", "relative", ""])
def test_no_search_path_opens_the_whole_home(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(paths._safe([Rule(path.replace("HOME", str(tmp_path)), 1)])) == []
    below = Rule(str(tmp_path / "node/runtimes/0123456789abcdef"), 1)
    assert list(paths._safe([below])) == [below]


def test_a_link_in_the_home_s_place_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert list(paths._safe([Rule(str(tmp_path / "home"), 1)])) == []
