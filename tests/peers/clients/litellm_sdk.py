"""LiteLLM, as a library."""

from __future__ import annotations

import json
from typing import Any, Literal

import litellm
from litellm import exceptions
from pydantic import BaseModel

from tests.peers.clients.checks import (
    ADDRESS,
    BASE,
    ENDLESS,
    HASTY_KEY,
    HELLO,
    KEY,
    MODEL,
    NO_MODEL,
    WEATHER_TOOL,
    check,
    main,
    raises,
    until_refused,
)

ASKED: dict[str, Any] = {"api_base": BASE, "api_key": KEY, "num_retries": 0}
complete: Any = litellm.completion


class Bee(BaseModel):
    kind: Literal["worker", "queen"]


@check
def chat_and_stream_say_the_same() -> None:
    asked = {**ASKED, "model": f"openai/{MODEL}", "messages": HELLO, "max_tokens": 6, "temperature": 0}
    whole = complete(**asked)
    assert whole.usage.completion_tokens == 6
    chunks = list(complete(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content != ""
    built = litellm.stream_chunk_builder(chunks, messages=HELLO)
    assert built.usage.completion_tokens == 6


@check
def tools_and_structure() -> None:
    asked = {**ASKED, "model": f"openai/{MODEL}", "messages": HELLO, "max_tokens": 40, "temperature": 0}
    answer = complete(**asked, tools=[WEATHER_TOOL], tool_choice="required", parallel_tool_calls=False)
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome")
    parsed = complete(**asked, response_format=Bee)
    Bee.model_validate_json(parsed.choices[0].message.content)


@check
def embeddings() -> None:
    made: Any = litellm.embedding(**ASKED, model=f"openai/{MODEL}", input=["a bee"])
    assert len(made.data[0]["embedding"]) > 100


@check
def text_completions() -> None:
    answer: Any = litellm.text_completion(
        **ASKED, model=f"text-completion-openai/{MODEL}", prompt="Bees are", max_tokens=3
    )
    assert answer.choices[0].text


@check
def errors_are_the_client_s_own() -> None:
    with raises(exceptions.NotFoundError, NO_MODEL):
        complete(**ASKED, model=f"openai/{NO_MODEL}", messages=HELLO)
    with raises(exceptions.ContextWindowExceededError):
        complete(**ASKED, model=f"openai/{MODEL}", messages=ENDLESS)
    with raises(exceptions.RateLimitError):
        hasty = {**ASKED, "api_key": HASTY_KEY, "model": f"openai/{MODEL}", "messages": HELLO, "max_tokens": 1}
        until_refused(lambda: complete(**hasty))


@check
def responses() -> None:
    answer: Any = litellm.responses(**ASKED, model=f"openai/{MODEL}", input="Say hello.", max_output_tokens=4)
    assert answer.output[0].content[0].text


@check
def messages() -> None:
    """Anthropic's API on both sides."""
    asked = {"api_base": ADDRESS, "api_key": KEY, "model": f"anthropic/{MODEL}", "messages": HELLO, "max_tokens": 4}
    assert complete(**asked).choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in complete(**asked, stream=True))


if __name__ == "__main__":
    main()
