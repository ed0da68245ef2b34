"""Embeddings and ranking by llama.cpp over HTTP, against what numpy makes of the same weights."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import Engine, Progress
from tests import tiny_encoders as tiny
from tests.testbed import minilm
from tests.unit.remote.worker.http.test_app import Worker, running

pytestmark = pytest.mark.model

POOLING = gguf.PoolingType
THE_CAT_SAT = [tiny.CLS, tiny.token("the"), tiny.token("cat"), tiny.token("sat"), tiny.SEP]
TEMPLATE = "<s>Q:{query}\nD:{document}\nA:"


@contextlib.asynccontextmanager
async def serving(folder: Path, model: Path, **values: Any) -> AsyncIterator[tuple[Worker, list[int]]]:
    """A worker, and how many texts each of its steps had."""
    from rbee_remote.worker.llama.engine import load_engine

    steps: list[int] = []

    def load(config: WorkerConfig, progress: Progress) -> Engine:
        engine = load_engine(dataclasses.replace(config, path=str(model)), progress)
        decode = engine.decode

        def counting(batch: Any, *, embeddings: bool = False, scales: Sequence[float] = ()) -> bool:
            steps.append(len({each.seq for each in batch}))
            return decode(batch, embeddings=embeddings, scales=scales)

        engine.decode = counting  # type: ignore[method-assign]
        return engine

    settings = {"ctx": tiny.TRAINED, "slots": 2, "options": WorkerOptions(threads=1), **values}
    async with running(folder, load, **settings) as worker:
        yield worker, steps


async def post(worker: Worker, path: str, **body: Any) -> Any:
    answer = await worker.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def vectors(worker: Worker, texts: Any, **body: Any) -> list[list[float]]:
    answer = await post(worker, "/v1/embeddings", input=texts, **body)
    return [each["embedding"] for each in answer["data"]]


def unit(vector: Any) -> Any:
    return np.asarray(vector) / np.linalg.norm(vector)


@pytest.mark.parametrize("pooling", [POOLING.MEAN, POOLING.CLS, POOLING.LAST, POOLING.NONE, None])
async def test_an_encoder_gives_what_numpy_gives(folder: Path, tmp_path: Path, pooling: gguf.PoolingType) -> None:
    weights = tiny.write_bert(tmp_path / "m.gguf", pooling)
    async with serving(folder, tmp_path / "m.gguf") as (worker, _):
        (found,) = await vectors(worker, "the cat sat")
        (info,) = (await worker.client.get("/v1/models")).json()["data"]
    states = tiny.hidden(weights, THE_CAT_SAT)
    wanted = {POOLING.CLS: states[0], POOLING.LAST: states[-1]}.get(pooling, states.mean(0))
    assert found == pytest.approx(unit(wanted), abs=2e-3)
    assert info["capabilities"] == ["embeddings"]
    assert "warnings" not in info


@pytest.mark.parametrize("in_file", [None, POOLING.MEAN])
async def test_what_is_said_of_its_pooling_goes_before_what_the_file_says(
    folder: Path, tmp_path: Path, in_file: gguf.PoolingType | None
) -> None:
    weights = tiny.write_bert(tmp_path / "m.gguf", in_file)
    async with serving(folder, tmp_path / "m.gguf", options=WorkerOptions(threads=1, pooling="cls")) as (worker, _):
        (found,) = await vectors(worker, "the cat sat")
    assert found == pytest.approx(unit(tiny.hidden(weights, THE_CAT_SAT)[0]), abs=2e-3)


async def test_a_decoder_is_made_an_embedder_or_no_longer_one(folder: Path, tmp_path: Path) -> None:
    tiny.write_decoder(tmp_path / "plain.gguf", None)
    tiny.write_decoder(tmp_path / "m.gguf", POOLING.LAST)
    (wanted,) = last_states(tmp_path / "plain.gguf", ["the end"])
    options = WorkerOptions(threads=1, pooling="last")
    async with serving(folder, tmp_path / "plain.gguf", ctx=512, options=options) as (worker, _):
        (found,) = await vectors(worker, "the end")
        refused = await worker.client.post("/v1/completions", json={"prompt": "x"})
    assert found == pytest.approx(unit(wanted), abs=5e-3)
    assert "only embeds texts" in refused.json()["error"]["message"]
    options = WorkerOptions(threads=1, pooling="none")
    async with serving(folder, tmp_path / "m.gguf", ctx=512, options=options) as (worker, _):
        answer = await post(worker, "/v1/completions", prompt="x", max_tokens=2)
    assert answer["usage"]["completion_tokens"] >= 1


async def test_texts_and_tokens_in_any_mixture(folder: Path, tmp_path: Path) -> None:
    tiny.write_bert(tmp_path / "m.gguf", POOLING.MEAN)
    text: Any = "the cat sat"
    forms: list[Any] = [
        {"prompt_string": text},
        {"content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat sat"}]},
        THE_CAT_SAT,
    ]
    async with serving(folder, tmp_path / "m.gguf") as (worker, _):
        (plain,) = await vectors(worker, text)
        found = await vectors(worker, [text, *forms])
        alone = [await vectors(worker, form) for form in forms]
        (mixed,) = await vectors(worker, ["the cat", *THE_CAT_SAT[-2:]])
        (tokens,) = await vectors(worker, [*THE_CAT_SAT[:3], tiny.SEP, *THE_CAT_SAT[-2:]])
        refused = [
            (await worker.client.post("/v1/embeddings", json={"input": wrong})).json()["error"]["param"]
            for wrong in ({"content": "x"}, {"content": [{"type": "image_url"}]}, ["x", {}], [])
        ]
    assert found == [pytest.approx(plain, abs=2e-3)] * 4
    assert alone == [[pytest.approx(plain, abs=2e-3)]] * 3
    assert mixed == pytest.approx(tokens, abs=2e-3)
    assert refused == ["input", "input.content[0]", "input[1]", "input"]


async def test_texts_share_steps_and_change_nothing_of_each_other(folder: Path, tmp_path: Path) -> None:
    weights = tiny.write_bert(tmp_path / "m.gguf", POOLING.MEAN)
    texts = [" ".join(tiny.WORDS[at % 8] for at in range(start, start + 1 + start % 5)) for start in range(70)]
    async with serving(folder, tmp_path / "m.gguf") as (worker, steps):
        found = await vectors(worker, texts)
        (steps_alone, first), steps[:] = (len(steps), max(steps)), []
        many = await asyncio.gather(*(vectors(worker, [text] * 3) for text in texts[:6]))  # of two slots and a queue
        short = await vectors(worker, texts[:2], dimensions=8)
    for text, vector in zip(texts, found, strict=True):
        states = tiny.hidden(weights, [tiny.CLS, *map(tiny.token, text.split()), tiny.SEP])
        assert vector == pytest.approx(unit(states.mean(0)), abs=2e-3)
    assert first > 3
    assert steps_alone < 60
    assert max(steps) > 3  # texts of several clients
    for three, vector in zip(many, found, strict=False):
        assert three == [pytest.approx(vector, abs=2e-3)] * 3
    assert short[1] == pytest.approx(unit(found[1][:8]), abs=2e-3)


async def test_a_text_that_is_too_long(folder: Path, tmp_path: Path) -> None:
    """A context beyond what an encoder was trained for has no positions for it."""
    tiny.write_bert(tmp_path / "m.gguf", POOLING.CLS)
    long = "cat " * 200
    async with serving(folder, tmp_path / "m.gguf", ctx=512) as (worker, _):
        refused = await worker.client.post("/v1/embeddings", json={"input": ["dog", long]})
        whole = await vectors(worker, "cat " * (tiny.TRAINED - 2))
        cut = [await vectors(worker, long, **how) for how in ({"truncate": True}, {"truncate_prompt_tokens": -1})]
        four = await vectors(worker, long, truncate_prompt_tokens=4)
        two = await vectors(worker, "cat cat")
    error = refused.json()["error"]
    assert refused.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (202, tiny.TRAINED)
    assert "text 1 of 2 has 202 tokens" in error["message"]
    assert cut == [whole, whole]
    assert four == two


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/rerank", {"query": "cat", "documents": ["dog"]}),
    ],
)
async def test_an_encoder_is_not_asked_to_chat(folder: Path, tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    tiny.write_bert(tmp_path / "m.gguf", POOLING.MEAN)
    async with serving(folder, tmp_path / "m.gguf") as (worker, _):
        answers = [await worker.client.post(path, json=body) for _ in range(2)]  # the first may come before the model
    for answer in answers:
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "model")
        assert "only embeds texts (/v1/embeddings)" in error["message"]


async def test_a_reranker_gives_what_numpy_gives(folder: Path, tmp_path: Path) -> None:
    weights = tiny.write_bert(tmp_path / "m.gguf", POOLING.RANK)
    documents = ["the cat sat on a mat", "a dog", "a rug"]
    async with serving(folder, tmp_path / "m.gguf") as (worker, _):
        answer = await post(worker, "/v1/rerank", model="x", query="the cat", documents=documents)
        best = await post(
            worker,
            "/reranking",
            query="the cat",
            documents=[{"text": text} for text in documents],
            top_n=1,
            return_documents=True,
            raw_scores=False,
        )
        tei = await post(worker, "/rerank", query="the cat", texts=documents, return_text=True)
        refused = await worker.client.post("/v1/embeddings", json={"input": "cat"})
    wanted = {}
    for index, text in enumerate(documents):
        query, document = ([tiny.token(word) for word in words.split()] for words in ("the cat", text))
        wanted[index] = tiny.score(weights, [tiny.CLS, *query, tiny.SEP, *document, tiny.SEP])
    order = sorted(wanted, key=lambda index: -wanted[index])
    assert [each["index"] for each in answer["results"]] == order
    for each in answer["results"]:
        assert each["relevance_score"] == pytest.approx(wanted[each["index"]], abs=5e-3)
    assert answer["usage"] == {"prompt_tokens": 25, "total_tokens": 25}
    (first,) = best["results"]
    assert first["document"] == {"text": documents[order[0]]}
    assert first["relevance_score"] == pytest.approx(1 / (1 + np.exp(-wanted[order[0]])), abs=5e-3)
    assert [(each["index"], each["text"]) for each in tei] == [(index, documents[index]) for index in order]
    assert refused.status_code == 400
    assert "only ranks documents (/v1/rerank)" in refused.json()["error"]["message"]


async def test_a_decoder_embeds_by_its_last_token(folder: Path, tmp_path: Path) -> None:
    """As the same weights do where they are not known to embed, each token with an output of its own."""
    tiny.write_decoder(tmp_path / "m.gguf", POOLING.LAST)
    tiny.write_decoder(tmp_path / "plain.gguf", None)
    texts = ["x" * 700, "x" * 650 + "y" * 20, "z", "the same beginning", "the same ending"]
    async with serving(folder, tmp_path / "m.gguf", ctx=1024) as (worker, steps):
        found = await vectors(worker, texts)
        before = len(steps)
        again = await vectors(worker, texts)
        refused = await worker.client.post("/v1/completions", json={"prompt": "x"})
    states = last_states(tmp_path / "plain.gguf", texts)
    for vector, wanted in zip(found, states, strict=True):
        assert vector == pytest.approx(unit(wanted), abs=5e-3)
    assert again == [pytest.approx(vector, abs=5e-3) for vector in found]
    assert before < 20  # not one for each 32 tokens
    assert refused.status_code == 400


async def test_a_decoder_whose_tokens_see_each_other_computes_a_text_at_once(folder: Path, tmp_path: Path) -> None:
    """As gte-Qwen2 does: texts of unequal length in one step are what each is alone, and more than a step's 512 tokens
    are one text."""
    tiny.write_decoder(tmp_path / "m.gguf", POOLING.MEAN, causal=False)
    texts = ["one", "another text", "x" * 600, "the last", "y" * 90]
    async with serving(folder, tmp_path / "m.gguf", ctx=1024, slots=4) as (worker, steps):
        together = await vectors(worker, texts)
        most = max(steps)
        alone = [(await vectors(worker, text))[0] for text in texts]
    assert most > 1
    for vector, wanted in zip(together, alone, strict=True):
        assert vector == pytest.approx(wanted, abs=5e-3)


async def test_a_decoder_ranks_by_its_template(folder: Path, tmp_path: Path) -> None:
    weights = tiny.write_decoder(tmp_path / "m.gguf", POOLING.RANK, TEMPLATE)
    tiny.write_decoder(tmp_path / "plain.gguf", None)
    documents = ["one", "two</s>three", "x" * 600]
    async with serving(folder, tmp_path / "m.gguf", ctx=1024) as (worker, _):
        answer = await post(worker, "/v1/rerank", query="q", documents=documents)
        cut = await post(worker, "/v1/rerank", query="q", documents=["x" * 600], max_tokens_per_doc=20)
        whole = await post(worker, "/v1/rerank", query="q", documents=["x" * 20])
    prompts = [f"Q:q\nD:{document}\nA:" for document in documents]
    # Each byte is a token here, so that text that looks like a control token is written as itself.
    states = last_states(tmp_path / "plain.gguf", [[1, *(3 + byte for byte in text.encode())] for text in prompts])
    scores = {each["index"]: each["relevance_score"] for each in answer["results"]}
    for index, state in enumerate(states):
        logits = weights["cls.output.weight"] @ state
        assert scores[index] == pytest.approx(float(np.exp(logits[0]) / np.exp(logits).sum()), abs=5e-3)
    assert cut["usage"] == whole["usage"]
    assert cut["results"][0]["relevance_score"] == pytest.approx(whole["results"][0]["relevance_score"], abs=5e-3)


def last_states(model: Path, texts: list[str] | list[list[int]]) -> list[Any]:
    """The state after each text's last token, all computed at once by an engine for the text alone."""
    from rbee_remote.worker.engine.interface import BatchToken
    from rbee_remote.worker.llama.engine import load_engine

    config = WorkerConfig("0" * 16, "m", str(model), "", WorkerOptions(threads=1), 1024, 1.0, slots=1)
    engine = load_engine(config, lambda _: True)
    found = []
    try:
        for text in texts:
            tokens = text if isinstance(text, list) else engine.tokenize(text, add_special=True, parse_special=True)
            engine.truncate(0, 0)
            for start in range(0, len(tokens), 32):
                piece = tokens[start : start + 32]
                engine.decode([BatchToken(each, start + at, 0, True) for at, each in enumerate(piece)], embeddings=True)
            found.append(engine.embedding(len(piece) - 1, 0).copy())
    finally:
        engine.close()
    return found


async def test_a_real_encoder_gives_what_its_page_tells(folder: Path) -> None:
    """all-MiniLM-L6-v2: the cosines on its page at the hub, and a text of its trained length beside short ones."""
    source, others = (
        "That is a happy person",
        ["That is a happy dog", "That is a very happy person", "Today is a sunny day"],
    )
    async with serving(folder, minilm.model(), ctx=512) as (worker, _):
        first, *found = await vectors(worker, [source, *others])
        long, alone = await vectors(worker, ["hello " * 510, source])
        refused = await worker.client.post("/v1/embeddings", json={"input": "hello " * 511})
    assert [float(np.dot(first, vector)) for vector in found] == pytest.approx([0.695, 0.943, 0.257], abs=2e-3)
    assert alone == pytest.approx(first, abs=2e-3)
    assert np.linalg.norm(long) == pytest.approx(1, abs=1e-3)
    assert refused.json()["error"]["n_prompt_tokens"] == 513
