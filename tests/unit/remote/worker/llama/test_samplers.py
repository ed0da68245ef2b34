"""Samplers on the real model: every sampler does something, and constraints hold."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.constraints.rules import content_rule
from rbee_remote.protocol import ErrorCode, Logprobs, RemoteError, Sampling, WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import BatchToken, Engine

pytestmark = pytest.mark.model

ASK = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
STORY = ASK.format("Tell me a story.")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[Engine]:
    from rbee_remote.worker.llama.engine import load_engine

    options = WorkerOptions(threads=1)  # several threads that wait for each other are slow on a busy machine
    config = WorkerConfig("0" * 16, "m", str(model_path), "", options, ctx=1024, keep_alive_s=1.0, slots=1)
    with closing(load_engine(config, lambda _: True)) as loaded:
        yield loaded


@dataclass
class Answer:
    text: str
    ended: bool
    logprobs: list[Logprobs]


def generate(engine: Engine, prompt: str, sampling: Sampling, count: int = 24) -> Answer:
    tokens = engine.tokenize(prompt, add_special=True, parse_special=True)
    engine.truncate(0, 0)
    rule = content_rule(sampling)
    engine.start(0, sampling, sampling.seed or 0, tokens, engine.constraint(rule.grammar) if rule else None)
    batch = [BatchToken(token, pos, 0, pos == len(tokens) - 1) for pos, token in enumerate(tokens)]
    text, told, ended = b"", [], False
    for _ in range(count):
        assert engine.decode(batch)
        sampled = engine.sample(0, len(batch) - 1)
        told += [sampled.logprobs] if sampled.logprobs else []
        ended = engine.is_end(sampled.token)
        if ended:
            break
        text += engine.piece(sampled.token)
        batch = [BatchToken(sampled.token, batch[-1].pos + 1, 0, True)]
    engine.finish(0)
    return Answer(text.decode(errors="replace"), ended, told)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0.1},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 0.99},
        {"typical_p": 0.05},
        {"repeat_penalty": 10.0},
        {"frequency_penalty": 2.0, "penalty_last_n": -1},
        {"presence_penalty": 2.0},
        {"dry_multiplier": 100.0, "dry_base": 4.0, "dry_allowed_length": 0, "dry_sequence_breakers": ()},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"mirostat": 2, "mirostat_tau": 1.0},
        {"seed": 8},
        {"logit_bias": {"28": -100.0, "30": -100.0}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_every_sampler_changes_the_answer_and_repeats_with_its_seed(engine: Engine, values: dict[str, Any]) -> None:
    plain = Sampling(seed=7)
    changed = dataclasses.replace(plain, **values)
    answer = generate(engine, STORY, changed, 32).text
    assert answer != generate(engine, STORY, plain, 32).text
    assert answer == generate(engine, STORY, changed, 32).text


def test_a_window_of_no_tokens_is_no_penalty(engine: Engine) -> None:
    off = Sampling(seed=7, repeat_penalty=10.0, penalty_last_n=0, dry_multiplier=100.0, dry_penalty_last_n=0)
    assert generate(engine, STORY, off) == generate(engine, STORY, Sampling(seed=7))


def test_penalties_remember_the_prompt(engine: Engine) -> None:
    def next_word(sampling: Sampling) -> str:
        return generate(engine, "red green blue red green blue red green", sampling, 1).text

    assert next_word(Sampling(temperature=0)) == " blue"
    assert next_word(Sampling(temperature=0, repeat_penalty=10.0)) != " blue"
    assert next_word(Sampling(temperature=0, dry_multiplier=100.0, dry_allowed_length=0)) != " blue"
    assert next_word(Sampling(temperature=0, repeat_penalty=10.0, penalty_last_n=2)) == " blue"


def test_temperature_0_takes_the_likeliest_of_what_bias_and_grammar_leave(engine: Engine) -> None:
    question = ASK.format("Name the capital of France.")
    assert "Paris" in generate(engine, question, Sampling(temperature=0)).text
    (paris,) = engine.tokenize(" Paris", add_special=False, parse_special=False)
    biased = Sampling(temperature=0, logit_bias={str(paris): -100.0})
    assert " Paris" not in generate(engine, question, biased).text
    constrained = Sampling(temperature=0, grammar='root ::= "Rome" | "Paris" | "London"')
    assert generate(engine, question, constrained) == Answer("Paris", ended=True, logprobs=[])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("more", [{}, {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"mirostat": 2}])
def test_a_schema_gives_json_that_fits(engine: Engine, seed: int, more: dict[str, Any]) -> None:
    sampling = Sampling(seed=seed, json_schema=PERSON, **more)
    answer = generate(engine, ASK.format("Invent a person."), sampling, 120)
    assert answer.ended
    person = json.loads(answer.text)
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 30
    assert isinstance(person["age"], int)
    assert person.keys() == {"name", "age"}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 'a "quoted"\n\\ name ü'}, 'a "quoted"\n\\ name ü'),
        (
            {"type": "object", "properties": {'k"\\': {"const": None}}, "required": ['k"\\']},
            {'k"\\': None},
        ),
        ({"$ref": "#/$defs/string", "$defs": {"string": {"enum": [[1, {"a": "b"}]]}}}, [1, {"a": "b"}]),
        (
            {
                "type": "array",
                "prefixItems": [{"const": True}, {"$ref": "#/$defs/x_y"}],
                "minItems": 2,
                "$defs": {"x_y": {"const": 1.5}},
            },
            [True, 1.5],
        ),
    ],
)
def test_schemas_with_one_answer(engine: Engine, schema: dict[str, Any], value: Any) -> None:
    answer = generate(engine, STORY, Sampling(seed=1, json_schema=schema), 120)
    assert answer.ended
    assert json.loads(answer.text) == value


def test_references_to_itself(engine: Engine) -> None:
    tree = {"type": "object", "properties": {"kids_of": {"type": "array", "items": {"$ref": "#/$defs/Tree_1"}}}}
    schema = {"$ref": "#/$defs/Tree_1", "$defs": {"Tree_1": {**tree, "required": ["kids_of"]}}}
    answer = generate(engine, STORY, Sampling(seed=3, json_schema=schema, temperature=0.1), 200)
    assert answer.text.lstrip().startswith("{")
    assert not answer.ended or set(json.loads(answer.text)) == {"kids_of"}


def test_a_schema_without_a_type_is_for_any_value(engine: Engine) -> None:
    schema = {"type": "array", "items": {"title": "Anything"}, "minItems": 2, "maxItems": 2}
    answer = generate(engine, ASK.format("Two numbers, as JSON."), Sampling(seed=1, json_schema=schema), 200)
    assert not answer.ended or len(json.loads(answer.text)) == 2


def test_a_bias_on_a_token_that_the_model_does_not_have_names_the_field(engine: Engine) -> None:
    with pytest.raises(RemoteError, match=r"^logit_bias must have tokens below 49152, got 999999999") as caught:
        engine.start(0, Sampling(logit_bias={"999999999": 1.0}), 0, [1])
    assert caught.value.code is ErrorCode.USAGE
    assert caught.value.details == {"field": "logit_bias"}


@pytest.mark.parametrize(
    "grammar", ["start: /[^\\x00-\\u{10FFFF}]/", "start: nothing", "start: /a", "start: <|nothing|>"]
)
def test_a_grammar_that_no_text_fits_or_that_is_none_is_refused(engine: Engine, grammar: str) -> None:
    with pytest.raises(RemoteError, match=r"^the constraint cannot be used: ") as caught:
        engine.constraint(grammar)
    assert caught.value.code is ErrorCode.USAGE


@pytest.mark.parametrize("grammar", ["root ::= ", r'root ::= ("" | [^\x00-\U0010FFFF])'])
def test_an_answer_ends_where_nothing_can_follow(engine: Engine, grammar: str) -> None:
    assert generate(engine, STORY, Sampling(seed=1, grammar=grammar)) == Answer("", ended=True, logprobs=[])


def test_every_token_that_ends_an_answer_may_end_a_constrained_one(engine: Engine) -> None:
    ends = {token for token in range(engine.info.n_vocab) if engine.is_end(token)}
    assert len(ends) > 1
    engine.start(0, Sampling(), 0, [1], engine.constraint('start: "a"'))
    (letter,) = engine.tokenize("a", add_special=False, parse_special=False)
    engine.accept(0, letter)
    matcher = engine._samplers[0]._matcher  # type: ignore[attr-defined]  # what the sampler asks
    assert set(matcher.allowed()) == ends
    engine.finish(0)


def test_a_forced_token_moves_the_constraint_and_the_penalties_on(engine: Engine) -> None:
    prompt = engine.tokenize("red green blue red green", add_special=False, parse_special=False)
    (blue,) = engine.tokenize(" blue", add_special=False, parse_special=False)
    engine.truncate(0, 0)
    sampling = Sampling(temperature=0, presence_penalty=2.0)
    engine.start(0, sampling, 0, prompt, engine.constraint('start: " blue" " ended"'))
    engine.accept(0, blue)
    with pytest.raises(RemoteError, match="the constraint does not allow token") as caught:
        engine.accept(0, blue)
    assert caught.value.code is ErrorCode.USAGE
    engine.decode([BatchToken(token, pos, 0, pos == len(prompt)) for pos, token in enumerate([*prompt, blue])])
    assert b" ended".startswith(engine.piece(engine.sample(0, len(prompt)).token))
    engine.finish(0)


def test_a_grammar_sees_text_and_not_control_tokens(engine: Engine) -> None:
    """The literal must be spelled out: the control token of that name has no text."""
    answer = generate(engine, STORY, Sampling(seed=1, grammar='root ::= "<|im_start|>" "x"'))
    assert answer == Answer("<|im_start|>x", ended=True, logprobs=[])


def test_characters_that_no_token_holds_whole(engine: Engine) -> None:
    answer = generate(engine, STORY, Sampling(seed=1, grammar=r"root ::= [\U000E0020-\U000E007E]{3}"), 40)
    assert answer.ended
    assert [0xE0020 <= ord(character) <= 0xE007E for character in answer.text] == [True] * 3


def test_a_grammar_that_becomes_too_ambiguous_ends_its_request_alone(engine: Engine) -> None:
    rules = [f"r{number} ::= r{number + 1} r{number + 1} | r{number + 1}" for number in range(40)]
    constraint = content_rule(Sampling(grammar="\n".join(["root ::= r0 r0", *rules, 'r40 ::= "a"'])))
    assert constraint is not None
    engine.start(0, Sampling(), 0, [1], engine.constraint(constraint.grammar))
    (letter,) = engine.tokenize("a", add_special=False, parse_special=False)

    def follow() -> None:
        for _ in range(200):
            engine.accept(0, letter)

    with pytest.raises(RemoteError, match=r"^the constraint (takes too long|cannot be followed any further)") as caught:
        follow()
    assert caught.value.code is ErrorCode.USAGE
    engine.finish(0)
    assert "Paris" in generate(engine, ASK.format("Name the capital of France."), Sampling(temperature=0)).text


def test_a_grammar_that_allows_everything_changes_nothing(engine: Engine) -> None:
    free = Sampling(seed=5, repeat_penalty=1.3)
    assert generate(engine, STORY, free) == generate(engine, STORY, dataclasses.replace(free, regex=r"(.|\n)*"))


def test_logprobs_are_the_softmax_of_the_logits(engine: Engine) -> None:
    everything = Sampling(temperature=0, logprobs=20)
    for told in generate(engine, STORY, everything, 4).logprobs:
        assert told.chosen == told.top[0]
        assert len(told.top) == 20
        assert list(told.top) == sorted(told.top, key=lambda item: -item.logprob)
        assert 0.1 < sum(math.exp(item.logprob) for item in told.top) < 1
        assert bytes(told.chosen.bytes).decode() == told.chosen.token
    (alone,) = generate(engine, STORY, dataclasses.replace(everything, logprobs=0, temperature=0.5), 1).logprobs
    assert alone.top == ()


def test_logprobs_do_not_see_the_samplers(engine: Engine) -> None:
    plain = generate(engine, STORY, Sampling(temperature=0, logprobs=3), 1).logprobs[0]
    (token,) = engine.tokenize(plain.chosen.token, add_special=False, parse_special=False)
    banned = Sampling(temperature=0, logprobs=3, logit_bias={str(token): -100.0}, repeat_penalty=2.0)
    told = generate(engine, STORY, banned, 1).logprobs[0]
    assert told.chosen.token != plain.chosen.token
    assert [item.token for item in told.top] == [item.token for item in plain.top]
    assert told.top[0].logprob == pytest.approx(plain.top[0].logprob, abs=1e-3)
