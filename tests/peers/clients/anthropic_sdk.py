"""Anthropic's own client."""

from __future__ import annotations

from typing import Any

import anthropic

from tests.peers.clients.checks import (
    ADDRESS,
    ENDLESS,
    HASTY_KEY,
    HELLO,
    KEY,
    MODEL,
    NO_MODEL,
    WEATHER,
    check,
    main,
    raises,
    until_refused,
)

client: Any = anthropic.Anthropic(base_url=ADDRESS, api_key=KEY, max_retries=0)
TOOL = {"name": WEATHER["name"], "description": WEATHER["description"], "input_schema": WEATHER["parameters"]}
#: Its method takes no temperature any more.
ASKED: dict[str, Any] = {"model": MODEL, "extra_body": {"temperature": 0}}


@check
def messages_and_stream_say_the_same() -> None:
    whole = client.messages.create(**ASKED, messages=HELLO, system="You are a bee.", max_tokens=8)
    assert whole.content[0].text
    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 8
    with client.messages.stream(**ASKED, messages=HELLO, system="You are a bee.", max_tokens=8) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens == 8
    assert text == whole.content[0].text


@check
def tools_are_called_and_answered() -> None:
    choice = {"type": "any"}
    answer = client.messages.create(**ASKED, messages=HELLO, tools=[TOOL], tool_choice=choice, max_tokens=60)
    use = next(block for block in answer.content if block.type == "tool_use")
    assert use.input["city"] in ("Paris", "Rome")
    assert answer.stop_reason == "tool_use"
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
        for block in answer.content
        if block.type == "tool_use"
    ]
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    assert client.messages.create(**ASKED, messages=turns, tools=[TOOL], max_tokens=4).content
    with client.messages.stream(
        **ASKED, messages=HELLO, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"}, max_tokens=60
    ) as stream:
        final = stream.get_final_message()
    assert next(block for block in final.content if block.type == "tool_use").input["city"] in ("Paris", "Rome")


@check
def tokens_are_counted() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO)
    usage = client.messages.create(**ASKED, messages=HELLO, max_tokens=1).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


@check
def errors_are_the_client_s_own() -> None:
    with raises(anthropic.NotFoundError, NO_MODEL):
        client.messages.create(model=NO_MODEL, messages=HELLO, max_tokens=1)
    with raises(anthropic.BadRequestError, "prompt is too long"):
        client.messages.create(**ASKED, messages=ENDLESS, max_tokens=1)
    with raises(anthropic.BadRequestError, "thinking.type"):
        client.messages.create(**ASKED, messages=HELLO, max_tokens=1, thinking={"type": "much"})
    with raises(anthropic.AuthenticationError):
        client.with_options(api_key="none").messages.create(**ASKED, messages=HELLO, max_tokens=1)
    with raises(anthropic.RateLimitError):
        hasty = client.with_options(api_key=HASTY_KEY)
        until_refused(lambda: hasty.messages.create(**ASKED, messages=HELLO, max_tokens=1))


if __name__ == "__main__":
    main()
