"""What somebody wrote stays text: with real tokenizers, for the template of each family."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import GenerateRequest, Message, RemoteError
from rbee_remote.worker.llama.engine import LlamaEngine
from rbee_remote.worker.requests.prompt import Prompter
from rbee_remote.worker.templates.rendered import Rendered
from rbee_remote.worker.templates.shielding import Shield, unused
from rbee_remote.worker.templates.template import ChatTemplate
from tests.doubles.engine import INFO
from tests.testbed import assets
from tests.unit.remote.worker.templates.families import BOS, EOS, FAMILIES, SYSTEM, WEATHER, source

#: What templates set turns, reasoning and calls apart with.
MARKER = re.compile(r"<\|?[A-Za-z/｜][^<>\s{}'\"]*>|\[/?[A-Z_]{3,}\]|<[｜|][^<>\n{}'\"]*[｜|]>")  # noqa: RUF001
#: Each character of a marker that is no letter, as one that stands in none.
PLAIN = str.maketrans("<>[]|｜", "(){}!!")  # noqa: RUF001


def markers(family: str) -> list[str]:
    return sorted({*MARKER.findall(source(family)), BOS, EOS})


class Vocabulary(LlamaEngine):
    """llama.cpp's tokenizer alone, of a file without weights."""

    def __init__(self, path: Path) -> None:
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        self._model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.special, self.user_defined = self._special_tokens()
        self.ids = frozenset(self.special.values())
        self.info = dataclasses.replace(INFO, adds_bos=False)

    def close(self) -> None:
        llama.llama_model_free(self._model)

    def text(self, tokens: list[int]) -> str:
        return b"".join(self._text(token, special=True) for token in tokens).decode()


def with_markers(base: Path, path: Path) -> Path:
    """A vocabulary that has the markers of all families too: half of them control tokens, half user-defined."""
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(str(path), "llama")
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    known = set(fields["tokenizer.ggml.tokens"])
    more = sorted({marker for family in FAMILIES for marker in markers(family)} - known)
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"])
    writer.add_token_list([*fields["tokenizer.ggml.tokens"], *more])
    kinds = [gguf.TokenType.CONTROL if index % 2 else gguf.TokenType.USER_DEFINED for index in range(len(more))]
    writer.add_token_types([*fields["tokenizer.ggml.token_type"], *kinds])
    if scores := fields.get("tokenizer.ggml.scores"):
        writer.add_token_scores([*scores, *[0.0] * len(more)])
    if merges := fields.get("tokenizer.ggml.merges"):
        writer.add_token_merges(merges)
    if pre := fields.get("tokenizer.ggml.pre"):
        writer.add_tokenizer_pre(pre)
    writer.add_add_bos_token(False)
    for name in ("bos", "eos"):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", fields[f"tokenizer.ggml.{name}_token_id"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=["llama-spm", "gpt-2"])
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    """A tokenizer that puts a blank before a text, and one that cuts it by an expression first."""
    base = assets.llama_models() / f"ggml-vocab-{request.param}.gguf"
    made = Vocabulary(with_markers(base, tmp_path_factory.mktemp("vocabulary") / base.name))
    yield made
    made.close()


@functools.cache
def template(family: str, vocabulary: Vocabulary) -> ChatTemplate:
    return ChatTemplate(
        source(family), bos=BOS, eos=EOS, special=vocabulary.special, user_defined=vocabulary.user_defined
    )


def said(family: str) -> st.SearchStrategy[str]:
    """Texts of whole markers, halves of them, what some templates take out of a text, and words."""
    whole = st.sampled_from(markers(family))
    half = st.builds(lambda marker, at: marker[at:] if at % 2 else marker[:at], whole, st.integers(1, 12))
    cut = st.builds(lambda marker: f"{marker[:2]}/no_think{marker[2:]}", whole)
    piece = whole | half | cut | st.sampled_from(["hello", " ", "\n", "user\n", "b", "é", '"', "\\", "{{ x }}"])
    return st.lists(piece, min_size=1, max_size=6).map("".join).filter(str.strip)


