"""`rbee keys`, `rbee usage` and `rbee serve` on a command line: what they print, refuse and leave."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import stat
from pathlib import Path

import pytest

from rbee.cli import main as cli
from rbee.gateway.access.keys import hash_of, read_keys
from rbee.gateway.records import usage
from rbee.gateway.records.usage import Counts, Row
from rbee_remote.protocol.audit import AUDIT_LOG
from tests.doubles.certificate import make_certificate


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RBEE_INVENTORY", "RBEE_WHEEL_CACHE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RBEE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# --- keys -------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_stays_as_a_hash(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert run(capsys, "keys", "list") == (0, "NAME  FINGERPRINT  MODELS  CONCURRENCY  RPM  PRIORITY  ADDED\n", "")
    words = ("--model", "b", "-m", "a", "--concurrency", "2", "--rpm", "30", "--priority", "low")
    status, out, err = run(capsys, "keys", "add", "alice", *words)
    assert status == 0
    assert re.fullmatch(r"rbee-[0-9a-f]{64}\n", out)
    assert "not shown again" in err
    key = read_keys(home / "keys.toml")["alice"]
    assert key.sha256 == hash_of(out.strip())
    assert (key.models, key.concurrency, key.rpm, key.priority) == (frozenset("ab"), 2, 30, "low")
    assert stat.S_IMODE((home / "keys.toml").stat().st_mode) == 0o600
    _, out, _ = run(capsys, "keys", "list")
    assert out.splitlines()[1].split() == ["alice", key.fingerprint, "a,", "b", "2", "30", "low", key.added]
    everything = "".join(path.read_text() for path in home.rglob("*") if path.is_file())
    assert "rbee-" not in everything


def test_a_key_for_a_name_that_nothing_has_is_made_and_told(
    capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "i.toml").write_text("[models.coder]\nmodel = 'smollm2:135m'\n")
    words = ("-i", "i.toml", "-m", "coder", "-m", "SmolLM2:135m", "-m", "hf:a/b:Q4", "-m", "smolm2:135m", "-m", "gpt-4")
    status, _, err = run(capsys, "keys", "add", "alice", *words)
    assert status == 0
    assert err.splitlines()[:-1] == [
        "the key is for 'smolm2:135m', which is neither an alias nor a built-in model yet; did you mean smollm2:135m?",
        "the key is for 'gpt-4', which is neither an alias nor a built-in model yet",
    ]
    assert (home / "keys.toml").exists()


def test_keys_as_json_and_in_another_file(capsys: pytest.CaptureFixture[str], tmp_path: Path, home: Path) -> None:
    file = ("--keys", str(tmp_path / "team.toml"))
    _, out, _ = run(capsys, "keys", "add", "bob", "--json", *file)
    made = json.loads(out)
    assert made["key"].startswith("rbee-")
    assert (made["name"], made["models"], made["rpm"]) == ("bob", [], None)
    _, out, _ = run(capsys, "keys", "list", "--json", *file)
    assert [each["fingerprint"] for each in json.loads(out)] == [made["fingerprint"]]
    status, _, err = run(capsys, "keys", "revoke", "bob", *file)
    assert (status, err) == (0, "revoked the key bob\n")
    assert read_keys(tmp_path / "team.toml") == {}
    assert not (home / "keys.toml").exists()
    audited = [json.loads(line) for line in (home / "log" / AUDIT_LOG).read_text().splitlines()]
    assert [(line["action"], line["key"], line["fingerprint"]) for line in audited] == [
        ("key.add", "bob", made["fingerprint"]),
        ("key.revoke", "bob", made["fingerprint"]),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("revoke", "alice"), "no API key 'alice'"),
        (("add", "a b"), "cannot name an API key"),
        (("add", "a", "--rpm", "0"), "rpm"),
        (("add", "a", "--priority", "urgent"), "priority"),
        (("list", "--keys", "none.toml"), "which is to hold API keys"),
    ],
)
def test_what_keys_refuses(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    status, out, err = run(capsys, "keys", *words)
    assert (status, out) == (2, "")
    assert message in err
    assert "hint: " in err


# --- usage ------------------------------------------------------------------------------------------------------


def test_usage_as_a_table_and_as_json(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    status, out, _ = run(capsys, "usage")
    assert (status, out.split()) == (
        0,
        ["KEY", "REQUESTS", "FAILED", "TOKENS", "IN", "CACHED", "TOKENS", "OUT", "SECONDS"],
    )
    counts = Counts(3, 1, 100, 60, 11, 1.55)
    usage.write(
        home / "usage.db", {Row("2026-11-01", "", "m", "gpu1"): counts, Row("2026-11-02", "a", "m", "x"): counts}
    )
    _, out, _ = run(capsys, "usage")
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["-", "3", "1", "100", "60", "11", "1.6"],
        ["a", "3", "1", "100", "60", "11", "1.6"],
    ]
    _, out, _ = run(capsys, "usage", "--by", "day", "--since", "2026-11-02", "--json")
    assert json.loads(out) == [
        {"day": "2026-11-02", "requests": 3, "failed": 1, "tokens_in": 100, "tokens_cached": 60, "tokens_out": 11,
         "seconds": 1.55}
    ]  # fmt: skip
    assert run(capsys, "usage", "--since", "24h")[0] == 0


@pytest.mark.parametrize("words", [("--since", "yesterday"), ("--since", "2026-13-01"), ("--by", "week")])
def test_what_usage_refuses(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    status, _, err = run(capsys, "usage", *words)
    assert status == 2
    assert "hint: " in err


# --- serve ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("--listen", "11435"), "'11435' is no address", "0.0.0.0:11435"),
        (("--tls-cert", "x.pem"), "belong together", "give both"),
        (("--cors", "*"), "'*' is no origin", "https://chat.example:8443"),
        (("--cors", "https://chat.example/"), "is no origin", "scheme, host and port alone"),
        (("--nodes", "@none"), "no node has the tag 'none'", "tags in use"),
    ],
)
def test_what_serve_refuses_before_anything_is_begun(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str, hint: str, home: Path
) -> None:
    status, out, err = run(capsys, "serve", *words)
    assert (status, out) == (2, "")
    assert message in err
    assert hint in err
    assert not home.exists()


def unit(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as configparser's documentation has it
    parser.read_string(text)
    return parser


def test_install_shows_a_unit_for_these_options_and_installs_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, home: Path
) -> None:
    make_certificate(tmp_path, "one")
    words = ["--listen", "[::1]:8000", "--socket", "a b.sock", "--tls-cert", "one.pem", "--tls-key", "one.key"]
    status, out, _ = run(capsys, "serve", "--install", "--cors", "https://Chat.example", "--nodes", "all", *words)
    assert status == 0
    service = unit(out)["Service"]
    assert service["Environment"] == f"RBEE_HOME={home}"
    assert shlex.split(service["ExecStart"])[1:] == [
        "serve", "--listen", "[::1]:8000", "--socket", f"{tmp_path}/a b.sock", "--nodes", "all",
        "--tls-cert", f"{tmp_path}/one.pem", "--tls-key", f"{tmp_path}/one.key", "--cors", "https://chat.example",
    ]  # fmt: skip
    assert (service["KillMode"], service["TimeoutStopSec"]) == ("process", "45")
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert "systemctl --user enable --now rbee-serve" in out
    assert not home.exists()


def test_a_unit_finds_the_builds_of_llama_cpp_that_are_found_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBEE_WHEEL_CACHE", "wheels")
    _, out, _ = run(capsys, "serve", "--install")
    assert f"Environment=RBEE_WHEEL_CACHE={tmp_path}/wheels\n" in out


def test_install_without_options_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "serve", "--install", "--json")
    assert shlex.split(unit(json.loads(out)["service"])["Service"]["ExecStart"])[1:] == ["serve"]
