"""What holds for the next answer: settings are checked as the options of `rbee infer` are."""

from __future__ import annotations

import inspect

import pytest

from rbee.base.errors import UsageError
from rbee.chat.asked import SETTINGS, Asked
from rbee.cli.sampling_options import read_sampling
from rbee.infer.sampling import OPTIONS
from rbee.inventory.aliases import ModelAlias
from rbee_remote.protocol import LoadOptions, Message, Sampling


def test_there_is_a_setting_for_each_option_of_infer() -> None:
    assert set(inspect.signature(read_sampling).parameters) == set(OPTIONS)
    assert set(SETTINGS) == {*OPTIONS, "max_tokens", "stop"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("temperature", "0.2", {"temperature": 0.2}),
        ("top-k", "7", {"top_k": 7}),
        ("seed", "1", {"seed": 1}),
        ("max_tokens", "50", {"max_tokens": 50}),
        ("stop", "END OF", {"stop": ["END OF"]}),
    ],
)
def test_a_setting_is_made_and_taken_back(name: str, text: str, said: dict[str, object]) -> None:
    made = Asked().with_setting(name, text)
    assert made.said == said
    assert made.with_setting(name, "default") == Asked()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temperature", "9", "temperature: 9.0 is not between 0 and 5"),
        ("temperature", "nan", "is not between"),
        ("temperature", "warm", "temperature: 'warm' is not a number"),
        ("top_k", "1.5", "not a whole number"),
        ("max_tokens", "0", "not 1 or more"),
        ("temprature", "1", "there is no setting 'temprature'"),
        ("temperature", "", "temperature needs a value"),
        ("stop", "x" * 257, "1 to 256 characters"),
    ],
)
def test_what_no_worker_takes_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Asked().with_setting(name, text)


def test_reasoning() -> None:
    assert Asked().thinking("on").think is True
    assert Asked(effort="high").thinking("off") == Asked(think=False)
    assert Asked(think=False).thinking("low") == Asked(effort="low")
    assert Asked(think=True).thinking("default") == Asked()
    with pytest.raises(UsageError):
        Asked().thinking("very much")


def test_what_the_chat_says_comes_before_the_alias() -> None:
    alias = ModelAlias("coder", "smollm2:135m", ("gpu1",), LoadOptions(ctx=4096), "Be brief.", {"top_k": 1, "seed": 2})
    asked = Asked("coder", sampling={"seed": 3}, max_tokens=9, effort="low")
    request = asked.request((Message("user", "hi"),), alias)
    assert (request.model, request.among, request.load.ctx) == ("smollm2:135m", ("gpu1",), 4096)
    assert request.sampling == Sampling(top_k=1, seed=3)
    assert (request.max_tokens, request.chat.reasoning_effort) == (9, "low")
    assert asked.system_message(alias) == "Be brief."
    assert Asked("coder", system="").system_message(alias) == ""
