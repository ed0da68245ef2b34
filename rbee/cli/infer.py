"""`rbee infer`: options and prompt in, an InferRequest out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import UsageError
from rbee.cli.aliased import Asked, alias_of
from rbee.cli.chat_options import Chat, read_chat
from rbee.cli.collected import takes
from rbee.cli.constraints import decode_text, read_constraints, read_text
from rbee.cli.display_options import Display, read_display
from rbee.cli.inputs import INPUTS
from rbee.cli.load_options import collect_load_options
from rbee.cli.options import KeepAliveOption, ModelOption, NodeOption, check_text, duration
from rbee.cli.sampling_options import read_sampling, read_stop
from rbee.cli.shell import Shell, command
from rbee_remote.protocol import LoadOptions, Sampling

if TYPE_CHECKING:
    from rbee.infer.request import InferRequest
    from rbee.render import Renderer


def register(app: typer.Typer) -> None:
    example = 'rbee infer --node gpu1 --model smollm2:135m "Why is the sky blue?"'
    command(app, "infer", example=example, over_link=True)(infer)


@takes(
    chat=read_chat,
    sampling=read_sampling,
    stop=read_stop,
    constraints=read_constraints,
    load=collect_load_options(),
    display=read_display,
)
def infer(
    shell: Shell,
    *,
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
    chat: Chat,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", "-n", min=1, metavar="N", help="Generate at most this many tokens.")
    ] = None,
    sampling: dict[str, Any],
    stop: tuple[str, ...],
    constraints: dict[str, Any],
    load: LoadOptions,
    keep_alive: KeepAliveOption = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Give up after this long, everything included.")
    ] = None,
    retry: Annotated[
        int,
        typer.Option(
            min=0, max=3, metavar="N", help="How often to ask a busy worker again. [default: 3]", show_default=False
        ),
    ] = 3,
    wait_for_gpu: Annotated[
        bool,
        typer.Option(
            "--wait-for-gpu", help="Wait for llama.cpp to be built for the node's GPU, in place of using its CPU."
        ),
    ] = False,
    display: Display,
) -> None:
    """Ask a model, and stream its answer to stdout."""
    from rbee.infer.request import InferRequest

    text = read_prompt(prompt, file)
    timeout_s = _timeout_s(timeout)
    asked = Asked(model, chat, sampling, load, duration(keep_alive, "--keep-alive"))
    renderer = shell.use_renderer(stream=display.stream, timing=display.timing, reasoning=display.reasoning)
    asked = asked.over(alias_of(model, shell.inventory))
    request = InferRequest(
        messages=() if chat.raw else asked.chat.messages(text),
        prompt=text if chat.raw else None,
        node=node,
        among=asked.among,
        model=asked.model,
        sampling=Sampling(**asked.sampling, **constraints),
        stop=stop,
        max_tokens=max_tokens,
        chat=asked.chat.options,
        tools=asked.chat.tools,
        load=asked.load,
        keep_alive_s=asked.keep_alive_s,
        timeout_s=timeout_s,
        retry=retry,
        wait_for_gpu=wait_for_gpu,
    )
    _run(shell, request, renderer)


def _timeout_s(text: str | None) -> float | None:
    from rbee.base.durations import NEVER

    seconds = duration(text, "--timeout")
    if seconds == 0:
        raise UsageError("--timeout: there is no time in 0", hint='write "90s", "5m" or "never"')
    return None if seconds == NEVER else seconds


def _run(shell: Shell, request: InferRequest, renderer: Renderer) -> None:
    context = shell.context
    from rbee import audit
    from rbee.infer.infer import infer as run_infer
    from rbee.infer.recorded import what_came
    from rbee.models.ref import parse_ref

    with audit.recorded(context.settings, "infer", emit=renderer, node=request.node or "") as details:
        details["model"] = parse_ref(request.model).canonical if request.model else None
        finished = shell.run(run_infer(request, context))
        details.update(what_came(finished))
    shell.hold_connection(finished.node)


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt: the argument or the file, then what stdin holds where it is no terminal.

    "-" as the argument is stdin. Raises UsageError for none, for both, and for what is not text.
    """
    if argument is not None and file is not None:
        raise UsageError(
            "a prompt and --file were given", hint="leave out one of them; standard input can follow either"
        )
    if argument is not None:
        check_text("the prompt", argument)
    parts = [] if argument in (None, "-") else [str(argument)]
    if file is not None:
        parts.append(_read_file(file))
    content = None if str(file) == "-" else INPUTS.get().standard_input(is_named=argument == "-")
    if content is not None:
        parts.append(decode_text(content, "standard input"))
    text = "\n\n".join(part for part in (part.strip("\r\n") for part in parts) if part)
    if not text.strip():
        raise UsageError("there is no prompt", hint='rbee infer "Why is the sky blue?", or --file, or standard input')
    return text


def _read_file(path: Path) -> str:
    if str(path) != "-":
        return read_text("--file", path)
    return decode_text(INPUTS.get().standard_input(is_named=True) or b"", "standard input")
