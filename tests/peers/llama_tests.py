"""llama.cpp's own tests of its server, run against a worker: `python -m tests.peers.llama_tests [FILE…]`.

They come out of the sources that the lock names, into the cache. Prints what they found as the table of README.md
beside this; a file that is about something else than a worker is told with why and not run.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from rbee.setup.base import pip, requirements
from tests.testbed import assets

ROOT = Path(__file__).parents[2]
TESTS = re.compile(r"[^/]+/vendor/llama\.cpp/tools/server/tests/((?:unit/test_\w+|conftest|utils)\.py)")
#: Files whose tests do not apply, and why.
ELSEWHERE = {
    "test_compat_gcp": "the form of one vendor's platform",
    "test_mcp_servers": "llama-server as a client of MCP",
    "test_proxy": "llama-server as a proxy",
    "test_router": "several models behind one address: the gateway",
    "test_security": "keys and CORS: the gateway",
    "test_sleep": "llama-server's way to unload; workers have keep-alive",
    "test_slot_save": "slots that a client saves and restores",
    "test_speculative": "draft models",
    "test_stream": "streams of several models behind one address",
    "test_tools_builtin": "tools that llama-server runs itself",
    "test_vision_api": "pictures",
}
#: Seconds that a test may take: a worker is started for each, on a machine that may be busy.
TEST_S = 180
#: What their tests import besides: nothing is downloaded, and no request outlasts its test, whose thread would be
#: waited for. An adapter from the hub is one of random weights here.
SUPPORT = {
    "wget.py": """
from pathlib import Path
from tests import tiny_adapters

def download(url, out):
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    tiny_adapters.write(Path(out), seed=1)
""",
    "bounded.py": """
import requests
LIMIT = 160

def pytest_collection_finish(session):
    import utils
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    send = requests.Session.request
    def bounded(self, method, url, **values):
        return send(self, method, url, **{**values, "timeout": min(values.get("timeout") or LIMIT, LIMIT)})
    requests.Session.request = bounded
""",
}
#: Why a test fails that is no fault of the worker's: a pattern in its trace.
REASONS = (
    (r"system_fingerprint", "a fingerprint of llama.cpp's build; OpenAI's form here"),
    (
        r"content\W* is None|non empty content delta",
        "null as the first delta's content; empty text here, as OpenAI has it",
    ),
    (r"__verbose", "a field for debugging llama-server"),
    (r"last_progress", "progress of the prompt in the stream"),
    (r"exceed_context_size_error", "llama-server's error type; OpenAI's code here"),
    (r"assert \(?200 == [45]0", "refused there, served here"),
    (r"len\(data\[.tokens.\]\) > 0", "text that was held back comes with no token of its own"),
    (r"<s> ", "the prompt with its control tokens, as it came here"),
    (r"Process-Start-Time|llamacpp:", "llama-server's names of metrics"),
    (r"match_regex|re_content|re_matches", "expects the text of another model"),
    (r"test_server_unix|Name or service not known|died with return code", "a way to listen that is llama-server's"),
    (r'"id" in prob', "the ids of the other likely tokens"),
    (r'"embedding" in res.body\[0\]', "llama-server's own form of `/embeddings`, with a vector for each token"),
    (r"too large|exceeds the available", "the words of an error"),
    (r"n_prompt|n_predict|predicted_n|prompt_tokens|tokens_cached", "expects the tokens of another model"),
)
#: Likewise, a pattern in what was printed.
PRINTED = (
    (r"post_sampling_probs: is not served", "probabilities after sampling"),
    (r'"code": "context_length_exceeded"', "a token for each byte: the prompt has no room in the context"),
    (r"must be a text, the tokens of one", "an empty text, refused here as by OpenAI"),
)


def main(words: list[str]) -> None:
    folder = fetched()
    found = run(folder, [word for word in words if word] or sorted(path.stem for path in folder.glob("unit/test_*.py")))
    sys.stdout.write(table(found))


def fetched() -> Path:
    """The folder with the tests, from the cache; of the archive nothing is run."""
    target = assets.cache_folder() / f"llama-server-tests-{requirements.llama().version}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        archive_path = pip.fetch_locked(requirements.llama(), Path(name) / "sources", on_line=lambda _: None)
        part = Path(name) / "part"
        with tarfile.open(asyncio.run(archive_path)) as archive:
            for member in archive:
                match, file = TESTS.fullmatch(member.name), archive.extractfile(member)
                if match and file:
                    path = part / match[1]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(file.read())
        part.rename(target)
    return target


def run(folder: Path, names: list[str]) -> dict[str, Counter[str]]:
    """What became of each file's tests: passed, skipped, or why not. Those that need a large model are left out."""
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix="rbee-peer-") as name:
        place = Path(name)
        tests, program, report = place / "tests", place / "llama-server", place / "report.xml"
        shutil.copytree(folder, tests, ignore=shutil.ignore_patterns("__pycache__", "tmp"))
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.peers.llama_adapter "$@"\n')
        program.chmod(0o700)
        for file, text in SUPPORT.items():
            (place / file).write_text(text)
        env = {**os.environ, "LLAMA_SERVER_BIN_PATH": str(program)}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "remote"), str(place)])
        for test in names:
            if test not in ELSEWHERE:
                subprocess.run(_command(test, report), cwd=tests, env=env, stdin=subprocess.DEVNULL, check=False)
                found[test] = Counter(map(outcome, ElementTree.parse(report).iter("testcase")))
                report.unlink()
    return found


def _command(test: str, report: Path) -> list[str]:
    options = ["junit_logging=system-out", "timeout_method=signal", "timeout_func_only=true"]
    plugins = ["no:cacheprovider", "bounded"]
    return [
        *(sys.executable, "-m", "pytest", "-q", "-m", "not slow", "--rootdir=.", f"--timeout={TEST_S}"),
        *(word for option in options for word in ("-o", option)),
        *(word for plugin in plugins for word in ("-p", plugin)),
        *(f"--junitxml={report}", f"unit/{test}.py"),
    ]


def outcome(case: ElementTree.Element) -> str:
    failure = case.find("failure") if case.find("failure") is not None else case.find("error")
    if failure is None:
        return "passed" if case.find("skipped") is None else "skipped by itself"
    trace, printed = failure.text or "", case.findtext("system-out") or ""
    if unserved := re.search(r"does not serve (\w+ [\w/-]+)", printed):
        return f"{unserved[1]} is llama-server's own"
    for pattern, why in PRINTED:
        if re.search(pattern, printed):
            return why
    lines = "\n".join(line for line in trace.splitlines() if line.startswith((">", "E")))
    return next((why for pattern, why in REASONS if re.search(pattern, lines)), f"`{lines[:120]}`".replace("\n", " "))


def table(found: dict[str, Counter[str]]) -> str:
    lines = ["| tests | pass | of | why not the others |", "| --- | --- | --- | --- |"]
    for name, counts in found.items():
        applying = counts.total() - counts["skipped by itself"]
        others = "; ".join(f"{count} {why}" for why, count in counts.most_common() if why != "passed")
        lines.append(f"| {name} | {counts['passed']} | {applying} | {others} |")
    lines += [f"| {name} | | 0 | {why} |" for name, why in ELSEWHERE.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
