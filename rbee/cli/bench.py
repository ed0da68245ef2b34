"""`rbee bench`: nodes compared by their speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import UsageError
from rbee.cli.aliased import Asked, alias_of
from rbee.cli.chat_options import Chat
from rbee.cli.collected import takes
from rbee.cli.failed_nodes import error_value, partial_failure, why
from rbee.cli.load_options import collect_load_options
from rbee.cli.options import ModelOption, complete_node
from rbee.cli.shell import Shell, command
from rbee.render import Table
from rbee.render.text import amount
from rbee_remote.protocol import LoadOptions
from rbee_remote.protocol.bench import MAX_REPETITIONS
from rbee_remote.protocol.load_options import OPTIONS

if TYPE_CHECKING:
    from rbee.fleet.bench import Bench
    from rbee.node.session import PerNode


def register(app: typer.Typer) -> None:
    command(app, "bench", example="rbee bench all --model smollm2:135m")(bench)


@takes(load=collect_load_options(name for name in OPTIONS if name != "slots"))
def bench(
    shell: Shell,
    nodes: Annotated[str, typer.Argument(metavar="NODE", help="A node, @TAG or all.", autocompletion=complete_node)],
    model: ModelOption = None,
    prompt: Annotated[
        int,
        typer.Option(
            "--prompt", "-p", min=0, metavar="N", help="Tokens of the prompt to compute; 0 leaves this test out."
        ),
    ] = 512,
    gen: Annotated[
        int,
        typer.Option("--gen", "-n", min=0, metavar="N", help="Tokens to generate one by one; 0 leaves this test out."),
    ] = 128,
    repetitions: Annotated[
        int, typer.Option("--repetitions", "-r", min=1, max=MAX_REPETITIONS, metavar="N", help="Runs of each test.")
    ] = 5,
    *,
    load: LoadOptions,
) -> None:
    """Measure how fast nodes compute a model, all at once: tokens per second, as llama-bench tells them."""
    from rbee.fleet.bench import bench as run_bench
    from rbee.infer.request import InferRequest
    from rbee_remote.protocol import BenchRequest

    if prompt == gen == 0:
        raise UsageError("there is nothing to measure", hint="leave out --prompt 0 or --gen 0")
    asked = Asked(model, Chat(), {}, load, None).over(alias_of(model, shell.inventory))
    wanted = InferRequest(model=asked.model, load=asked.load, keep_alive_s=asked.keep_alive_s)
    context, request = shell.context, BenchRequest(prompt, gen, repetitions)
    answers = shell.run(run_bench(context.inventory.select(nodes), request, wanted, context))
    shell.renderer.table(bench_table(answers))
    failure = partial_failure([answer.error for answer in answers])
    if failure:
        raise failure


def bench_table(answers: Sequence[PerNode[Bench]]) -> Table:
    """A row for each test of a node, one for a node that failed."""
    from rbee.fleet.bench import speed
    from rbee_remote.protocol import encode

    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, *("-" * 6), "FAILED", "-", why(answer.error)))
            data.append({"node": name, **error_value(answer.error)})
        if answer.value:
            cells, values = _bench_cells(answer.value)
            for test in answer.value.result.tests:
                measured = speed(test)
                rows.append((name, *cells, test.test, f"{measured.mean:.2f} ± {measured.deviation:.2f}", ""))
                rates = {"tokens_per_s": measured.mean, "deviation": measured.deviation}
                data.append({"node": name, **values, **encode(test), **rates})
    columns: tuple[str, ...]
    columns = ("NODE", "MODEL", "SIZE", "PARAMETERS", "BACKEND", "DEVICE", "THREADS", "TEST", "TOKENS/S", "WHY")
    if not any(answer.error for answer in answers):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, data)


def _bench_cells(bench: Bench) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What all rows of a node have in common, as texts and as JSON values."""
    worker, model, threads = bench.worker, bench.model, bench.result.threads
    parameters = model.meta.parameters
    shown = f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M" if parameters else "-"
    values = {
        "model": model.model,
        "size": model.size,
        "parameters": parameters,
        "quantization": model.meta.quantization,
        "backend": worker.backend,
        "device": worker.device,
        "threads": threads,
        "ctx": worker.ctx,
        "slots": worker.slots,
    }
    return (model.model, amount(model.size), shown, worker.backend, worker.device, str(threads)), values
