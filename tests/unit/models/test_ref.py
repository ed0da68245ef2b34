"""Model refs: what is taken, what is refused, and that the canonical form stands for itself."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import NodeError, RbeeError, UsageError
from rbee.models.ref import built_in, parse_ref
from rbee_remote.protocol import ErrorCode, Source


@pytest.mark.parametrize(
    ("text", "canonical", "source"),
    [
        ("hf:a/b", "hf:a/b", Source(kind="hf", repo="a/b")),
        ("HF:a/b", "hf:a/b", Source(kind="hf", repo="a/b")),
        ("hf:a/b:Q4_K_M", "hf:a/b:Q4_K_M", Source(kind="hf", repo="a/b", file="Q4_K_M")),
        (
            "hf:a/b:x/y-1.gguf@v1",
            "hf:a/b:x/y-1.gguf@v1",
            Source(kind="hf", repo="a/b", file="x/y-1.gguf", revision="v1"),
        ),
        ("hf:a/b@refs/pr/1", "hf:a/b@refs/pr/1", Source(kind="hf", repo="a/b", revision="refs/pr/1")),
        ("file:/m/a.gguf", "file:/m/a.gguf", Source(kind="file", path="/m/a.gguf")),
        ("file:///m//./a b.gguf", "file:/m/a b.gguf", Source(kind="file", path="/m/a b.gguf")),
        (
            "https://h.example/m.gguf#x",
            "https://h.example/m.gguf",
            Source(kind="https", url="https://h.example/m.gguf"),
        ),
        ("http://127.0.0.1:80/m", "http://127.0.0.1:80/m", Source(kind="https", url="http://127.0.0.1:80/m")),
        (
            "hf:a/b:Q8/m-00002-of-00003.gguf",
            "hf:a/b:Q8/m-00001-of-00003.gguf",
            Source(kind="hf", repo="a/b", file="Q8/m-00001-of-00003.gguf"),
        ),
        (
            "file:/m/a-00003-of-00003.gguf",
            "file:/m/a-00001-of-00003.gguf",
            Source("file", path="/m/a-00001-of-00003.gguf"),
        ),
        (
            "https://h.example/m-00002-of-00002.gguf",
            "https://h.example/m-00001-of-00002.gguf",
            Source(kind="https", url="https://h.example/m-00001-of-00002.gguf"),
        ),
    ],
)
def test_each_form(text: str, canonical: str, source: Source) -> None:
    ref = parse_ref(text)
    assert (ref.canonical, ref.sources) == (canonical, (source,))
    assert source.describe() == canonical


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        ("https://huggingface.co/a/b", "hf:a/b"),
        ("https://huggingface.co/a/b/", "hf:a/b"),
        ("https://www.huggingface.co/a/b#readme", "hf:a/b"),
        ("huggingface.co/a/b", "hf:a/b"),
        ("hf.co/a/b:Q4_K_M", "hf:a/b:Q4_K_M"),
        ("https://hf.co/a/b:m-00002-of-00002.gguf", "hf:a/b:m-00001-of-00002.gguf"),
        ("https://huggingface.co/a/b?show_file_info=x%2Fm.gguf", "hf:a/b:x/m.gguf"),
        ("https://huggingface.co/a/b/tree/main", "hf:a/b"),
        ("https://huggingface.co/a/b/tree/v1", "hf:a/b@v1"),
        ("https://huggingface.co/a/b/tree/main/Q4_K_M", "hf:a/b:Q4_K_M"),
        ("https://huggingface.co/a/b/tree/refs%2Fpr%2F1", "hf:a/b@refs/pr/1"),
        (
            "https://huggingface.co/a/b/blob/main/x/m.gguf",
            "https://huggingface.co/a/b/resolve/main/x/m.gguf",
        ),
        ("hf.co/a/b/blob/v1/m.gguf", "https://hf.co/a/b/resolve/v1/m.gguf"),
        ("https://mirror.example/a/b/blob/main/m.gguf", "https://mirror.example/a/b/resolve/main/m.gguf"),
        ("https://github.com/a/b/blob/main/m.gguf", "https://github.com/a/b/blob/main/m.gguf"),
        ("https://h.example/blob/main/m.gguf", "https://h.example/blob/main/m.gguf"),
        ("https://huggingface.co/a/b/resolve/main/m.gguf", "https://huggingface.co/a/b/resolve/main/m.gguf"),
    ],
)
def test_addresses_of_the_hubs_pages_are_refs(address: str, canonical: str) -> None:
    assert parse_ref(address).canonical == canonical
    assert parse_ref(canonical).canonical == canonical


@pytest.mark.parametrize("address", ["hf.co/a/..", "https://huggingface.co/../b", "hf.co/a/b:../m.gguf"])
def test_a_page_is_no_way_out_of_its_repository(address: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(address)


SIGNED = "X-Amz-Signature=s3cret&X-Amz-Date=1&x-amz-security-token=s3cret"


@pytest.mark.parametrize(
    ("query", "same_as"),
    [
        (SIGNED, ""),
        ("sv=2026&sr=b&sig=s3cret&se=x&sp=r", ""),
        ("Expires=1&Signature=s3cret&Key-Pair-Id=x&Policy=y", ""),
        ("download=true", ""),
        (f"id=7&{SIGNED}", "id=7"),
        (f"{SIGNED}&id=7", "id=7"),
    ],
)
def test_what_signs_a_url_is_no_part_of_its_name(query: str, same_as: str) -> None:
    signed = parse_ref(f"https://h.example/m.gguf?{query}")
    plain = parse_ref(f"https://h.example/m.gguf{'?' if same_as else ''}{same_as}")
    assert signed.canonical == plain.canonical
    assert signed.sources[0].url == f"https://h.example/m.gguf?{query}"
    assert "s3cret" not in signed.canonical + signed.sources[0].describe()


def test_urls_that_differ_in_their_query_alone_are_other_files() -> None:
    urls = (
        "https://h.example/m",
        "https://h.example/m?id=1",
        "https://h.example/m?id=2",
        "https://h.example/m?key=s3cret",
    )
    names = [parse_ref(url).canonical for url in urls]
    assert len(set(names)) == 4
    assert "s3cret" not in "".join(names)
    assert [parse_ref(name).canonical for name in names] == names


def test_an_error_about_a_url_shows_nothing_of_its_query() -> None:
    with pytest.raises(UsageError) as caught:
        parse_ref("http://h.example/m?token=s3cret")
    assert "s3cret" not in f"{caught.value} {caught.value.hint} {caught.value.details}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf:",
        "hf:only-an-owner",
        "hf:a/b/c",
        "hf:../b",
        "hf:a/b:",
        "hf:a/b:../../etc/passwd",
        "hf:a/b:/etc/passwd",
        "hf:a/b:x//y",
        "hf:a/b@",
        "hf:a/b@../x",
        "hf:a/b@-x",
        "file:relative.gguf",
        "file:~/m.gguf",
        "file:/m/../etc/passwd",
        "file:/m/",
        "http://example.org/m.gguf",
        "https://",
        "https://example.org",
        "https://h:notaport/m",
        "a b",
        "smollm2:135m\n",
        "file:/m\x1b[2J.gguf",
        "x" * 2000,
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ref(text)
    assert "hf:OWNER/REPO" in caught.value.hint
    assert caught.value.message.isprintable()


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        parse_ref("https://me:s3cret@example.org/m.gguf")
    assert "s3cret" not in f"{caught.value.message}{caught.value.hint}"


def test_the_built_in_name_comes_with_its_sources_size_and_checksum() -> None:
    ref = parse_ref("SmolLM2:135M")
    assert ref.canonical == "smollm2:135m"
    assert (ref.size, len(ref.sha256)) == (98_362_432, 64)
    assert ref.sources[0].kind == "wheel"


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(NodeError) as caught:
        parse_ref("smolm2:135m")
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND
    assert "did you mean smollm2:135m?" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("qwen3", "qwen3:8b"),
        ("llama3.2", "llama3.2:3b"),
        ("Gemma3:latest", "gemma3:4b"),
        ("gpt-oss", "gpt-oss:20b"),
        ("mistral-small", "mistral-small:24b"),
        ("nomic-embed-text", "nomic-embed-text:v1.5"),
        ("bge-reranker-v2-m3", "bge-reranker-v2-m3"),
    ],
)
def test_a_name_alone_means_its_usual_size(text: str, expected: str) -> None:
    ref = parse_ref(text)
    assert ref.canonical == expected
    assert parse_ref(ref.canonical) == ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ollama:llama3.2:3b", "ollama:llama3.2:3b"),
        ("ollama:Llama3.2", "ollama:llama3.2:latest"),
        ("ollama:somebody/coder:7b", "ollama:somebody/coder:7b"),
    ],
)
def test_names_of_ollama_are_refs(text: str, expected: str) -> None:
    ref = parse_ref(text)
    assert ref.canonical == ref.sources[0].describe() == expected
    assert parse_ref(expected) == ref


@pytest.mark.parametrize("text", ["ollama:", "ollama:../x", "ollama:a b", "ollama:a:b/c", "ollama:a:"])
def test_what_ollama_cannot_have_is_no_ref(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ref(text)


def test_a_size_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(NodeError) as caught:
        parse_ref("llama3.2:90b")
    assert "did you mean llama3.2:1b or llama3.2:3b?" in caught.value.hint


def test_each_family_has_one_default_at_most() -> None:
    families = [name.partition(":")[0] for name, model in built_in().items() if model.default]
    assert len(families) == len(set(families))
    assert not set(families) & set(built_in())


def test_every_built_in_model_can_be_named_and_fetched() -> None:
    for name, model in built_in().items():
        assert parse_ref(name).canonical == name
        assert model.title
        assert model.license
        assert model.kind in ("chat", "embedding", "rerank")
        assert model.sources
        assert not model.sha256 or re.fullmatch("[0-9a-f]{64}", model.sha256)
        for source in model.sources:
            assert source.kind == "wheel" or parse_ref(source.describe()).sources == (source,)


WORD = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_]{0,8}", fullmatch=True)
PATH = st.lists(WORD, min_size=1, max_size=3).map("/".join)


@given(owner=WORD, repo=WORD, file=st.none() | PATH, revision=st.none() | PATH)
def test_hub_refs_survive_a_round_trip(owner: str, repo: str, file: str | None, revision: str | None) -> None:
    text = f"hf:{owner}/{repo}" + (f":{file}" if file else "") + (f"@{revision}" if revision else "")
    ref = parse_ref(text)
    assert ref.canonical == text
    assert ref.sources[0] == Source(kind="hf", repo=f"{owner}/{repo}", file=file or "", revision=revision or "")


@given(
    st.text(max_size=60) | st.text(max_size=40).map("file:/{}".format) | st.text(max_size=40).map("hf:a/b:{}".format)
)
def test_whatever_is_taken_is_safe_and_stands_for_itself(text: str) -> None:
    try:
        ref = parse_ref(text)
    except RbeeError:
        return
    assert parse_ref(ref.canonical) == ref
    assert ref.canonical.isprintable()
    for source in ref.sources:
        assert ".." not in f"{source.path}/{source.file}".split("/")
