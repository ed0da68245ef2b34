"""`rbee infer --model NAME` with an alias: the command line wins, the alias says the rest."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from rbee.cli import main as cli
from rbee.cli.aliased import Asked
from rbee.cli.chat_options import Chat
from rbee.infer.request import InferRequest
from rbee.inventory import parse
from rbee.inventory.aliases import ModelAlias
from rbee_remote.protocol import LoadOptions, Message

ALIAS = ModelAlias(
    name="chat",
    model="smollm2:135m",
    nodes=("gpu1", "@lab"),
    load=LoadOptions(ctx=8192, slots=2),
    system="Be brief.",
    sampling={"temperature": 0.1, "top_k": 5},
    keep_alive_s=60,
)
NODES = "[nodes.gpu1]\n[nodes.gpu2]\ntags = ['lab']\n[nodes.gpu3]\n"


def test_the_alias_says_what_the_command_line_does_not() -> None:
    asked = Asked("chat", Chat(), {}, LoadOptions(), None).over(ALIAS)
    assert asked == Asked("smollm2:135m", Chat(system="Be brief."), ALIAS.sampling, ALIAS.load, 60, ("gpu1", "@lab"))


def test_the_command_line_wins() -> None:
    said = Asked("chat", Chat(system=""), {"top_k": 1}, LoadOptions(slots=1), 5)
    asked = said.over(ALIAS)
    assert asked.chat.system == ""
    assert asked.sampling == {"temperature": 0.1, "top_k": 1}
    assert asked.load == LoadOptions(ctx=8192, slots=1)
    assert asked.keep_alive_s == 5


def test_a_raw_prompt_gets_no_system_prompt() -> None:
    assert Asked("chat", Chat(raw=True), {}, LoadOptions(), None).over(ALIAS).chat == Chat(raw=True)


def test_what_is_no_alias_is_left_alone() -> None:
    asked = Asked("smollm2:135m", Chat(), {}, LoadOptions(), None)
    assert asked.over(None) is asked


def test_the_nodes_of_an_alias() -> None:
    inventory = parse(NODES.encode(), Path("i.toml"))
    assert [node.name for node in inventory.among(("gpu1", "@lab"))] == ["gpu1", "gpu2"]
    assert [node.name for node in inventory.among(())] == ["gpu1", "gpu2", "gpu3", "local"]


def test_infer_asks_as_the_alias_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(
        f"{NODES}[models.chat]\nmodel = 'smollm2:135m'\nnodes = ['@lab']\nsystem = 'Be brief.'\nctx = 512\n"
    )
    asked: list[InferRequest] = []

    async def infer(request: InferRequest, context: Any) -> Any:
        asked.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("rbee.infer.infer.infer", infer)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    cli.main(["infer", "-i", str(path), "--model", "chat", "--slots", "1", "Hi"])
    cli.main(["infer", "-i", str(path), "--model", "chat", "--wait-for-gpu", "Hi"])
    request, waiting = asked
    assert (request.wait_for_gpu, waiting.wait_for_gpu) == (False, True)
    assert request.messages == (Message("system", "Be brief."), Message("user", "Hi"))
    assert (request.model, request.among, request.load) == ("smollm2:135m", ("@lab",), LoadOptions(ctx=512, slots=1))


def test_bench_measures_what_the_alias_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(f"{NODES}[models.chat]\nmodel = 'smollm2:135m'\nctx = 512\nkeep_alive = '90s'\n")
    asked: list[InferRequest] = []

    async def bench(nodes: Any, request: Any, wanted: InferRequest, context: Any) -> Any:
        asked.append(wanted)
        raise KeyboardInterrupt

    monkeypatch.setattr("rbee.fleet.bench.bench", bench)
    cli.main(["bench", "-i", str(path), "gpu1", "--model", "chat", "--gpu-layers", "3"])
    assert asked == [InferRequest(model="smollm2:135m", load=LoadOptions(ctx=512, gpu_layers=3), keep_alive_s=90)]


@pytest.mark.parametrize("command", [["infer", "Hi", "--node"], ["bench"]])
@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        ("codr", "'codr' is neither an alias in the inventory nor a model", "did you mean coder?"),
        ("smolm2:135m", "there is no built-in model smolm2:135m", "did you mean smollm2:135m?"),
    ],
)
def test_a_mistyped_alias_is_told_before_a_node_is_asked(
    command: list[str], model: str, message: str, hint: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    path = tmp_path / "inventory.toml"
    path.write_text(f"{NODES}[models.coder]\nmodel = 'smollm2:135m'\n")
    assert cli.main([*command, "gpu1", "-i", str(path), "--model", model]) == 6
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}\nhint: {hint}")
