"""Instructor, in the ways that it has to get an answer of a form."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel

from tests.peers.clients.checks import BASE, HELLO, KEY, MODEL, NO_MODEL, check, main


class Bee(BaseModel):
    """A bee."""

    kind: Literal["worker", "queen"]


def client(mode: Any) -> Any:
    plain = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
    return instructor.from_openai(plain, mode=mode)


def made(mode: Any, **more: Any) -> Any:
    return client(mode).chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=40, temperature=0, max_retries=0, **more
    )


@check
def by_a_tool() -> None:
    assert isinstance(made(instructor.Mode.TOOLS, response_model=Bee), Bee)
    assert isinstance(made(instructor.Mode.TOOLS_STRICT, response_model=Bee), Bee)


@check
def by_a_schema() -> None:
    assert isinstance(made(instructor.Mode.JSON_SCHEMA, response_model=Bee), Bee)


@check
def streamed_in_parts() -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 40, "temperature": 0}
    *_, last = client(instructor.Mode.TOOLS).chat.completions.create_partial(response_model=Bee, **asked)
    assert last.kind in ("worker", "queen")


@check
def errors_reach_the_program() -> None:
    try:
        client(instructor.Mode.TOOLS).chat.completions.create(
            model=NO_MODEL, messages=HELLO, response_model=Bee, max_retries=0
        )
    except Exception as error:
        assert NO_MODEL in str(error), error
    else:
        raise AssertionError("there is no such model")


if __name__ == "__main__":
    main()
