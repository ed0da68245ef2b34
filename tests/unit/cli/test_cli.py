"""The command line: help with examples, exit statuses, the shape of errors, and what `infer` makes of its options."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rbee.base.errors import UsageError
from rbee.cli import main as cli
from rbee.cli.infer import read_prompt
from rbee.cli.models import file_or_ref
from rbee.cli.nodes import make_node
from rbee.cli.shell import Shell, State
from rbee.inventory import load
from rbee.inventory.schema import KEYS
from rbee.registry import Registry
from rbee_remote.protocol.limits import MAX_STOPS

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RBEE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RBEE_INVENTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "nodes.toml"
    path.write_text('# mine\n[nodes.gpu1]\nhost = "192.0.2.11"\nuser = "bee"\nport = 2222\ntags = ["cuda"]\n')
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


EVERY_COMMAND = list(commands(typer.main.get_command(cli.make_app())))


def test_the_commands_of_the_specification_are_there() -> None:
    names = {" ".join(path) for path in EVERY_COMMAND}
    assert names == {
        "bench",
        "chat",
        "gc",
        "infer",
        "launch",
        "logs",
        "serve",
        "uninstall",
        "usage",
        "version",
        *(f"history {name}" for name in ("list", "search", "show", "remove")),
        *(f"keys {name}" for name in ("add", "list", "revoke")),
        *(f"nodes {name}" for name in ("add", "list", "show", "remove", "ping", "check")),
        *(f"workers {name}" for name in ("list", "show", "stop", "sync", "health")),
        *(f"audit {name}" for name in ("list", "verify")),
        *(f"models {name}" for name in ("list", "show", "pull", "push", "rm", "search")),
        *(f"hive {name}" for name in ("status", "stop")),
        *(f"link {name}" for name in ("status", "stop")),
        *(f"self {name}" for name in ("check", "clean")),
        *(f"wheels {name}" for name in ("list", "build", "push", "prune")),
    }


@pytest.mark.parametrize("path", EVERY_COMMAND, ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *path, "--help")
    assert (status, err) == (0, "")
    assert f"Example: rbee {' '.join(path)}" in " ".join(out.split())
    for option in ("--inventory", "--json", "--verbose", "--quiet", "--no-color"):
        assert option in out


@pytest.mark.parametrize("words", [(), ("nodes",), ("--help",)])
def test_a_group_alone_shows_its_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: {' '.join(('rbee', *[word for word in words if word != '--help']))} [OPTIONS]")


@pytest.mark.parametrize(
    "words",
    [
        ("--json", "-i", "FILE", "nodes", "list"),
        ("nodes", "--json", "--inventory", "FILE", "list"),
        ("nodes", "list", "--json", "-i", "FILE"),
        ("--json", "nodes", "list", "-i", "FILE"),
    ],
)
def test_common_options_stand_anywhere(
    words: tuple[str, ...], inventory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, *(str(inventory) if word == "FILE" else word for word in words))
    assert status == 0
    assert [node["name"] for node in json.loads(out)] == ["gpu1", "local"]


def test_nodes_list_and_show(inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "nodes", "list", "-i", str(inventory))
    assert out.splitlines()[1].split() == ["gpu1", "bee@192.0.2.11:2222", "cuda", "auto", "-"]
    _, out, _ = run(capsys, "nodes", "show", "gpu1", "-i", str(inventory))
    assert re.search(r"^keep alive +5m$", out, re.MULTILINE)
    _, out, _ = run(capsys, "nodes", "show", "gpu1", "--json", "-i", str(inventory))
    assert set(json.loads(out)) == {"name", *KEYS}


def test_nodes_add_without_a_check_and_remove(inventory: Path, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    words = ("nodes", "add", "gpu2", "vince@[2001:db8::1]:22", "--tag", "lab", "--jump", "gpu1", "--no-check")
    status, out, err = run(capsys, *words, "-i", str(inventory))
    assert (status, out) == (0, "")
    assert "added gpu2" in err
    node = load(inventory).node("gpu2")
    assert (node.host, node.port, node.user, node.jump) == ("2001:db8::1", 22, "vince", ("gpu1",))
    status, _, err = run(capsys, *words, "-i", str(inventory))
    assert status == 2
    assert "already" in err
    status, out, _ = run(capsys, "nodes", "remove", "gpu2", "--json", "-i", str(inventory))
    assert json.loads(out)["removed"] == "gpu2"
    assert inventory.read_text().startswith("# mine\n[nodes.gpu1]")
    with Registry.open(home / "workers.db") as registry:
        assert registry.rows() == []


def test_the_first_node_makes_the_inventory_in_rbees_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, _ = run(capsys, "nodes", "add", "gpu1", "gpu1.example.org", "--no-check", "-q")
    assert status == 0
    assert load(home / "inventory.toml").node("gpu1").host == "gpu1.example.org"


@pytest.mark.parametrize("padding", ["", "="])
def test_a_host_key_that_was_compared_is_pinned_without_connecting(
    padding: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprint = f"SHA256:{'a' * 43}"
    words = ("nodes", "add", "gpu1", "192.0.2.11", "--no-check", "--host-key", fingerprint + padding, "--json")
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert json.loads(out)["host_key"] == {"fingerprint": fingerprint}
    assert load(home / "inventory.toml").node("gpu1").host_key == fingerprint


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("nodes", "lst"), "no such command 'lst'", "did you mean 'list'? `rbee nodes --help` shows what it takes"),
        (("version", "--jsn"), "no such option: --jsn", "did you mean --json? `rbee version --help`"),
        (("nodes", "show"), "missing argument 'NODE'", "`rbee nodes show --help`"),
        (("nodes", "show", "loca"), "no node 'loca'", "did you mean 'local'?"),
        (("infer", "--max-tokens", "0", "x"), "invalid value for '--max-tokens'", "`rbee infer --help`"),
        (("infer", "--top-p", "3", "x"), "--top-p: 3.0 is not between 0 and 1", ""),
        (("infer", "--temperature", "nan", "x"), "--temperature: nan is not between 0 and 5", ""),
        (("infer", "--temperature", "inf", "x"), "--temperature: inf is not between 0 and 5", ""),
        (("infer", "--top-p", "nan", "x"), "--top-p: nan is not between 0 and 1", ""),
        (("infer", "--min-p", "nan", "x"), "--min-p: nan is not between 0 and 1", ""),
        (("infer", "--top-k", "-1", "x"), "--top-k: -1 is not between 0 and 1000000", ""),
        (("infer", "--repeat-penalty", "0", "x"), "--repeat-penalty: 0.0 is not between 0.1 and 10", ""),
        (("infer", "--seed", "4294967295", "x"), "--seed: 4294967295 is not between 0 and 4294967294", ""),
        (("infer", "--seed", "-5", "x"), "--seed: -5 is not between", ""),
        (("infer", "--seed", "1.5", "x"), "invalid value for '--seed'", ""),
        (("infer", "--stop", "", "x"), "--stop: a text has to have 1 to 256 characters, got 0", ""),
        (("infer", "--stop", "s" * 257, "x"), "--stop: a text has to have 1 to 256 characters, got 257", ""),
        (("infer", *("--stop", "s") * (MAX_STOPS + 1), "x"), f"--stop: at most {MAX_STOPS} texts", ""),
        (("infer", "--timeout", "0", "x"), "--timeout: there is no time in 0", "90s"),
        (("infer", "--timeout", "0ms", "x"), "--timeout: there is no time in 0", ""),
        (("infer", "--timeout", "-5", "x"), "--timeout: '-5' is not a duration", ""),
        (("infer", "--retry", "4", "x"), "invalid value for '--retry'", ""),
        (("infer", "\udcff"), "the prompt is not UTF-8 text (character 0)", ""),
        (("infer", "--system", "a\udcff", "x"), "--system is not UTF-8 text (character 1)", ""),
        (("infer", "--stop", "\udcff", "x"), "--stop is not UTF-8 text", ""),
        (("infer", "--keep-alive", "soon", "x"), "--keep-alive: 'soon' is not a duration", ""),
        (("infer", "--ctx", "most", "x"), "--ctx: 'most' is neither a whole number nor 'auto'", ""),
        (("infer", "--ctx", "8", "x"), "--ctx: 8 is not between 16 and", ""),
        (("infer", "--slots", "0", "x"), "--slots: 0 is not between 1 and 256", ""),
        (("infer", "--kv-type", "q9", "x"), "--kv-type: 'q9' is not a KV cache type", ""),
        (("infer", "--flash-attention", "yes", "x"), "--flash-attention: 'yes' is not a flash attention setting", ""),
        (("infer", "--device", "CUDA0", "--device", "CUDA0", "x"), "--device: an entry is listed twice", ""),
        (("infer", "--tensor-split", "3,x", "x"), "--tensor-split: expected numbers, got 'x'", ""),
        (("infer", "--gpu-layers", "some", "x"), "--gpu-layers: 'some' is neither", ""),
        (("models", "show", "smollm2:135m", "--ctx", "x"), "--ctx: 'x' is neither", ""),
        (("infer", "--raw", "--system", "s", "x"), "--raw takes the prompt as it is", "leave out"),
        (("infer", "--file", "none.txt"), "--file: cannot read none.txt", ""),
        (("infer",), "there is no prompt", "rbee infer"),
        (("models", "push", "local", "./none.gguf"), "there is no file ./none.gguf", "a model's name"),
        (("nodes", "add", "all", "h", "--no-check"), "'all' is reserved", ""),
        (("nodes", "add", "x", "a b", "--no-check"), "host: 'a b' is not a host name", ""),
        (("nodes", "add", "x", "h", "--identity", "none"), "there is no key file", ""),
        (("nodes", "add", "x", "h", "--host-key", "SHA256:short"), "--host-key: 'SHA256:short' is not a finger", ""),
        (("nodes", "add", "x", "h", "--host-key", ":".join(["0a"] * 16)), "--host-key: '0a:", "ssh-keygen -E sha256"),
        (("nodes", "add", "x", "h", "--host-key", "MD5:0a"), "--host-key: 'MD5:0a' is an MD5", "ssh-keygen -E sha256"),
        (("-i", "none.toml", "nodes", "list"), "no inventory at none.toml", "rbee nodes add"),
    ],
)
def test_usage_errors_are_a_line_and_a_hint(
    words: tuple[str, ...], message: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert hint in err
    status, out, err = run(capsys, *words, "--json")
    assert (status, err) == (2, "")
    body = json.loads(out)["error"]
    assert set(body) == {"code", "message", "details", "hint"}
    assert body["message"].startswith(message)


def test_a_bug_is_one_line_with_its_traceback_in_the_log(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.python_version", lambda: 1 / 0)
    status, out, err = run(capsys, "version")
    assert (status, out) == (1, "")
    assert err.startswith("error: this is a bug in rbee\n  error: ZeroDivisionError: division by zero\n")
    assert "Traceback" not in err
    log = home / "log" / "rbee.log"
    assert "ZeroDivisionError" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    status, out, _ = run(capsys, "version", "--json")
    assert json.loads(out)["error"]["code"] == "INTERNAL"


def test_what_a_bug_quotes_steers_no_terminal_that_shows_the_log(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise RuntimeError("the node said \x1b]0;mine\x07 and \u202etxt.exe")

    monkeypatch.setattr("platform.python_version", fail)
    assert run(capsys, "version")[0] == 1
    log = (home / "log" / "rbee.log").read_text()
    assert "the node said \\x1b]0;mine\\x07 and \\u202etxt.exe" in log
    assert not {"\x1b", "\x07", "\u202e"} & set(log)


def test_the_version_by_habit(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == run(capsys, "version")


def test_ctrl_c_is_request_canceled(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("platform.python_version", interrupt)
    assert run(capsys, "version") == (130, "", "error: canceled\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_cancel_a_use_case_which_cleans_up(number: signal.Signals) -> None:
    """Where it is not to be ignored, as it is below `nohup`."""
    before = signal.signal(number, signal.default_int_handler)
    cleaned: list[str] = []

    async def work() -> None:
        import asyncio

        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    try:
        with pytest.raises(KeyboardInterrupt):
            Shell(State()).run(work())
    finally:
        signal.signal(number, before)
    assert cleaned == ["up"]


def test_the_wire_between_prompt_and_stdin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stdin(text: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    stdin(b"from a pipe\n")
    assert read_prompt(None, None) == "from a pipe"
    stdin(b"from a pipe\n")
    assert read_prompt("Summarise:", None) == "Summarise:\n\nfrom a pipe"
    stdin(b"")
    assert read_prompt("alone", None) == "alone"
    (tmp_path / "p.txt").write_text("from a file\n")
    stdin(b"")
    assert read_prompt(None, tmp_path / "p.txt") == "from a file"
    stdin(b"piped")
    assert read_prompt("-", None) == "piped"
    stdin(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_prompt(None, None)
    with pytest.raises(UsageError, match="and --file"):
        read_prompt("x", tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("address", "user", "host", "port"),
    [
        ("gpu1", None, "gpu1", None),
        ("bee@192.0.2.1:2222", "bee", "192.0.2.1", 2222),
        ("2001:db8::1", None, "2001:db8::1", None),
        ("bee@[2001:db8::1]:22", "bee", "2001:db8::1", 22),
        ("[::1]", None, "::1", None),
    ],
)
def test_addresses(address: str, user: str | None, host: str, port: int | None) -> None:
    node = make_node("gpu1", address)
    assert (node.user, node.host, node.port) == (user, host, port)


@pytest.mark.parametrize("address", ["", "@h", "h:", "h:x", "a@b@c", "h:99999", "-oProxyCommand=x", "[::1", "bee@"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError):
        make_node("gpu1", address)


def test_files_and_model_names(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert file_or_ref("m.gguf") == tmp_path / "m.gguf"
    assert file_or_ref("smollm2:135m") == "smollm2:135m"
    assert file_or_ref("hf:a/b:Q4_K_M") == "hf:a/b:Q4_K_M"


def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'remote'}", "PATH": os.environ["PATH"], **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.Popen([sys.executable, "-m", "rbee", *words], env=environment, **pipes)


def test_a_reader_that_hangs_up_ends_it_quietly(inventory: Path) -> None:
    inventory.write_text("".join(f'[nodes.n{i}]\nhost = "h{i}"\n' for i in range(20000)))
    process = start("nodes", "list", "-i", str(inventory))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith(b"NAME")
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_a_full_disk_is_an_error_and_a_closed_stream_is_none() -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("version", stdout=full)
        _, err = process.communicate()
    assert (process.returncode, err.splitlines()[0]) == (5, b"error: cannot write the output: No space left on device")
    closed = start("version", preexec_fn=lambda: os.close(1), stdout=None)
    assert closed.communicate()[1] == b""
    assert closed.returncode == 0


def test_it_works_in_an_empty_environment(tmp_path: Path) -> None:
    out, err = start("version", "--json", env={"RBEE_HOME": str(tmp_path)}).communicate()
    assert err == b""
    assert json.loads(out)["rbee"]


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from rbee.cli.main import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'remote'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = {name.strip("' []\n").partition(".")[0] for name in done.stderr.split(",")}
    assert not loaded & {"asyncio", "asyncssh", "httpcore", "sqlite_utils", "rich", "tomlkit", "huggingface_hub"}


def test_completion_offers_nodes_and_tags(inventory: Path) -> None:
    environment = {
        "_RBEE_COMPLETE": "complete_bash",
        "COMP_WORDS": "rbee infer --node ",
        "COMP_CWORD": "3",
        "RBEE_INVENTORY": str(inventory),
    }
    out, _ = start(env=environment).communicate()
    assert set(out.decode().split()) == {"gpu1", "local", "@cuda"}


@pytest.mark.parametrize("command", ["workers stop 3f9a", "hive stop local", "gc"])
@pytest.mark.parametrize("patience", ["0", "601", "never", "soon"])
def test_a_patience_without_sense_is_refused(capsys: pytest.CaptureFixture[str], command: str, patience: str) -> None:
    status, _, err = run(capsys, *command.split(), "--patience", patience)
    assert status == 2
    assert "--patience" in err
