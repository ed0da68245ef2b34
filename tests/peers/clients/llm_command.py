"""Simon Willison's `llm`: the command, with the model in its file of OpenAI-like models, and its library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.peers.clients.checks import BASE, KEY, MODEL, check, main

FOLDER = Path(tempfile.mkdtemp(prefix="rbee-llm-"))


def llm(*words: str) -> str:
    FOLDER.joinpath("extra-openai-models.yaml").write_text(
        f"- model_id: bee\n  model_name: {MODEL}\n  api_base: {BASE}\n  api_key_name: bee\n"
        "  supports_schema: true\n  supports_tools: true\n"
    )
    env = {**os.environ, "LLM_USER_PATH": str(FOLDER)}
    command = [sys.executable, "-m", "llm", *words]
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


ASK = ("-m", "bee", "--key", KEY, "-o", "max_tokens", "40", "-o", "temperature", "0")


@check
def the_command_answers_streamed_and_whole() -> None:
    streamed = llm(*ASK, "Say hello.")
    assert streamed
    assert llm(*ASK, "--no-stream", "Say hello.") == streamed


@check
def the_command_asks_for_a_form() -> None:
    schema = json.dumps({"type": "object", "properties": {"legs": {"enum": [6]}}, "required": ["legs"]})
    assert json.loads(llm(*ASK, "--schema", schema, "A bee.")) == {"legs": 6}


@check
def the_command_goes_on_with_a_conversation() -> None:
    assert llm(*ASK, "-c", "And again.")


if __name__ == "__main__":
    main()
