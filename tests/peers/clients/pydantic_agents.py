"""Pydantic AI's agents, over each of the three APIs."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import openai
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from tests.peers.clients.checks import ADDRESS, BASE, HASTY_KEY, KEY, MODEL, NO_MODEL, check, main, until_refused

SETTINGS: Any = {"max_tokens": 40, "temperature": 0.0}
SHORT: Any = {"max_tokens": 6, "temperature": 0.0}


class Bee(BaseModel):
    kind: Literal["worker", "queen"]


def chat(name: str = MODEL, key: str = KEY) -> Any:
    """Without tries of its own: those that were refused wait a minute."""
    client = openai.AsyncOpenAI(base_url=BASE, api_key=key, max_retries=0)
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


def responses() -> Any:
    return OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=BASE, api_key=KEY))


def messages() -> Any:
    return AnthropicModel(MODEL, provider=AnthropicProvider(base_url=ADDRESS, api_key=KEY))


async def serves(model: Any) -> None:
    """Text, whole and streamed; an answer of a form, which is a tool that has to be called."""
    agent: Any = Agent(model, model_settings=SHORT)
    whole = await agent.run("Say hello.")
    assert whole.output
    assert whole.usage.output_tokens == 6
    async with agent.run_stream("Say hello.") as result:
        assert await result.get_output() == whole.output
    formed = await Agent(model, output_type=Bee, model_settings=SETTINGS, retries=3).run("A bee.")
    assert isinstance(formed.output, Bee)


@check
def agents_over_chat() -> None:
    asyncio.run(serves(chat()))
    native: Any = Agent(chat(), output_type=NativeOutput(Bee), model_settings=SETTINGS)
    assert isinstance(native.run_sync("A bee.").output, Bee)


@check
def agents_over_responses() -> None:
    asyncio.run(serves(responses()))


@check
def agents_over_messages() -> None:
    asyncio.run(serves(messages()))


@check
def errors_are_the_client_s_own() -> None:
    for model, status in ((chat(NO_MODEL), 404), (chat(key=HASTY_KEY), 429)):
        agent: Any = Agent(model, model_settings={"max_tokens": 1})
        try:
            until_refused(lambda agent=agent: agent.run_sync("Hello"))  # type: ignore[misc]
        except ModelHTTPError as error:
            assert error.status_code == status, error
        else:
            raise AssertionError(f"{status} was expected")


if __name__ == "__main__":
    main()
