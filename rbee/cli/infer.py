"""`rbee infer`: options and prompt in, an InferRequest out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rbee.base.errors import UsageError
from rbee.cli.constraints import GrammarOption, SchemaOption, decode_text, read_constraints, read_text
from rbee.cli.load_options import takes_load_options
from rbee.cli.options import ModelOption, NodeOption, duration
from rbee.cli.shell import Shell, command
from rbee_remote.protocol import LoadOptions

if TYPE_CHECKING:
    from rbee.infer.request import InferRequest


def register(app: typer.Typer) -> None:
    command(app, "infer", example='rbee infer --node gpu1 --model smollm2:135m "Why is the sky blue?"')(infer)


@takes_load_options()
def infer(
    shell: Shell,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="What to ask. Standard input follows it, unless that is a terminal.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a file.")
    ] = None,
    node: NodeOption = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system message.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Generate at most this many tokens.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, metavar="T", help="0 always takes the most likely token. [default: 0.8]")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, metavar="P", help="Nucleus sampling; 1 is off. [default: 0.95]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, metavar="K", help="Only the K most likely tokens; 0 is off. [default: 40]")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="P",
            help="Drop tokens less likely than P times the most likely; 0 is off. [default: 0.05]",
        ),
    ] = None,
    repeat_penalty: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="R", help="Above 1 makes repetition less likely; 1 is off. [default: 1]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="The same seed gives the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
    schema: SchemaOption = None,
    grammar: GrammarOption = None,
    *,
    load: LoadOptions,
    raw: Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")] = False,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="How long the worker stays when idle: 90s, 5m, never. [default: keep_alive in the inventory, or 5m]",
        ),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Give up after this long, everything included.")
    ] = None,
    retry: Annotated[
        int,
        typer.Option(
            min=0, max=3, metavar="N", help="How often to ask a busy worker again. [default: 3]", show_default=False
        ),
    ] = 3,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Show the answer when it is complete.")] = False,
    timing: Annotated[bool, typer.Option("--timing", help="Show how long each step took.")] = False,
) -> None:
    """Ask a model, and stream its answer to stdout."""
    from rbee.base.durations import NEVER
    from rbee.infer.request import InferRequest
    from rbee_remote.protocol import Message, Sampling

    text = read_prompt(prompt, file)
    if raw and system is not None:
        raise UsageError(
            "--raw takes the prompt as it is; --system needs the chat template", hint="leave out one of them"
        )
    chosen = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
        **read_constraints(schema, grammar),
    }
    messages = [Message("system", system)] if system is not None else []
    limit = duration(timeout, "--timeout")
    request = InferRequest(
        messages=() if raw else (*messages, Message("user", text)),
        prompt=text if raw else None,
        node=node,
        model=model,
        sampling=Sampling(**{key: value for key, value in chosen.items() if value is not None}),
        stop=tuple(stop or ()),
        max_tokens=max_tokens,
        load=load,
        keep_alive_s=duration(keep_alive, "--keep-alive"),
        timeout_s=None if limit == NEVER else limit,
        retry=retry,
    )
    _run(shell, request, stream=not no_stream, timing=timing)


def _run(shell: Shell, request: InferRequest, *, stream: bool, timing: bool) -> None:
    renderer = shell.use_renderer(stream=stream, timing=timing)
    context = shell.context
    from rbee import audit
    from rbee.infer.infer import infer as run_infer
    from rbee.models.ref import parse_ref

    with audit.recorded(context.settings, "infer", emit=renderer, node=request.node or "") as details:
        details["model"] = parse_ref(request.model).canonical if request.model else None
        finished = shell.run(run_infer(request, context))
        details |= {
            "node": finished.node,
            "model": finished.model,
            "worker": finished.worker,
            "prompt_tokens": finished.usage.prompt_tokens,
            "completion_tokens": finished.usage.completion_tokens,
            "finish": finished.finish_reason,
        }


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt: the argument or the file, then what stdin holds where it is no terminal.

    "-" as the argument is stdin. Raises UsageError for none, for both, and for what is not text.
    """
    if argument is not None and file is not None:
        raise UsageError(
            "a prompt and --file were given", hint="leave out one of them; standard input can follow either"
        )
    parts = [] if argument in (None, "-") else [str(argument)]
    if file is not None:
        parts.append(_read_file(file))
    if argument == "-" or not _is_interactive():
        parts.append(decode_text(sys.stdin.buffer.read(), "standard input"))
    text = "\n\n".join(part for part in (part.strip("\r\n") for part in parts) if part)
    if not text.strip():
        raise UsageError("there is no prompt", hint='rbee infer "Why is the sky blue?", or --file, or standard input')
    return text


def _is_interactive() -> bool:
    """Whether stdin has nothing for us: a terminal, or closed."""
    return sys.stdin is None or sys.stdin.closed or sys.stdin.isatty()


def _read_file(path: Path) -> str:
    return decode_text(sys.stdin.buffer.read(), "standard input") if str(path) == "-" else read_text(path)
