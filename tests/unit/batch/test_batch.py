"""A whole run, its fleet a script: what is asked, what is written, what ends it, and how it goes on."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import NodeError, UsageError
from rbee.base.events import BatchProgress, Event, Notice
from rbee.batch import crew as crew_module
from rbee.batch.batch import batch
from rbee.batch.defaults import Defaults
from rbee.batch.journal import ahead_of
from rbee.batch.look import look
from rbee.batch.reading import Input
from rbee.batch.request import BatchRequest, Summary
from rbee.batch.template import Template
from rbee.gateway.base.views import NodeState
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S
from tests.unit.batch.scripted import ScriptedFleet, context_in
from tests.unit.gateway.views import node_view


class Bench:
    """A folder with an input, and a fleet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source, self.out = folder / "in.jsonl", folder / "out.jsonl"
        self.fleet = ScriptedFleet()
        self.events: list[Event] = []

    def write(self, *lines: Any) -> None:
        texts = (each if isinstance(each, str) else json.dumps(each) for each in lines)
        self.source.write_text("".join(f"{text}\n" for text in texts))

    async def run(self, **options: Any) -> Summary:
        template = options.pop("template", None)
        asked = BatchRequest(Input(self.source, template), self.out, **options)
        async with asyncio.timeout(PATIENCE_S):
            return await batch(context_in(self.folder, self.events), asked)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_bytes().splitlines()]

    @property
    def notices(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, Notice))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Pauses are short."""
    bench = Bench(tmp_path)
    monkeypatch.setattr("rbee.batch.batch.asker_for", bench.fleet.asker_for)
    monkeypatch.setattr("rbee.batch.look.asker_for", bench.fleet.asker_for)
    monkeypatch.setattr("rbee.batch.verdict.BATCH_PAUSE_S", 0.001)
    monkeypatch.setattr("rbee.batch.verdict.BATCH_LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(crew_module, "LOOK_S", 0.01)
    return bench


async def test_every_line_is_answered_in_order(bench: Bench) -> None:
    bench.write(*({"prompt": f"p{number}"} for number in range(50)))
    summary = await bench.run()
    assert (summary.total, summary.done, summary.failed, summary.tokens) == (50, 50, 0, 500)
    assert summary.by_node == {"a": 50}
    assert [line["custom_id"] for line in bench.lines] == [str(number) for number in range(1, 51)]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in bench.lines]
    assert texts == [f"re: p{number}" for number in range(50)]
    assert 8 <= bench.fleet.most <= 10
    assert isinstance(bench.events[-1], BatchProgress)


async def test_a_run_that_is_done_asks_nothing(bench: Bench) -> None:
    bench.write({"prompt": "p"})
    await bench.run()
    before = bench.out.read_bytes()
    assert (await bench.run()).answered == 0
    assert len(bench.fleet.prompts) == 1
    assert bench.out.read_bytes() == before


@pytest.mark.parametrize("slots", [1, 8])
async def test_more_is_ahead_than_may_be_where_a_run_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """The first line was slow, and others lie ahead of it."""
    monkeypatch.setattr(crew_module, "MOST_AHEAD", 3)
    bench.fleet = ScriptedFleet(slots=slots)
    monkeypatch.setattr("rbee.batch.batch.asker_for", bench.fleet.asker_for)
    bench.write(*({"prompt": f"p{number}"} for number in range(12)))
    await bench.run()
    lines = bench.out.read_bytes().splitlines(keepends=True)
    bench.out.write_bytes(b"")
    ahead_of(bench.out).write_bytes(b"".join(lines[1:6]))
    summary = await bench.run()
    assert (summary.done, summary.stopped) == (12, "")
    assert [line["custom_id"] for line in bench.lines] == [str(number) for number in range(1, 13)]


async def test_bad_lines_are_errors_and_end_nothing(bench: Bench) -> None:
    bench.write({"prompt": "a", "custom_id": "x"}, "{", "", {"prompt": "b", "custom_id": "x"}, {"text": "c"})
    summary = await bench.run()
    assert (summary.total, summary.done, summary.failed) == (4, 4, 2)
    errors = [line["error"] and (line["error"]["code"], line["error"]["line"]) for line in bench.lines]
    assert errors == [None, ("invalid_line", 2), None, ("invalid_line", 5)]
    assert "2 lines ask for nothing" in bench.notices
    assert "line 2: it is not JSON" in bench.notices
    assert "1 line has the custom_id of another one" in bench.notices


async def test_what_a_worker_refuses_has_failed_at_once(bench: Bench) -> None:
    async def script(prompt: str) -> tuple[int, str]:
        return (400, "USAGE") if prompt == "bad" else (200, "well")

    bench.fleet.script = script
    bench.write({"prompt": "good"}, {"prompt": "bad"})
    assert (await bench.run()).failed == 1
    assert bench.lines[1]["error"] == {"code": "USAGE", "message": "usage", "line": 2}
    assert bench.lines[1]["response"]["status_code"] == 400
    assert bench.fleet.prompts.count("bad") == 1


async def test_a_line_that_workers_die_of_fails_and_others_do_not(bench: Bench) -> None:
    async def script(prompt: str) -> tuple[int, str]:
        await asyncio.sleep(0)
        return (503, "WORKER_CRASHED") if prompt == "poison" else (200, "well")

    bench.fleet.script = script
    bench.write({"prompt": "poison"}, *({"prompt": f"p{number}"} for number in range(20)))
    summary = await bench.run(retries=2)
    assert (summary.failed, summary.again) == (1, 2)
    assert bench.lines[0]["rbee"]["tries"] == 3
    bench.fleet.script = ScriptedFleet().script
    assert (await bench.run(retries=2, retry_failed=True)).failed == 0
    assert [line["custom_id"] for line in bench.lines] == [str(number) for number in range(1, 22)]


async def test_a_fleet_that_is_away_costs_no_line(bench: Bench) -> None:
    tries = 0

    async def script(_: str) -> tuple[int, str]:
        nonlocal tries
        tries += 1
        return (503, "CONNECTION_LOST") if tries < 40 else (200, "well")

    bench.fleet.script = script
    bench.write(*({"prompt": f"p{number}"} for number in range(10)))
    summary = await bench.run(retries=0)
    assert (summary.done, summary.failed) == (10, 0)


async def test_a_run_ends_where_nobody_answers_for_long(bench: Bench) -> None:
    async def script(_: str) -> tuple[int, str]:
        return 503, "CONNECTION_LOST"

    bench.fleet.script = script
    bench.write({"prompt": "p"})
    with pytest.raises(NodeError, match="no node gives an answer: connection_lost") as caught:
        await bench.run(give_up_s=0.01)
    assert caught.value.code is ErrorCode.CONNECTION_LOST
    assert "goes on from here" in caught.value.hint
    assert bench.lines == []


async def test_a_model_that_is_not_known_ends_the_run_before_anything_is_asked(bench: Bench) -> None:
    bench.write({"body": {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}})
    with pytest.raises(NodeError, match="there is no model 'gpt-4o'") as caught:
        await bench.run()
    assert "--model NAME" in caught.value.hint
    assert bench.fleet.prompts == []


async def test_a_model_may_be_on_a_node_that_is_away(bench: Bench) -> None:
    tries = 0

    async def script(_: str) -> tuple[int, str]:
        nonlocal tries
        tries += 1
        if tries == 3:
            bench.fleet.nodes = bench.fleet.nodes[:1]
        return (404, "MODEL_NOT_FOUND") if tries < 3 else (200, "well")

    bench.fleet.script = script
    bench.fleet.nodes += (node_view("b", state=NodeState.DOWN),)
    bench.write({"body": {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}})
    assert (await bench.run()).failed == 0


async def test_tokens_have_a_limit_over_all_runs(bench: Bench) -> None:
    bench.write(*({"prompt": f"p{number}"} for number in range(100)))
    summary = await bench.run(most_tokens=200)
    assert summary.stopped == f"{summary.tokens} tokens were used, of 200 (--max-cost-tokens)"
    assert 20 <= summary.done <= 30
    again = await bench.run(most_tokens=200)
    assert again.answered == 0
    assert (await bench.run(most_tokens=10_000)).done == 100
    assert len(bench.fleet.prompts) == 100


async def test_other_options_are_another_run(bench: Bench) -> None:
    bench.write({"prompt": "p"})
    await bench.run()
    for options in ({"defaults": Defaults(system="x")}, {"template": Template.parse("{prompt}!")}):
        with pytest.raises(UsageError, match="other options"):
            await bench.run(**options)
    bench.write({"prompt": "q"})
    with pytest.raises(UsageError, match="another input"):
        await bench.run()
    assert (await bench.run(restart=True)).done == 1
    assert bench.fleet.prompts == ["p", "q"]


async def test_rows_of_a_table(bench: Bench, tmp_path: Path) -> None:
    bench.source = tmp_path / "in.csv"
    bench.source.write_text('\ufefftext,custom_id\n"tea, hot\nor cold",a\nonly one\nmilk,b\n')
    summary = await bench.run(template=Template.parse("Translate: {text}"))
    assert (summary.done, summary.failed) == (3, 1)
    assert sorted(bench.fleet.prompts) == ["Translate: milk", "Translate: tea, hot\nor cold"]
    assert [line["custom_id"] for line in bench.lines] == ["a", None, "b"]
    assert bench.lines[1]["error"]["message"] == "the row has 1 fields, and the head of the table 2"


async def test_columns_are_checked_before_anything_is_asked(bench: Bench, tmp_path: Path) -> None:
    bench.source = tmp_path / "in.tsv"
    bench.source.write_text("text\tid\nx\ty\n")
    with pytest.raises(UsageError, match=r"no field 'txt'; did you mean \{text\}"):
        await bench.run(template=Template.parse("{txt}"))
    with pytest.raises(UsageError, match="no column prompt") as caught:
        await bench.run()
    assert "columns: text, id" in caught.value.hint
    assert not bench.out.exists()


async def test_what_is_no_input(bench: Bench) -> None:
    with pytest.raises(UsageError, match="No such file"):
        await bench.run()
    bench.write()
    with pytest.raises(UsageError, match="has no lines"):
        await bench.run()
    with pytest.raises(UsageError, match="has no lines"):
        await look(context_in(bench.folder, bench.events), BatchRequest(Input(bench.source), bench.out), 3)
    bench.out = bench.source
    bench.write({"prompt": "x"})
    with pytest.raises(UsageError, match="the output is the input"):
        await bench.run()
    bench.source = ahead_of(bench.out)
    bench.write({"prompt": "x"})
    with pytest.raises(UsageError, match="the output is the input"):
        await bench.run(restart=True)
    assert bench.source.read_bytes()
    for out in (Path(), Path("/"), bench.folder / ("x" * 300), bench.folder / "none" / "out.jsonl"):
        bench.out = out
        with pytest.raises(UsageError, match="cannot write"):
            await bench.run()
    bench.source = Path("-")
    with pytest.raises(UsageError, match="not standard input"):
        await bench.run()


async def test_a_sample_asks_lines_here_and_there_and_writes_nothing(bench: Bench) -> None:
    bench.write(*({"prompt": f"p{number}"} for number in range(101)))
    asked = BatchRequest(Input(bench.source), bench.out)
    found = await look(context_in(bench.folder, bench.events), asked, 3)
    assert [(line.number, line.text) for line in found.lines] == [(1, "re: p0"), (51, "re: p50"), (101, "re: p100")]
    assert found.whole.tokens == 1010
    assert not bench.out.exists()


async def test_more_lines_go_at_once_as_workers_come(bench: Bench) -> None:
    async def script(prompt: str) -> tuple[int, str]:
        if prompt == "p20":
            bench.fleet.nodes += tuple(replace(bench.fleet.nodes[0], name=name) for name in "bcd")
        while int(prompt[1:]) >= 20 and bench.fleet.most < 40:
            await asyncio.sleep(0.005)
        return 200, "well"

    bench.fleet.script = script
    bench.write(*({"prompt": f"p{number}"} for number in range(400)))
    await bench.run()
    assert bench.fleet.most == 40
