"""Aliases in the inventory: what `[models.NAME]` accepts, and how it refuses the rest."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.inventory import Inventory, load, parse
from rbee.inventory.aliases import ALIAS_KEYS, SAMPLING_KEYS, ModelAlias
from rbee_remote.protocol import LoadOptions
from rbee_remote.protocol.limits import SAMPLING

ROOT = Path(__file__).parents[3]
NODES = '[nodes.gpu1]\ntags = ["cuda"]\n[nodes.gpu2]\n'


def read(text: str) -> Inventory:
    return parse((NODES + text).encode(), Path("/etc/inventory.toml"))


def test_the_example_shows_every_key_of_an_alias() -> None:
    path = ROOT / "inventory.example.toml"
    tables = tomllib.loads(path.read_text())["models"]
    assert {key for table in tables.values() for key in table} == set(ALIAS_KEYS)
    assert load(path).models["small"] == ModelAlias("small", "smollm2:135m")


def test_an_alias_is_what_its_table_says() -> None:
    inventory = read(
        """
        [models."qwen/chat:latest"]
        model = "hf:a/b:Q4_K_M"
        nodes = ["gpu2", "@cuda"]
        system = "Be brief.\\nBe kind."
        sampling = { temperature = 1, seed = 7 }
        fallbacks = ["small", "smollm2:135m"]
        keep_alive = "never"
        ctx = "auto"
        slots = 2
        [models.small]
        model = "smollm2:135m"
        """
    )
    assert inventory.alias("qwen/chat:latest") == ModelAlias(
        name="qwen/chat:latest",
        model="hf:a/b:Q4_K_M",
        nodes=("gpu2", "@cuda"),
        load=LoadOptions(ctx=0, slots=2),
        system="Be brief.\nBe kind.",
        sampling={"temperature": 1, "seed": 7},
        fallbacks=("small", "smollm2:135m"),
        keep_alive_s=-1,
    )
    assert inventory.alias(None) is inventory.alias("Small") is None


def test_an_inventory_without_aliases_has_none() -> None:
    assert read("").models == {}


@pytest.mark.parametrize(
    ("text", "message", "key"),
    [
        ("modell = 'x'", "has an unknown key 'modell'", "modell"),
        ("model = 3", "expected text in quotes, got a whole number", "model"),
        ("nodes = 'gpu1'", "expected a list", "nodes"),
        ("nodes = ['gpu1', 'gpu1']", "twice", "nodes"),
        ("nodes = ['gpu3']", "there is no node 'gpu3'", "nodes"),
        ("nodes = ['@gpu1']", "no node has the tag 'gpu1'", "nodes"),
        ("nodes = ['all']", "leave this out for all nodes", "nodes"),
        ("system = ''", "expected some text", "system"),
        ('system = "x\\u0000"', "zero character", "system"),
        ("sampling = 3", "expected a table", "sampling"),
        ("sampling = { temprature = 1 }", "'temprature' is no sampling field; did you mean 'temperature'", "sampling"),
        ("sampling = { grammar = 'x' }", "'grammar' is no sampling field", "sampling"),
        ("sampling = { logprobs = 1 }", "'logprobs' is no sampling field", "sampling"),
        ("sampling = { temperature = '1' }", "temperature: expected a number, got '1'", "sampling"),
        ("sampling = { temperature = true }", "temperature: expected a number", "sampling"),
        ("sampling = { temperature = 6 }", "temperature: 6 is not between 0 and 5", "sampling"),
        ("sampling = { temperature = nan }", "nan is not between", "sampling"),
        ("sampling = { top_k = 1.5 }", "top_k: expected a whole number", "sampling"),
        ("sampling = { seed = 1.5 }", "seed: expected a whole number", "sampling"),
        ("fallbacks = ['smal']", "there is no \\[models.smal\\]", "fallbacks"),
        ("fallbacks = ['chat']", "round in a circle: chat -> chat", "fallbacks"),
        ("keep_alive = 'soon'", "not a duration", "keep_alive"),
        ("ctx = 1", "not between", "ctx"),
        ("host = 'x'", "unknown key 'host'", "host"),
    ],
)
def test_a_wrong_value_is_refused_by_file_table_and_key(text: str, message: str, key: str | None) -> None:
    text = text if text.startswith("model =") else f"model = 'smollm2:135m'\n{text}"
    with pytest.raises(ConfigError, match=message) as caught:
        read(f"[models.chat]\n{text}\n[models.small]\nmodel = 'smollm2:135m'\n")
    if key:
        assert caught.value.details == {"file": "/etc/inventory.toml", "table": "models.chat", "key": key}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models]\nchat = 3", "has to be a table"),
        ("[models.chat]", "there is no model"),
        ("[models.gpt-4.1]\nmodel = 'x:1'", r'in quotes: \[models."gpt-4.1"\]'),
        ("[models.gpt-4]\nmodel = 'x:1'\n[models.gpt-4.1]\nmodel = 'x:1'", r'in quotes: \[models."gpt-4.1"\]'),
        ("[models.smollm2:135m]\nmodel = 'x:1'", r'in quotes: \[models."smollm2:135m"\]'),
        ("[models.'hf:a/b']\nmodel = 'x:1'", "reads as a model ref"),
        ("[models.'FILE:/x']\nmodel = 'x:1'", "reads as a model ref"),
        ("[models.'https://x']\nmodel = 'x:1'", "reads as a model ref"),
        ("[models.'a@b']\nmodel = 'x:1'", "not a valid name"),
        ("[models.'']\nmodel = 'x:1'", "not a valid name"),
        ("[model.chat]\nmodel = 'x:1'", "unknown table or key 'model'"),
    ],
)
def test_a_wrong_table_or_name_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_models_is_a_table_of_tables() -> None:
    with pytest.raises(ConfigError, match="models has to be a table of tables"):
        parse(b"models = 3", Path("/etc/inventory.toml"))


def test_fallbacks_that_lead_round_in_a_circle_are_named() -> None:
    text = "".join(f"[models.{name}]\nmodel = 'x:1'\nfallbacks = ['{after}']\n" for name, after in ("ab", "bc", "cb"))
    with pytest.raises(ConfigError, match=r"round in a circle: (b -> c -> b|c -> b -> c)"):
        read(text)


def test_a_name_that_begins_like_a_ref_but_is_none_is_a_name() -> None:
    assert read("[models.hf-chat]\nmodel = 'x:1'\n").alias("hf-chat")


def test_sampling_takes_what_a_worker_takes_but_for_what_is_no_number_in_a_body() -> None:
    assert set(SAMPLING) - set(SAMPLING_KEYS) == {"logprobs"}
