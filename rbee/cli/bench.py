"""`rbee bench`: nodes compared by their speed."""

from __future__ import annotations

from typing import Annotated

import typer

from rbee.base.errors import UsageError
from rbee.cli.load_options import takes_load_options
from rbee.cli.options import ModelOption, complete_node
from rbee.cli.shell import Shell, command
from rbee_remote.protocol import LoadOptions
from rbee_remote.protocol.load_options import OPTIONS

MAX_REPETITIONS = 1000


def register(app: typer.Typer) -> None:
    command(app, "bench", example="rbee bench all --model smollm2:135m")(bench)


@takes_load_options(name for name in OPTIONS if name != "slots")
def bench(
    shell: Shell,
    nodes: Annotated[str, typer.Argument(metavar="NODE", help="A node, @TAG or all.", autocompletion=complete_node)],
    model: ModelOption = None,
    prompt: Annotated[
        int, typer.Option("--prompt", "-p", min=0, metavar="N", help="Tokens of the prompt to compute; 0: none.")
    ] = 512,
    gen: Annotated[
        int, typer.Option("--gen", "-n", min=0, metavar="N", help="Tokens to compute one by one; 0: none.")
    ] = 128,
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, max=MAX_REPETITIONS, metavar="N", help="Runs of each test.")
    ] = 5,
    *,
    load: LoadOptions,
) -> None:
    """Measure how fast nodes compute a model, all at once: tokens per second, as llama-bench tells them."""
    from rbee.cli.views import bench_table, partial_failure
    from rbee.fleet.bench import bench as run_bench
    from rbee.infer.request import InferRequest
    from rbee_remote.protocol import BenchRequest

    if prompt == gen == 0:
        raise UsageError("there is nothing to measure", hint="leave out --prompt 0 or --gen 0")
    asked = InferRequest(model=model, load=load)
    context, request = shell.context, BenchRequest(prompt, gen, repetitions)
    answers = shell.run(run_bench(context.inventory.select(nodes), request, asked, context))
    shell.renderer.table(bench_table(answers))
    failure = partial_failure([answer.error for answer in answers])
    if failure:
        raise failure
