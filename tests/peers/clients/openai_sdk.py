"""OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from pydantic import BaseModel

from tests.peers.clients.checks import (
    BASE,
    ENDLESS,
    HASTY_KEY,
    HELLO,
    KEY,
    MODEL,
    NO_MODEL,
    WEATHER,
    WEATHER_TOOL,
    check,
    main,
    raises,
    until_refused,
)

client: Any = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)


class Bee(BaseModel):
    kind: Literal["worker", "queen"]
    legs: Literal[6]


@check
def chat_and_stream_say_the_same() -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 8
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


@check
def logprobs_belong_to_the_text() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2, temperature=0
    )
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


@check
def tools_are_called_and_answered() -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [WEATHER_TOOL], "max_tokens": 40, "temperature": 0}
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
    answer = client.chat.completions.create(messages=messages, tool_choice="required", **asked)
    (call, *_) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert answer.choices[0].finish_reason == "tool_calls"
    messages += [answer.choices[0].message]
    messages += [
        {"role": "tool", "tool_call_id": each.id, "content": "sunny"} for each in answer.choices[0].message.tool_calls
    ]
    assert client.chat.completions.create(messages=messages, **{**asked, "max_tokens": 4, "tool_choice": "none"})


@check
def calls_are_streamed_and_put_together() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, tools=[WEATHER_TOOL], tool_choice="required", max_tokens=40,
        parallel_tool_calls=False, temperature=0,
    ) as stream:  # fmt: skip
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


@check
def a_model_of_pydantic_is_parsed() -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=HELLO, response_format=Bee, max_tokens=40, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Bee)
    with client.chat.completions.stream(
        model=MODEL, messages=HELLO, response_format=Bee, max_tokens=40, temperature=0
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == answer.choices[0].message.parsed


@check
def embeddings_come_as_numbers() -> None:
    for form in ({}, {"encoding_format": "float"}):  # without it, the client asks for base64
        answer = client.embeddings.create(model=MODEL, input=["a bee", "a wasp"], **form)
        assert len(answer.data) == 2
        assert abs(sum(value * value for value in answer.data[1].embedding) - 1) < 1e-3
    short = client.embeddings.create(model=MODEL, input="a bee", dimensions=32)
    assert len(short.data[0].embedding) == 32


@check
def completions_have_text_and_logprobs() -> None:
    answer = client.completions.create(model=MODEL, prompt=["Bees are", "Wasps are"], max_tokens=3, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "".join(answer.choices[0].logprobs.tokens) == answer.choices[0].text


@check
def models_are_listed() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@check
def errors_are_the_client_s_own() -> None:
    with raises(openai.NotFoundError, NO_MODEL):
        client.chat.completions.create(model=NO_MODEL, messages=HELLO)
    with raises(openai.BadRequestError, "context"):
        client.chat.completions.create(model=MODEL, messages=ENDLESS)
    try:
        client.chat.completions.create(model=MODEL, messages=ENDLESS)
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded", error.code
    try:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature="hot")
    except openai.BadRequestError as error:
        assert error.param == "temperature", error.param
    with raises(openai.AuthenticationError):
        client.with_options(api_key="none").models.list()
    with raises(openai.RateLimitError):
        hasty = client.with_options(api_key=HASTY_KEY)
        until_refused(lambda: hasty.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1))


@check
def responses_are_created_and_streamed() -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": "Say hello.", "max_output_tokens": 8, "temperature": 0}
    whole = client.responses.create(**asked)
    assert whole.output_text
    assert whole.status == "incomplete"
    assert whole.usage.output_tokens == 8
    *_, last = events = list(client.responses.create(**asked, stream=True))
    assert last.type == "response.incomplete"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


@check
def responses_call_tools_and_parse() -> None:
    answer = client.responses.create(
        model=MODEL, input="How is the weather?", tools=[{"type": "function", "strict": True, **WEATHER}],
        tool_choice="required", parallel_tool_calls=False, temperature=0, max_output_tokens=40,
    )  # fmt: skip
    call = next(item for item in answer.output if item.type == "function_call")
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    items = [*answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    assert client.responses.create(model=MODEL, input=items, max_output_tokens=4).output_text
    short: dict[str, Any] = {"temperature": 0, "max_output_tokens": 40}
    parsed = client.responses.parse(model=MODEL, input="A bee.", text_format=Bee, **short)
    assert isinstance(parsed.output_parsed, Bee)
    with client.responses.stream(model=MODEL, input="A bee.", text_format=Bee, **short) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Bee)


if __name__ == "__main__":
    main()
