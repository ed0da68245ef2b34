"""What a command line says of a process: ours is what `payload_command` makes, and nothing that only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.system.command import PayloadCommand, payload_command, read_command

HOME = "/home/bee/.rbee/node"
ZIP = f"{HOME}/payloads/0123456789abcdef.zip"


def test_a_worker_says_what_it_is_who_started_it_and_where_it_belongs() -> None:
    words = ["/x/bin/python3.11", "-I", ZIP, "worker", "--id=00aa", "--owner=12.345", "--home=/h", "--run-dir", "/r"]
    read = read_command(words)
    assert read == PayloadCommand(ZIP, "0123456789abcdef", "worker", "00aa", "12.345", "/h", "/r")


def test_the_place_of_the_payload_says_the_home_where_no_option_does() -> None:
    read = read_command(["python", "-I", ZIP, "download", "--target", "/t"])
    assert read is not None
    assert (read.home, read.command, read.owner) == (HOME, "download", "")


def test_what_this_code_starts_is_known_again() -> None:
    read = read_command(payload_command("hive", "--home", "/h", "--run-dir", "/r", "--detach"))
    assert read is not None
    assert (read.command, read.home, read.run_dir) == ("hive", "/h", "/r")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["vim", ZIP],
        ["less", "-I", ZIP, "worker"],
        ["grep", "-I", ZIP, "hive"],
        ["python3", ZIP, "worker"],
        ["python3", "-I", ZIP],
        ["sh", "-c", f"python3 -I {ZIP} worker"],
        ["python3", "-c", f"import os; os.execvp('python3', ['python3', '-I', '{ZIP}', 'worker'])"],
        ["python3", "-I", "-c", "print(1)", HOME, "worker", "--owner=1.2"],
        ["python3", "-I", f"{HOME}/payloads/mine.zip", "worker"],
        ["python3", "-I", f"{HOME}/0123456789abcdef.zip", "worker"],
        ["python3", "-I", "payloads/0123456789abcdef.zip", "worker"],
        ["python3-config-helper", "-I", ZIP, "worker"],
    ],
)
def test_a_process_that_only_mentions_our_names_is_none_of_ours(words: list[str]) -> None:
    assert read_command(words) is None


@given(st.lists(st.text(max_size=12) | st.sampled_from(["python3", "-I", "-c", ZIP, "--home", "--id=", "worker"])))
def test_no_command_line_whatever_breaks_it(words: list[str]) -> None:
    read = read_command(words)
    assert read is None or read.command in words
