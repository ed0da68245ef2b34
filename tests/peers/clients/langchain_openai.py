"""LangChain's models for OpenAI's API."""

from __future__ import annotations

from typing import Any, Literal

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_openai.chat_models.base import OpenAIContextOverflowError, OpenAIModelNotFoundError, OpenAIRateLimitError
from pydantic import BaseModel

from tests.peers.clients.checks import (
    BASE,
    ENDLESS,
    HASTY_KEY,
    KEY,
    MODEL,
    NO_MODEL,
    WEATHER_TOOL,
    check,
    main,
    raises,
    until_refused,
)


class Bee(BaseModel):
    """A bee."""

    kind: Literal["worker", "queen"]


def chat(**more: Any) -> Any:
    given = {"model": MODEL, "base_url": BASE, "api_key": KEY, "max_retries": 0, "temperature": 0, "max_tokens": 40}
    return ChatOpenAI(**{**given, **more})


@check
def chat_and_stream_say_the_same() -> None:
    short = chat(max_tokens=6, stream_usage=True)
    whole = short.invoke("Say hello.")
    assert whole.usage_metadata["output_tokens"] == 6
    chunks = list(short.stream("Say hello."))
    assert "".join(chunk.content for chunk in chunks) == whole.content != ""
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) == 6


@check
def logprobs() -> None:
    answer = chat(max_tokens=2, logprobs=True, top_logprobs=1).invoke("Say hello.")
    assert len(answer.response_metadata["logprobs"]["content"]) == 2


@check
def tools() -> None:
    bound = chat().bind_tools([WEATHER_TOOL], tool_choice="any", parallel_tool_calls=False)
    answer = bound.invoke("How is the weather in Rome?")
    assert answer.tool_calls[0]["args"]["city"] in ("Paris", "Rome")
    streamed = None
    for chunk in bound.stream("How is the weather in Rome?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert streamed.tool_calls[0]["args"] == answer.tool_calls[0]["args"]
    told = [("user", "How is the weather?"), answer, *({"role": "tool", "tool_call_id": each["id"], "content": "sunny"}
            for each in answer.tool_calls)]  # fmt: skip
    assert chat(max_tokens=3).invoke(told).content


@check
def structure_by_every_method() -> None:
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat().with_structured_output(Bee, method=method).invoke("A bee in JSON."), Bee), method


@check
def embeddings() -> None:
    """By the tokens of OpenAI's own models it would ask where it is not told otherwise."""
    made: Any = OpenAIEmbeddings(model=MODEL, base_url=BASE, api_key=KEY, check_embedding_ctx_length=False)
    assert len(made.embed_documents(["a bee", "a wasp"])) == 2


@check
def errors_are_the_client_s_own() -> None:
    with raises(OpenAIModelNotFoundError, NO_MODEL):
        chat(model=NO_MODEL).invoke("Hello")
    with raises(OpenAIContextOverflowError):
        chat().invoke(ENDLESS)
    with raises(OpenAIRateLimitError):
        until_refused(lambda: chat(api_key=HASTY_KEY, max_tokens=1).invoke("Hello"))


@check
def responses() -> None:
    model = chat(use_responses_api=True, max_tokens=16)
    assert model.invoke("Say hello.").text
    assert "".join(chunk.text for chunk in model.stream("Say hello."))
    answer = (
        chat(use_responses_api=True)
        .bind_tools([WEATHER_TOOL], tool_choice="any", parallel_tool_calls=False)
        .invoke("The weather?")
    )
    assert answer.tool_calls[0]["args"]["city"] in ("Paris", "Rome")
    assert isinstance(chat(use_responses_api=True).with_structured_output(Bee).invoke("A bee."), Bee)


if __name__ == "__main__":
    main()
