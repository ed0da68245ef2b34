"""`rbee batch`: a file of prompts over all nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import UsageError
from rbee.cli.aliased import alias_of
from rbee.cli.collected import takes
from rbee.cli.constraints import read_constraints
from rbee.cli.load_options import collect_load_options
from rbee.cli.options import ModelOption, NodeOption, check_text, duration
from rbee.cli.sampling_options import read_sampling, read_stop
from rbee.cli.shell import Shell, command
from rbee_remote.protocol import ErrorCode, LoadOptions

if TYPE_CHECKING:
    from rbee.batch.look import Look
    from rbee.batch.request import BatchRequest, Summary
    from rbee.batch.template import Template

OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Where the answers go, and a run goes on."),
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template", metavar="TEXT", help='The prompt of each line, with names of its fields: "Translate: {text}"'
    ),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system prompt of chats that have none.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", "-n", min=1, metavar="N", help="Tokens of an answer at most, where a line does not say."
    ),
]
OrderOption = Annotated[
    str, typer.Option("--order", metavar="ORDER", help="input: as the input's lines are; finished: as answers come.")
]
CostOption = Annotated[
    int | None,
    typer.Option(
        "--max-cost-tokens", min=1, metavar="N", help="Stop once prompts and answers have used this many tokens."
    ),
]
SampleOption = Annotated[
    int | None,
    typer.Option(
        "--sample", min=1, max=1000, metavar="N", help="Ask N lines, spread over the input, show them, write nothing."
    ),
]
RetriesOption = Annotated[
    int,
    typer.Option("--retries", min=0, max=100, metavar="N", help="Further tries of a line whose workers failed."),
]
RestartOption = Annotated[bool, typer.Option("--restart", help="Throw away what --out has, and begin anew.")]
RetryFailedOption = Annotated[
    bool, typer.Option("--retry-failed", help="Ask the lines again that failed in a run before.")
]
GiveUpOption = Annotated[
    str,
    typer.Option(
        "--give-up", metavar="TIME", help="End when no node has given any answer for so long: 30m, 12h, never."
    ),
]


def register(app: typer.Typer) -> None:
    command(app, "batch", example="rbee batch prompts.jsonl --out answers.jsonl --node @gpu --model qwen3:30b")(batch)


@takes(
    sampling=read_sampling,
    stop=read_stop,
    constraints=read_constraints,
    load=collect_load_options(),
)
def batch(
    shell: Shell,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Requests or prompts, a JSON object a line; or CSV.")],
    out: OutOption = None,
    node: NodeOption = None,
    model: ModelOption = None,
    template: TemplateOption = None,
    sample: SampleOption = None,
    order: OrderOption = "input",
    restart: RestartOption = False,
    retry_failed: RetryFailedOption = False,
    retries: RetriesOption = 3,
    give_up: GiveUpOption = "never",
    max_cost_tokens: CostOption = None,
    system: SystemOption = None,
    max_tokens: MaxTokensOption = None,
    sampling: dict[str, Any],
    stop: tuple[str, ...],
    constraints: dict[str, Any],
    load: LoadOptions,
) -> None:
    """Answer a file of prompts with all nodes at once; started again it goes on where it was."""
    from rbee.base.durations import NEVER
    from rbee.batch.defaults import Defaults
    from rbee.batch.reading import Input
    from rbee.batch.request import BatchRequest

    if order not in ("input", "finished"):
        raise UsageError(f"--order: {order!r} is neither input nor finished")
    if out is None and sample is None:
        raise UsageError("there is no --out", hint="--out answers.jsonl, or --sample 10 for a first look")
    if restart and retry_failed:
        raise UsageError("--restart and --retry-failed were given", hint="leave out one of them")
    if system is not None:
        check_text("--system", system)
    give_up_s = duration(give_up, "--give-up")
    name, aliases = _model(shell, model, load)
    asked = BatchRequest(
        input=Input(file, _template(template)),
        out=out or Path(),
        nodes=node,
        defaults=Defaults(name, system or "", max_tokens, sampling, stop, constraints),
        aliases=aliases,
        in_order=order == "input",
        restart=restart,
        retry_failed=retry_failed,
        retries=retries,
        most_tokens=max_cost_tokens,
        give_up_s=float("inf") if give_up_s in (None, NEVER) else give_up_s or 0.0,
    )
    asked.input.check()
    if sample is not None:
        _sample(shell, asked, sample)
    else:
        _run(shell, asked)


def _template(text: str | None) -> Template | None:
    from rbee.batch.template import Template

    if text is None:
        return None
    check_text("--template", text)
    try:
        return Template.parse(text)
    except ValueError as error:
        raise UsageError(f"--template: {error}") from error


def _model(shell: Shell, model: str | None, load: LoadOptions) -> tuple[str, dict[str, Any]]:
    """The name that all lines get, "" for each its own, and what the gateway is to know it as."""
    from rbee.inventory.aliases import ModelAlias
    from rbee.models.ref import parse_ref

    alias = alias_of(model, shell.inventory)
    if model is None:
        if load != LoadOptions():
            raise UsageError("options of loading need --model", hint="say which model is to be loaded like that")
        return "", {}
    if alias is None:
        ref = parse_ref(model).canonical
        alias = ModelAlias(ref, ref)
    return alias.name, {alias.name: replace(alias, load=load.over(alias.load))}


def _run(shell: Shell, asked: BatchRequest) -> None:
    from rbee.base.errors import NodeError
    from rbee.batch.batch import batch as run_batch

    summary = shell.run(run_batch(shell.context, asked))
    shell.renderer.done(_told(summary, asked), _data(summary))
    if summary.stopped:
        raise NodeError(
            ErrorCode.PARTIAL_FAILURE,
            f"{summary.total - summary.done} lines are left: {summary.stopped}",
            hint="the same command with a higher limit goes on",
        )
    if summary.failed:
        raise NodeError(
            ErrorCode.PARTIAL_FAILURE,
            f"{summary.failed} of {summary.total} lines failed",
            hint=f"they have an error in {asked.out}; --retry-failed asks them again",
        )


def _told(summary: Summary, asked: BatchRequest) -> str:
    from rbee.render.text import clock_time

    nodes = ", ".join(f"{name} {count}" for name, count in sorted(summary.by_node.items()))
    parts = [f"{summary.done} of {summary.total} lines in {asked.out}"]
    if summary.answered:
        parts.append(f"{summary.answered} in {clock_time(summary.seconds)} ({nodes})" if nodes else "")
    parts.append(f"{summary.tokens:,} tokens")
    if summary.again:
        parts.append("1 try again" if summary.again == 1 else f"{summary.again} tries again")
    return "; ".join(filter(None, parts))


def _data(summary: Summary) -> dict[str, Any]:
    from dataclasses import asdict

    return {"batch": asdict(summary) | {"seconds": round(summary.seconds, 3)}}


def _sample(shell: Shell, asked: BatchRequest, wanted: int) -> None:
    from rbee.batch.look import look
    from rbee.render import Table
    from rbee.render.text import clock_time

    found: Look = shell.run(look(shell.context, asked, wanted))
    rows, data = [], []
    for line in found.lines:
        outcome = line.outcome
        text = line.text if len(line.text) <= 60 else f"{line.text[:59]}…"
        shown = f"error: {text}" if outcome.error else text
        rows.append(
            (str(line.number), line.custom_id, outcome.node, f"{outcome.seconds:.1f} s", str(outcome.tokens), shown)
        )
        data.append(
            {
                "line": line.number,
                "custom_id": line.custom_id,
                "node": outcome.node,
                "seconds": round(outcome.seconds, 3),
                "tokens": outcome.tokens,
                "error": outcome.error and {"code": outcome.error[0], "message": outcome.error[1]},
                "text": line.text,
            }
        )
    whole = found.whole
    if shell.options.json:
        shell.renderer.record({"lines": data, "total": found.total, "tokens": whole.tokens, "seconds": whole.seconds})
        return
    shell.renderer.table(Table(("line", "custom_id", "node", "took", "tokens", "answer"), rows, data))
    told = f"all {found.total} lines would use about {whole.tokens:,} tokens and take about {clock_time(whole.seconds)}"
    shell.renderer.done(told if whole.tokens else "no line was answered, so that nothing can be said of the whole", {})
