"""`rbee batch` at the command line: what is refused before anything is asked, what is shown, and the status."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rbee.cli.main import main
from tests.unit.batch.scripted import ScriptedFleet


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    fleet = ScriptedFleet()
    fleet.known.add("smollm2:135m")
    monkeypatch.setattr("rbee.batch.batch.asker_for", fleet.asker_for)
    monkeypatch.setattr("rbee.batch.look.asker_for", fleet.asker_for)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("RBEE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{\n')
    Path("words.csv").write_text("text\ntea\n")
    return fleet


def test_a_run_and_its_summary(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["batch", "in.jsonl", "--out", "out.jsonl", "--model", "smollm2:135m", "--max-tokens", "7", "--top-k", "3"]
    assert main(words) == 0
    assert re.search(r"2 of 2 lines in out\.jsonl; 2 in \d+ s \(a 2\); 20 tokens", capsys.readouterr().err)
    assert fleet.bodies[0]["model"] == "smollm2:135m"
    assert (fleet.bodies[0]["max_tokens"], fleet.bodies[0]["top_k"]) == (7, 3)


def test_the_summary_as_json(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "in.jsonl", "--out", "out.jsonl", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-2]["event"] == "batch"
    assert (lines[-2]["done"], lines[-2]["total"]) == (2, 2)
    assert lines[-1]["batch"]["by_node"] == {"a": 2}
    assert len(fleet.prompts) == 2


def test_lines_that_failed_are_a_status_of_their_own(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "bad.jsonl", "--out", "out.jsonl"]) == 10
    said = capsys.readouterr().err
    assert "1 of 2 lines failed" in said
    assert "--retry-failed" in said
    assert fleet.prompts == ["a"]


def test_lines_that_are_left_are_told(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.jsonl").write_text('{"prompt": "a"}\n' * 100)
    assert main(["batch", "in.jsonl", "--out", "out.jsonl", "--max-cost-tokens", "50"]) == 10
    assert "lines are left: " in capsys.readouterr().err
    assert len(fleet.prompts) < 20


def test_a_sample_is_a_table(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "words.csv", "--template", "Translate: {text}", "--sample", "5"]) == 0
    shown = capsys.readouterr()
    assert "re: Translate: tea" in shown.out
    assert "all 1 lines would use about 10 tokens" in shown.err
    assert fleet.prompts == ["Translate: tea"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["in.jsonl"], "there is no --out"),
        (["none.jsonl", "--out", "o"], "cannot read none.jsonl: No such file or directory"),
        (["-", "--out", "o"], "not standard input"),
        (["in.jsonl", "--out", "in.jsonl"], "the output is the input"),
        (["in.jsonl", "--out", "o", "--order", "none"], "--order: 'none' is neither input nor finished"),
        (["in.jsonl", "--out", "o", "--restart", "--retry-failed"], "--restart and --retry-failed were given"),
        (["in.jsonl", "--out", "o", "--template", "{text"], "--template: "),
        (["in.jsonl", "--out", "o", "--slots", "4"], "options of loading need --model"),
        (["in.jsonl", "--out", "o", "--give-up", "soon"], "--give-up: "),
        (["in.jsonl", "--out", "o", "--schema", "{"], "the value of --schema is not JSON"),
        (["in.jsonl", "--out", "o", "--node", "@none"], "no node has the tag 'none'"),
        (["words.csv", "--out", "o", "--template", "{txt}"], "no field 'txt'; did you mean {text}? there are: text"),
        (["words.csv", "--out", "o"], "has no column prompt"),
    ],
)
def test_what_is_refused_before_anything_is_asked(
    fleet: ScriptedFleet, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", *words]) == 2
    assert why in capsys.readouterr().err
    assert fleet.prompts == []
    assert not Path("o").exists()
