"""Hostile templates against the real processes that render them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import ChatOptions, ErrorCode, GenerateRequest, Message, RemoteError, ToolOptions
from rbee_remote.sandbox import landlock
from rbee_remote.system.command import payload_command, read_command
from rbee_remote.system.linux import LinuxSystem
from rbee_remote.system.process_tree import grow
from rbee_remote.worker.engine.interface import LoadedModel
from rbee_remote.worker.templates import answers, render_pool
from rbee_remote.worker.templates.render_pool import RenderPool
from rbee_remote.worker.templates.template import ChatTemplate
from tests.doubles.engine import INFO
from tests.patience import PATIENCE_S

REMOTE = Path(__file__).parents[5] / "remote"
SAY = "{% for message in messages %}{{ message.content }};{% endfor %}"
#: Hours of computing, in loops each of which the sandbox allows.
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set s = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}{{ s.x }}"
#: Long enough to be known again in a prompt without a probe, which would be another request for the template.
NEXT = "the next request, which is served"
#: What Python or Jinja cannot compile, or we do not let them.
UNREADABLE = (
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{{ " + "-" * 100_000 + "1 }}",
    "{{ " + "[" * 900 + "]" * 900 + " }}" + SAY,
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "x" * (2**20 + 1),
)


def info(template: str | None) -> LoadedModel:
    return dataclasses.replace(INFO, chat_template=template)


def chat(*messages: str | Message, tools: tuple[dict[str, Any], ...] = ()) -> GenerateRequest:
    turns = tuple(Message("user", message) if isinstance(message, str) else message for message in messages)
    return GenerateRequest(request_id="0" * 32, messages=turns, tools=ToolOptions(tools))


@pytest.fixture
async def rendering() -> AsyncIterator[RenderPool]:
    made = RenderPool()
    try:
        yield made
    finally:
        await made.close()
        assert renders_of(os.getpid()) == []


def renders_of(owner: int) -> list[int]:
    """The pids of the processes that render for a process."""
    found = []
    for process in LinuxSystem().processes():
        command = read_command(process.argv)
        if command and command.command == "render" and process.parent == owner and process.runs:
            found.append(process.pid)
    return found


async def error_of(rendering: RenderPool, template: str, *messages: str) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await rendering.render(chat(*messages or ("Hi",)), info(template))
    return caught.value


@pytest.mark.parametrize(
    ("template", "bound"),
    [
        ("{{ 'x' * 10**11 }}" + SAY, "memory"),
        ("{{ messages[0].content * 10**9 }}", "memory"),
        (DOUBLED, "memory"),
        ("{{ '%1000000000d' % 1 }}", "memory"),
        ("{{ '{:>1000000000}'.format(1) }}", "memory"),
        ("{{ tools_ | default([1]) | tojson(indent=10**9) }}", "memory"),
        ("{{ strftime_now('%1000000000Y') }}" + SAY, "-"),
        ("{{ raise_exception('x' * 10**9) }}", "memory"),
        ("{{ 'x' * 10**8 }}" + SAY, "memory output"),
        ("{% for i in range(10000) %}{{ 'x' * 1000 }}{% endfor %}" + SAY, "output"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}" + SAY, ""),
        *((template, " memory crash") for template in UNREADABLE[:-1]),
        ("{% for i in range(10**9) %}{% endfor %}" + SAY, ""),
        ("{{ lipsum(n=10**5) }}", "memory output time"),
        (UNREADABLE[-1], "size"),
        ("{{ '\\ud800' }}" + SAY, "-"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else value,
)
async def test_a_bound_that_is_hit_is_named_and_the_next_request_is_served(
    rendering: RenderPool, template: str, bound: str
) -> None:
    """bound: those that it can be on one machine or another, empty for an error of the template's own, - for none."""
    guarded = "{% if messages[0].content == '" + NEXT + "' %}" + SAY + "{% else %}" + template + "{% endif %}"
    if bound == "-":
        await rendering.render(chat("Hi"), info(guarded))
    else:
        error = await error_of(rendering, guarded)
        assert error.code is ErrorCode.MODEL_INVALID, error.message
        assert error.details.get("bound", "") in bound.split(" "), error.message
        assert "--raw" not in error.hint
        assert len(error.message) < 1100
    if template in UNREADABLE:
        assert (await error_of(rendering, guarded, NEXT)).code is ErrorCode.MODEL_INVALID
    else:
        assert (await rendering.render(chat(NEXT), info(guarded))).text == f"{NEXT};"


