"""`rbee launch`, with stand-ins that look at their environment and ask as the program that they stand for does."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE_S
from tests.testbed.cli import TIMEOUT_S, Rbee
from tests.testbed.node import wait_until

pytestmark = pytest.mark.model

#: Asks once, prints what came and how it was started, and ends with a status of its own.
STAND_IN = """#!/usr/bin/env python3
import json, os, re, sys, urllib.request
env, name = os.environ, os.path.basename(sys.argv[0])
question = {"role": "user", "content": "Say hello."}
if name == "claude":
    path, key, model = "/v1/messages", env["ANTHROPIC_AUTH_TOKEN"], env["ANTHROPIC_MODEL"]
    url, body = env["ANTHROPIC_BASE_URL"] + path, {"messages": [question]}
elif name == "codex":
    settings = " ".join(sys.argv)
    url = re.search('base_url = "([^"]+)"', settings)[1] + "/responses"
    key, model = env["RBEE_API_KEY"], re.search(' model="([^"]+)"', settings)[1]
    body = {"input": "Say hello."}
elif name == "opencode":
    config = json.loads(env["OPENCODE_CONFIG_CONTENT"])
    provider, model = config["provider"]["rbee"], config["model"].partition("/")[2]
    url, key, body = provider["options"]["baseURL"] + "/chat/completions", env["RBEE_API_KEY"], {"messages": [question]}
else:
    model = env["AIDER_MODEL"].partition("/")[2]
    assert json.load(open(env["AIDER_MODEL_METADATA_FILE"]))[env["AIDER_MODEL"]]["max_input_tokens"] == 2048
    url, key = env["OPENAI_API_BASE"] + "/chat/completions", env["OPENAI_API_KEY"]
    body = {"messages": [question]}
headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
limit = {"max_output_tokens": 4} if name == "codex" else {"max_tokens": 4}
request = urllib.request.Request(url, json.dumps({**body, **limit, "model": model}).encode(), headers)
answer = json.load(urllib.request.urlopen(request))
print(json.dumps({"arguments": sys.argv[1:], "answer": answer, "url": url}))
sys.exit(7)
"""
#: Waits for Ctrl-C as an editor does, which goes on.
PATIENT = """#!/bin/sh
trap 'echo interrupted; trap - INT' INT
echo waiting
while :; do sleep 0.1; done
"""


def installed(folder: Path, name: str, text: str) -> dict[str, str]:
    """A program in a folder that is first in PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o700)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_programs_ask_a_gateway_of_their_own(ready_rbee: Rbee, tmp_path: Path) -> None:
    for name in ("aider", "opencode", "codex", "claude"):
        env = installed(tmp_path / "bin", name, STAND_IN)
        result = ready_rbee("launch", name, "--ctx", "2048", "--", "--last", status=7, env=env)
        said = json.loads(result.stdout)
        assert said["arguments"][-1] == "--last"
        assert said["answer"]["model"]
    assert not list(ready_rbee.user_home.iterdir()), "nothing is written into anybody's configuration"
    log = (ready_rbee.home / "log" / "launch.log").read_text().splitlines()
    asked = [json.loads(line) for line in log]
    assert {line["key"] for line in asked if line["kind"] == "request"} == {
        "launch-aider",
        "launch-opencode",
        "launch-codex",
        "launch-claude",
    }


def test_a_model_that_holds_no_first_prompt_is_refused_before_it_is_loaded(ready_rbee: Rbee, tmp_path: Path) -> None:
    env = installed(tmp_path / "bin", "aider", STAND_IN)
    said = ready_rbee("launch", "aider", status=2, env=env).stderr
    assert "was trained for 8,192 tokens" in said
    assert "--ctx 8192" in said
    assert not ready_rbee.local_workers()


def test_ctrl_c_is_the_programs_and_sigterm_ends_both(ready_rbee: Rbee, tmp_path: Path) -> None:
    env = ready_rbee.environment() | installed(tmp_path / "bin", "claude", PATIENT)
    words = [sys.executable, "-m", "rbee", "launch", "claude", "--ctx", "2048"]
    pid, terminal = pty.fork()
    if pid == 0:  # the terminal's foreground
        os.execve(words[0], words, env)
    said = bytearray()

    def heard(word: bytes) -> bool:
        if word not in said:
            said.extend(os.read(terminal, 65536))
        return word in said

    try:
        wait_until(lambda: heard(b"waiting"), TIMEOUT_S, said.decode)
        program = psutil.Process(pid).children()[-1]
        os.write(terminal, b"\x03")
        wait_until(lambda: heard(b"interrupted"), PATIENCE_S, said.decode)
        assert program.is_running()
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 130
        assert not program.is_running()
    finally:
        os.close(terminal)