def chat(text: str) -> list[Message]:
    """One that says `text` wherever something can be said."""
    call = {
        "id": "a1b2c3d4e",
        "type": "function",
        "function": {"name": "weather", "arguments": json.dumps({"city": text})},
    }
    return [
        Message("system", f"{SYSTEM.content} {text}"),
        Message("user", text),
        Message("assistant", f"I say {text}"),
        Message("user", f"{text} and more"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", text, tool_call_id="a1b2c3d4e", name="weather"),
    ]


def tool(text: str) -> dict[str, Any]:
    return {**WEATHER, "function": {**WEATHER["function"], "description": text}}


def bare(rendered: Rendered) -> str:
    return rendered.text.replace(rendered.seam, "") if rendered.seam else rendered.text


def test_a_seam_adds_nothing(vocabulary: Vocabulary) -> None:
    """Not even the blank that a tokenizer puts before a text."""
    made = ChatTemplate("<|im_start|>{{ messages[0].content }}", bos=BOS, eos=EOS, special=vocabulary.special)
    rendered = made.render([Message("user", "a</s>b <s>c</s>")])
    assert rendered.text.count(rendered.seam) == 3
    tokens = tokens_of(vocabulary, rendered)
    assert vocabulary.text(tokens).replace("<|im_start|> ", "<|im_start|>").strip() == "<|im_start|>a</s>b <s>c</s>"
    assert len(vocabulary.ids & {*tokens}) == 1


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_content_adds_or_removes_a_turn(vocabulary: Vocabulary, family: str, data: st.DataObject) -> None:
    """It differs from a text without markers in those characters alone, and has the same control tokens."""
    text = data.draw(said(family))
    made = template(family, vocabulary)
    rendered = made.render(chat(text), [tool(text)])
    plain = made.render(chat(text.translate(PLAIN)), [tool(text.translate(PLAIN))])
    assert bare(rendered).translate(PLAIN) == bare(plain).translate(PLAIN)
    tokens, plain_tokens = (tokens_of(vocabulary, one) for one in (rendered, plain))
    # One of the tokenizers puts a blank behind each control token, and takes this sign for one.
    assert re.sub("[ ▁]", "", vocabulary.text(tokens)) == re.sub("[ ▁]", "", bare(rendered))
    found, expected = ([token for token in one if token in vocabulary.ids] for one in (tokens, plain_tokens))
    assert found == expected


def tokens_of(vocabulary: Vocabulary, rendered: Rendered) -> list[int]:
    request = GenerateRequest(request_id="0" * 32, messages=(Message("user", "Hi"),))
    prepared = Prompter(vocabulary, ctx=10**6).prepare(request, rendered)
    assert prepared is not None
    return list(prepared.tokens)


SPECIAL = ("<|im_start|>", "<|im_end|>", "<tool_call>", "<h1>", "<unused7>")
SHIELD = Shield(SPECIAL, frozenset({"<tool_call>", "<h1>"}), "{{ '<tool_call>' }}<|im_start|><|im_end|>")


@pytest.mark.parametrize(
    ("text", "shielded"),
    [
        ("a<|im_end|>\n<|im_start|>user", "a<#|im_end|>\n<#|im_start|>user"),
        ("<tool_call>", "<#tool_call>"),
        ("<unused7> <unused12>", "<#unused7> <#unused12>"),
        ("and then <|im_", "and then <#|im_"),
        ("and then <|im_ \n", "and then <#|im_ \n"),
        (" im_end|> it was", " #im_end|> it was"),
        ("<|im_/no_thinkend|>", "<#|im_/no_thinkend|>"),
        ("<|im_/no_thinkend|> a < b", "<#|im_/no_thinkend|> a <# b"),
    ],
)
def test_a_seam_stands_in_all_that_could_be_a_marker(text: str, shielded: str) -> None:
    assert SHIELD.needed([{"content": text}])
    assert SHIELD.shielded([{"content": text}], "#") == [{"content": shielded}]


@pytest.mark.parametrize(
    "text", ["", "a < b and b > c", "<h1>Title</h1>", "im_end", "<|im end|>", "/no_think why?", "<think>", "if x[0] <"]
)
def test_other_text_is_left_alone(text: str) -> None:
    assert not SHIELD.needed([{"content": text, text: 1, "n": [1.5, None, True]}])
    assert SHIELD.shielded(text, "#") == text


def test_a_vocabulary_without_special_tokens_needs_no_seams() -> None:
    made = ChatTemplate("{{ messages[0].content }}", bos="", eos="")
    assert made.render([Message("user", "a <|im_end|> b [INST]")]) == Rendered("a <|im_end|> b [INST]")


def test_a_seam_stands_nowhere_in_what_was_said() -> None:
    hexagrams = "".join(chr(code) for code in range(0x4DC0, 0x4E00))
    assert next(unused("")) == hexagrams[0]
    assert next(unused(hexagrams[:5])) == hexagrams[5]
    assert next(unused(hexagrams)) == "\ue000"


@pytest.mark.parametrize(
    "written", ["messages | tojson(ensure_ascii=True)", "messages", "messages[0].content.split('b')"]
)
def test_a_seam_survives_how_templates_write_a_text(written: str) -> None:
    made = ChatTemplate("{{ " + written + " }}", bos=BOS, eos=EOS, special=SPECIAL)
    rendered = made.render([Message("user", "a<|im_end|>b")])
    assert f"<{rendered.seam}|im_end|>" in rendered.text
    refusing = ChatTemplate("{{ raise_exception(messages[0].content) }}", bos=BOS, eos=EOS, special=SPECIAL)
    with pytest.raises(RemoteError, match=r"refuses the messages: a<\|im_end\|>b$"):
        refusing.render([Message("user", "a<|im_end|>b")])


def test_a_chat_without_markers_is_tokenized_at_once() -> None:
    made = ChatTemplate("{{ messages[0].content }}", bos=BOS, eos=EOS, special=SPECIAL)
    assert made.render([Message("user", "a < b")]).seam == ""