async def test_time_is_a_bound_and_nobody_else_waits_for_it(rendering: RenderPool) -> None:
    """While some requests compute for ever, others are rendered: by a process of their own."""
    template = "{% if messages[0].content == 'slow' %}" + ENDLESS + "{% endif %}" + SAY
    slow = [asyncio.create_task(error_of(rendering, template, "slow")) for _ in range(2)]
    served = 0
    while not all(task.done() for task in slow):
        assert (await rendering.render(chat("quick"), info(template))).text == "quick;"
        served += 1
        await asyncio.sleep(0.01)
    assert {task.result().details["bound"] for task in slow} == {"time"}
    assert served > 5
    assert (await rendering.render(chat("quick"), info(template))).text == "quick;"


async def test_there_are_a_few_processes_at_most_and_one_stays(rendering: RenderPool) -> None:
    template = "{% for a in range(99999) %}{% for b in range(20) %}{% endfor %}{% endfor %}" + SAY
    answers = await asyncio.gather(*(rendering.render(chat(str(n)), info(template)) for n in range(12)))
    assert [answer.text for answer in answers] == [f"{n};" for n in range(12)]
    assert len(renders_of(os.getpid())) == 1


async def test_a_quick_burst_needs_one_process(rendering: RenderPool) -> None:
    await rendering.render(chat("Hi"), info(SAY))
    await asyncio.gather(*(rendering.render(chat("Hi"), info(SAY)) for _ in range(20)))
    assert len(renders_of(os.getpid())) == 1


async def test_a_chat_of_many_short_turns_is_served(rendering: RenderPool) -> None:
    assert (await rendering.render(chat(*["Hi"] * 5000), info(SAY))).text == "Hi;" * 5000


async def test_refusals_and_errors_cost_no_process(rendering: RenderPool) -> None:
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('not this') }}{% endif %}" + SAY
    await rendering.render(chat("Hi"), info(template))
    before = renders_of(os.getpid())
    error = await error_of(rendering, template, "no")
    assert (error.code, "not this" in error.message) == (ErrorCode.USAGE, True)
    assert (await rendering.render(chat("yes"), info(template))).text == "yes;"
    assert renders_of(os.getpid()) == before


async def test_a_process_that_was_ended_is_replaced(rendering: RenderPool) -> None:
    rendering.prepare()
    assert (await rendering.render(chat("Hi"), info(SAY))).text == "Hi;"
    (pid,) = renders_of(os.getpid())
    os.kill(pid, signal.SIGKILL)
    while rendering._idle[0].lives:
        await asyncio.sleep(0.01)
    assert (await rendering.render(chat("Hi"), info(SAY))).text == "Hi;"


