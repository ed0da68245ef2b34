"""`rbee uninstall` on this machine: a home of made-up files, and a real process that runs from it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Event
from rbee.base.settings import Settings
from rbee.cleanup.uninstall import Uninstalled, UninstallRequest, uninstall
from rbee.cli.uninstall import remarks
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node.probe import Probe, probe
from rbee.node.traces import Traces, end_script, look_script, parse
from rbee.registry import NodeFacts, Registry
from rbee.setup.base import node_scripts
from rbee.transport.local import LocalConnection
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S

KEEPER = "0" * 16
#: How what `parse` reads ends.
END = b"end folder 0 /home/x\0"
#: Runs a command as the first process of a pid namespace, as containers do; ends with it.
IN_CONTAINER = ["unshare", "--user", "--pid", "--fork", "--kill-child"]
HEX16, HEX32, HEX64 = "0123456789abcdef", "1" * 32, "2" * 64
OURS = (
    f"payloads/{HEX16}.zip",
    f"payloads/{HEX16}.zip.part-{KEEPER}-{HEX16[:8]}",
    f"runtimes/{HEX16}/lib/site.py",
    "runtimes/uv-0.9.1",
    "runtimes/wheels/0123/x.whl",
    f"runtimes/.staging-{HEX16[:12]}/venv/x",
    f"runtimes/.removed-{HEX16[:12]}/lib/x",
    "log/hive.log",
    "log/hive.log.1",
    f"log/worker-{HEX16}.log",
    "log/audit.log",
    f"models/{HEX64}.gguf.part",
)
MODELS = (f"models/{HEX64}.gguf", f"models/{HEX64}-00002-of-00003.gguf", f"models/{HEX32}.json")
FOREIGN = ("notes.txt", "models/mine of 7 GB.gguf", ".hidden/thing", "runtimes/my venv/x", "log/-rf")


class Bed:
    """The node `local` of a keeper that lives in `~/.rbee` of a made-up user."""

    def __init__(self, folder: Path) -> None:
        self.user_home = folder / "a home"
        self.home = self.user_home / ".rbee/node"
        self.run_dirs = folder / "run"
        self.settings = Settings(home=self.user_home / ".rbee")
        self.settings.home.mkdir(parents=True)
        self.run_dirs.mkdir()
        self.events: list[Event] = []
        self.question = ""
        self.says_yes: bool | None = None

    def write(self, *names: str) -> None:
        for name in names:
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x" * 1000)

    async def prepare(self) -> None:
        async with LocalConnection(keeper_id=KEEPER) as connection:
            done = await connection.run(node_scripts.prepare(str(self.home)))
        assert done.status == 0, done.stderr

    async def found(self) -> Probe:
        async with LocalConnection(keeper_id=KEEPER) as connection:
            return await probe(connection, Node("local"))

    async def uninstall(self, **request: bool) -> Uninstalled:
        async def ask(question: str) -> bool:
            self.question = question
            return bool(self.says_yes)

        context = Context(
            self.settings,
            Inventory({"local": Node("local")}),
            lambda: Registry.open(self.settings.registry_path),
            KEEPER,
            ask=None if self.says_yes is None else ask,
            emit=self.events.append,
        )
        return await uninstall(context, Node("local"), UninstallRequest(**request))

    def files(self) -> set[str]:
        """All that lies in the node's home, folders only where they are empty."""
        found = (path for path in self.home.rglob("*") if path.is_file() or not any(path.iterdir()))
        return {str(path.relative_to(self.home)) for path in found}


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    bed = Bed(tmp_path)
    monkeypatch.setenv("HOME", str(bed.user_home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(bed.run_dirs))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the probe asks every Python that it finds
    monkeypatch.setattr("rbee.cleanup.uninstall.SIGNAL_PATIENCE_S", 1)
    return bed


@pytest.fixture
def process(bed: Bed) -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs from one of the home's runtimes, and does not end when it is asked to."""
    shell = bed.home / f"runtimes/{HEX16}/bin/python"
    shell.parent.mkdir(parents=True)
    shutil.copy("/bin/sh", shell)
    child = subprocess.Popen(
        [shell, "-c", "trap '' TERM; echo; while :; do sleep 0.1; done", "x", "worker"],
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.stdout.close()
    if child.poll() is None:
        child.kill()
    child.wait(PATIENCE_S)


async def test_what_is_rbees_goes_and_everything_else_stays_and_is_named(bed: Bed) -> None:
    bed.write(*OURS, *MODELS, *FOREIGN)
    (bed.settings.home / "inventory.toml").touch()
    outcome = await bed.uninstall()
    assert bed.files() == {*MODELS, *FOREIGN}
    assert {Path(path).name for path in outcome.foreign} == {
        "notes.txt", "mine of 7 GB.gguf", ".hidden", "my venv", "-rf"
    }  # fmt: skip
    assert (outcome.kept_models, outcome.home) == (len(MODELS), str(bed.home))
    outcome = await bed.uninstall(models=True, assume_yes=True)
    assert bed.files() == set(FOREIGN)
    assert (bed.settings.home / "inventory.toml").exists()


async def test_folders_go_that_a_bootstrap_made_and_those_that_were_there_stay(bed: Bed) -> None:
    bed.home.mkdir()
    await bed.prepare()
    bed.write(*OURS)
    await bed.uninstall()
    assert list(bed.home.iterdir()) == []  # the user's own empty folder
    bed.home.rmdir()
    await bed.prepare()
    bed.write(*OURS, *MODELS)
    await bed.uninstall()
    await bed.prepare()  # where models stayed, the note of what was made stays too
    await bed.uninstall(models=True, assume_yes=True)
    assert not bed.home.exists()
    assert bed.settings.home.exists()  # it has the keeper's files


async def test_nothing_there_is_fine_and_the_node_is_forgotten(bed: Bed) -> None:
    facts = NodeFacts("local", "forward", "/old home", "/run/x", "/p", "/z", "/s")
    with Registry.open(bed.settings.registry_path) as registry:
        registry.remember_node(facts)
    outcome = await bed.uninstall()
    assert (outcome.removed, outcome.processes, outcome.elsewhere) == ((), (), "/old home")
    with Registry.open(bed.settings.registry_path) as registry:
        assert registry.node_facts("local") is None


async def test_models_go_only_when_somebody_says_so(bed: Bed) -> None:
    bed.write(*OURS, *MODELS)
    before = bed.files()
    with pytest.raises(UsageError) as caught:
        await bed.uninstall(models=True)
    assert caught.value.hint == "add --yes"
    bed.says_yes = False
    with pytest.raises(UsageError, match="nothing was removed"):
        await bed.uninstall(models=True)
    assert "3 files of models on local" in bed.question
    assert bed.files() == before
    bed.says_yes = True
    await bed.uninstall(models=True)
    assert bed.files() == set()


async def test_a_dry_run_says_the_same_and_changes_nothing(bed: Bed, process: subprocess.Popen[bytes]) -> None:
    bed.write(*OURS, *MODELS)
    before = bed.files()
    plan = await bed.uninstall(models=True, dry_run=True)
    assert bed.files() == before
    assert process.poll() is None
    done = await bed.uninstall(models=True, assume_yes=True)
    assert plan == done


async def test_what_runs_is_ended_by_force_at_last(bed: Bed, process: subprocess.Popen[bytes]) -> None:
    outcome = await bed.uninstall(now=True)
    assert process.wait(PATIENCE_S) == -9
    assert outcome.processes == ("python",)
    assert not bed.home.exists()


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox here")
async def test_busybox_ends_what_runs_as_well(bed: Bed, process: subprocess.Popen[bytes]) -> None:
    script = end_script(await bed.found(), 0)
    busybox = str(shutil.which("busybox"))
    subprocess.run([busybox, "sh"], input=script.encode(), check=True)
    assert process.wait(PATIENCE_S) == -9


async def test_a_process_that_was_stopped_ends_when_it_is_asked(bed: Bed) -> None:
    shell = bed.home / f"runtimes/{HEX16}/bin/python"
    shell.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", shell)
    child = subprocess.Popen([shell, "60"], start_new_session=True)
    os.kill(child.pid, signal.SIGSTOP)
    await bed.uninstall()
    assert child.wait(PATIENCE_S) == -signal.SIGTERM


async def test_who_only_names_our_files_or_is_in_a_container_is_spared(bed: Bed) -> None:
    payload, sleep = str(bed.home / f"payloads/{HEX16}.zip"), "import time; time.sleep(60)"
    bed.write("runtimes/my venv/bin/x", "runtimes/sixteen letters/bin/x")
    looping = ["-c", "while :; do sleep 1; done"]
    words: list[list[str]] = [
        [sys.executable, "-c", sleep, payload, "worker"],
        [sys.executable, "-c", sleep, "-I", payload, "worker"],  # as a tracer names what it traces
        ["/bin/sh", "-c", "sleep 60; :", f"python -I {payload} worker"],
        [shutil.copy("/bin/sh", str(bed.home / "runtimes/my venv/bin/python")), *looping],
        [shutil.copy("/bin/sh", str(bed.home / "runtimes/sixteen letters/bin/python")), *looping],
    ]
    if subprocess.run([*IN_CONTAINER, "true"], capture_output=True, check=False).returncode == 0:
        inside = f"runtimes/{HEX16}/bin/python"
        bed.write(inside)
        words.append([*IN_CONTAINER, shutil.copy("/bin/sh", str(bed.home / inside)), *looping])
    bystanders = [subprocess.Popen(each, start_new_session=True) for each in words]
    try:
        await asyncio.sleep(0.3)  # until they are what they were started as
        outcome = await bed.uninstall(now=True)
        assert outcome.processes == ()
        assert [each.poll() for each in bystanders] == [None] * len(words)
    finally:
        for each in bystanders:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()


async def test_processes_are_found_without_proc_as_well(bed: Bed, process: subprocess.Popen[bytes]) -> None:
    script = look_script(await bed.found())
    async with LocalConnection(keeper_id=KEEPER) as connection:
        with_proc = parse((await connection.run(script)).stdout, "/x").processes
        without = parse((await connection.run(script.replace("proc=/proc", "proc=/nowhere"))).stdout, "/x").processes
    assert [row.pid for row in with_proc] == [row.pid for row in without] == [process.pid]


async def test_links_are_removed_never_what_they_lead_to(bed: Bed, tmp_path: Path) -> None:
    elsewhere = tmp_path / "big disk"
    elsewhere.mkdir()
    (elsewhere / f"{HEX64}.gguf").touch()
    (elsewhere / "mine.gguf").touch()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    bed.write(*OURS)
    shutil.rmtree(bed.home / "models")
    (bed.home / "models").symlink_to(elsewhere)
    (bed.home / f"payloads/{HEX16[::-1]}.zip").symlink_to(tmp_path / "precious")
    outcome = await bed.uninstall(models=True, assume_yes=True)
    assert set(outcome.foreign) == {str(bed.home / "models"), str(bed.home / "models/mine.gguf")}
    assert [path.name for path in elsewhere.iterdir()] == ["mine.gguf"]
    assert (tmp_path / "precious/file").exists()
    assert [path.name for path in bed.home.iterdir()] == ["models"]


async def test_other_machines_that_ran_rbee_from_this_home_are_named(bed: Bed) -> None:
    bed.write(*OURS)
    lines = [{"host": host, "model": '"host": "trap"'} for host in (os.uname().nodename, "gpu 2", "gpu 2", "gpu1")]
    (bed.home / "log/audit.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = await bed.uninstall()
    assert outcome.other_hosts == ("gpu 2", "gpu1")
    assert any("on gpu 2, gpu1 too" in text for text in remarks(Node("local"), outcome))
    assert (await bed.uninstall()).other_hosts == ()


@pytest.mark.parametrize("words", [b"what\0", b"home file x /y\0", b"process x 1 hive\0", b"\xff\xfe\0"])
def test_nonsense_is_refused(words: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        parse(words + END, "/home/bee/.rbee/node")
    assert caught.value.code is ErrorCode.INVALID_RESPONSE


@pytest.mark.parametrize("output", [b"", b"process 1 2 3 hive\0", b"home folder 0 /home/bee/.rbee/node/log\0"])
def test_an_answer_that_was_cut_short_is_refused(output: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        parse(output, "/home/bee/.rbee/node")
    assert caught.value.code is ErrorCode.INVALID_RESPONSE


def test_a_name_that_is_no_text_is_shown_and_stays() -> None:
    traces = parse(b"models file 4 /home/x/models/\xff\n.gguf\0" + END, "/home/x")
    assert isinstance(traces, Traces)
    assert len(traces.foreign) == 1
    assert traces.removable(models=True) == ()