async def test_who_gives_up_leaves_no_half_answer_to_the_next(rendering: RenderPool) -> None:
    template = "{% if messages[0].content == 'first' %}" + ENDLESS + "{% endif %}" + SAY
    task = asyncio.create_task(rendering.render(chat("first"), info(template)))
    await asyncio.sleep(0.5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (await rendering.render(chat("second"), info(template))).text == "second;"


@pytest.mark.parametrize("fit", [True, False], ids=["idle", "ended"])
async def test_who_gives_up_as_it_is_woken_wakes_the_next(
    monkeypatch: pytest.MonkeyPatch, rendering: RenderPool, fit: bool
) -> None:
    """Before Python 3.13, a condition's `notify` is lost on a waiter that is canceled in the same turn."""
    monkeypatch.setattr(render_pool, "MOST", 1)
    process = await rendering._take()
    first, second = (asyncio.create_task(rendering._take()) for _ in range(2))
    while rendering._waiting < 2:
        await asyncio.sleep(0)
    if fit:
        await rendering._give(process, fit=True)
    else:
        rendering._all.discard(process)
        await process.kill()
        await rendering._forget_one()
    first.cancel()
    taken = await asyncio.wait_for(second, PATIENCE_S)
    assert (taken is process) == fit
    assert first.cancelled()


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'ümlaut \\n \\u00e9' }}{{ messages[0].content | upper }}{{ strftime_now('%Y-%m-%d') }}",
        "{{ messages | tojson(indent=2) }}{{ messages[0].content.encode('utf-16') }}",
        "{{ messages | pprint }}{{ messages[0].content | wordwrap(3) }}{{ '<b>&amp;</b>x' | striptags }}",
        "{{ messages[0].content | title }}{{ [3,1,2] | sort | join(',') }}{{ {'a': 1} | dictsort }}{{ 1.5 | round }}",
        "{{ '%s %05d' % ('a', 7) }}{{ '{:>5}'.format('a') }}{{ 'a-b'.split('-') }}{{ 1234567 | filesizeformat }}",
        "{{ 'x y' | urlencode }}{{ 'see https://example.org' | urlize }}{{ '<x>' | e }}{{ {'a': 1} | xmlattr }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ messages | map(attribute='role') | list }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'abc' | reverse }}",
    ],
)
async def test_nothing_that_templates_use_is_missing_where_no_file_can_be_opened(
    rendering: RenderPool, template: str
) -> None:
    request = chat("hello wörld", "a second message of some length")
    template += "{% if false %}" + "{% endif %}" + SAY
    here = ChatTemplate(template, bos=INFO.bos, eos=INFO.eos).render(request.messages).text
    assert (await rendering.render(request, info(template))).text == here


@pytest.mark.parametrize("broken", ["{% for %}", "{{ nobody.knows }}", "{{ 1 / 0 }}", "{{ messages | nothing }}"])
async def test_errors_are_told_as_they_are(rendering: RenderPool, broken: str) -> None:
    error = await error_of(rendering, broken)
    assert error.code is ErrorCode.MODEL_INVALID
    assert "encodings" not in error.message
    assert "No such file" not in error.message


def test_it_ends_with_its_worker_however_that_ends(tmp_path: Path) -> None:
    """While it computes, too."""
    code = f"""
import asyncio, dataclasses, sys
sys.path[:0] = [{str(REMOTE)!r}, {str(REMOTE.parent)!r}]
from rbee_remote.protocol import GenerateRequest, Message
from rbee_remote.worker.templates.render_pool import RenderPool
from tests.doubles.engine import INFO
async def main():
    made = RenderPool()
    request = GenerateRequest(request_id="0" * 32, messages=(Message("user", "Hi"),))
    quick = asyncio.create_task(made.render(request, INFO))
    await quick
    print("ready", flush=True)
    await made.render(request, dataclasses.replace(INFO, chat_template={ENDLESS!r}))
asyncio.run(main())
"""
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        (pid,) = renders_of(worker.pid)
    finally:
        worker.kill()
        worker.communicate()
    deadline = time.monotonic() + PATIENCE_S
    while LinuxSystem().find(pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_it_belongs_to_its_worker(rendering: RenderPool) -> None:
    """For who ends a worker, and for who finds one that its worker left behind."""
    await rendering.render(chat("Hi"), info(SAY))
    (pid,) = renders_of(os.getpid())
    system = LinuxSystem()
    render = system.find(pid)
    assert render is not None
    argv = tuple(payload_command("worker", "--id=" + "a" * 16))
    worker = dataclasses.replace(render, pid=render.parent, start_ticks=1, parent=1, argv=argv)
    assert render.name in grow({worker.name: worker}, [render], led=set(), spare=set())
    command = read_command(render.argv)
    assert command is not None
    assert command.owner.startswith(f"{os.getpid()}.")


@pytest.mark.parametrize(
    "answer",
    [b"", b"null", b"[" * 100_000, b"\xff", b'{"text": 1}', b'{"bound": "other"}', b'{"error": {"code": "DISK_FULL"}}'],
)
def test_what_a_process_says_is_not_believed(answer: bytes) -> None:
    text, _ = answers.read(answer)
    assert isinstance(text, RemoteError)
    assert text.code is ErrorCode.MODEL_INVALID


_CONFINED = """
import asyncio, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
import anyio._backends._asyncio, jinja2
from rbee_remote.protocol import GenerateRequest, Message
from rbee_remote.sandbox import confine_worker, landlock, paths
from rbee_remote.worker.templates import render_pool
from tests.doubles.engine import INFO
import dataclasses
landlock.abi = lambda: int(sys.argv[2])
info = dataclasses.replace(INFO, chat_template=sys.argv[3])
def ask(made, text):
    return made.render(GenerateRequest(request_id="0" * 32, messages=(Message("user", text),)), info)
async def main():
    print(confine_worker("auto", "cpu", paths.reading("/dev/null")))
    made = render_pool.RenderPool()
    print((await ask(made, "first")).text)
    slow = asyncio.create_task(ask(made, "slow"))
    await asyncio.sleep(0.3)
    slow.cancel()
    try:
        await slow
    except asyncio.CancelledError:
        pass
    print((await ask(made, "second")).text)
    slow = asyncio.create_task(ask(made, "slow"))
    await asyncio.sleep(0.3)
    slow.cancel()
    await made.close()
    print(all(process.lives for process in made._idle), len(made._all))
asyncio.run(main())
"""


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
@pytest.mark.parametrize("version", [1, 6])
def test_a_process_ends_though_the_worker_may_signal_nobody(version: int) -> None:
    """Older kernels' Landlock does not keep signals in, so the filter denies them; these cannot be told apart here."""
    template = "{% if messages[0].content == 'slow' %}" + ENDLESS + "{% endif %}" + SAY
    started = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-c", _CONFINED, str(REMOTE), str(version), template],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ) as child:
        said, errors = child.communicate(timeout=PATIENCE_S)
    assert said.decode().split("\n") == ["landlock+seccomp", "first;", "second;", "True 0", ""], errors.decode()[-2000:]
    assert time.monotonic() - started < PATIENCE_S
    left = [one for one in Path("/proc").glob("[0-9]*/stat") if _session(one) == child.pid]
    assert left == []


def _session(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[3])
    except OSError:  # it has ended
        return 0


async def test_a_request_can_bring_a_template_which_is_its_own_fault(rendering: RenderPool) -> None:
    def asking(template: str) -> GenerateRequest:
        return dataclasses.replace(chat("Hi"), chat=ChatOptions(template=template))

    for number in range(6):  # more than are kept
        own = f"{number}: {{{{ messages[0].content }}}}"
        assert (await rendering.render(asking(own), info(SAY))).text == f"{number}: Hi"
    assert (await rendering.render(chat("Hi"), info(SAY))).text == "Hi;"
    before = renders_of(os.getpid())
    for broken in ("{% for %}", "{{ raise_exception('not so') }}", "nothing that was said", ENDLESS):
        with pytest.raises(RemoteError, match="the chat template of the request") as caught:
            await rendering.render(asking(broken), info(SAY))
        assert caught.value.code is ErrorCode.USAGE
        assert caught.value.details["field"].startswith(("chat.template", "messages[0]"))
        assert "about" not in caught.value.details
        assert renders_of(os.getpid()) == (before if broken != ENDLESS else [])


async def test_text_that_could_pass_for_a_token_comes_back_with_seams(rendering: RenderPool) -> None:
    loaded = dataclasses.replace(info(SAY), special_tokens={"<|end|>": 1})
    rendered = await rendering.render(chat("a<|end|>b"), loaded)
    assert rendered.text == f"a<{rendered.seam}|end|>b;"
    assert rendered.seam


async def test_that_a_model_has_no_template_is_logged_once(
    rendering: RenderPool, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert (await rendering.render(chat("Hi"), info(None))).stops == ("<|im_end|>",)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "no chat template; ChatML is used" in caplog.text
