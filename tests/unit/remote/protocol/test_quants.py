"""Which model of a repository a ref means, by the names that people give quantisations and files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.protocol.quants import PREFERRED, NotChosen, choose, is_model, key, models, quant_of

GB = 10**9

#: As repositories on the hub have them: by file name, the size in GB.
UNSLOTH = {
    "Qwen3-8B-BF16.gguf": 16.4,
    "Qwen3-8B-IQ4_NL.gguf": 4.8,
    "Qwen3-8B-IQ4_XS.gguf": 4.6,
    "Qwen3-8B-Q2_K.gguf": 3.3,
    "Qwen3-8B-Q2_K_L.gguf": 3.5,
    "Qwen3-8B-Q4_0.gguf": 4.8,
    "Qwen3-8B-Q4_K_M.gguf": 5.0,
    "Qwen3-8B-Q4_K_S.gguf": 4.8,
    "Qwen3-8B-Q8_0.gguf": 8.7,
    "Qwen3-8B-UD-IQ1_M.gguf": 2.3,
    "Qwen3-8B-UD-Q4_K_XL.gguf": 5.1,
    "Qwen3-8B-UD-Q8_K_XL.gguf": 10.8,
    "README.md": 0.0,
    "imatrix_unsloth.dat": 0.1,
    "imatrix_unsloth.gguf_file": 0.1,
    "mmproj-BF16.gguf": 0.9,
    "mmproj-F16.gguf": 0.9,
}
SIZES = {name: int(size * GB) for name, size in UNSLOTH.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Llama-3.2-3B.Q5_K_S.gguf", "Q5_K_S"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Qwen3-Coder-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-ud-q4-k-xl.gguf", "UD-Q4_K_XL"),
        ("m-IQ3_XXS.gguf", "IQ3_XXS"),
        ("m-IQ2_M.gguf", "IQ2_M"),
        ("m-IQ4_NL.gguf", "IQ4_NL"),
        ("m-TQ1_0.gguf", "TQ1_0"),
        ("m-Q4_K_M-imat.gguf", "Q4_K_M"),
        ("m-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("m-Q6_K_L.gguf", "Q6_K_L"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "FP16"),
        ("nomic-embed-text-v1.5.f16.gguf", "F16"),
        ("BF16/model-00001-of-00002.gguf", "BF16"),
        ("Q6_K/m-Q6_K-00001-of-00002.gguf", "Q6_K"),
        ("Qwen3.5-9B.gguf", ""),
        ("SmolLM3.gguf", ""),
    ],
)
def test_the_quantisation_is_read_from_the_name(name: str, expected: str) -> None:
    assert quant_of(name) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("Q4_K_M", "Qwen3-8B-Q4_K_M.gguf"),
        ("q4-k-m", "Qwen3-8B-Q4_K_M.gguf"),
        ("Q4.K.M", "Qwen3-8B-Q4_K_M.gguf"),
        ("q4km", "Qwen3-8B-Q4_K_M.gguf"),
        ("UD-Q4_K_XL", "Qwen3-8B-UD-Q4_K_XL.gguf"),
        ("ud_q4_k_xl", "Qwen3-8B-UD-Q4_K_XL.gguf"),
        ("Q4_K_XL", "Qwen3-8B-UD-Q4_K_XL.gguf"),
        ("IQ4_XS", "Qwen3-8B-IQ4_XS.gguf"),
        ("bf16", "Qwen3-8B-BF16.gguf"),
        ("Q2_K", "Qwen3-8B-Q2_K.gguf"),
        ("Q8_0", "Qwen3-8B-Q8_0.gguf"),
        ("qwen3-8b-q8_0.gguf", "Qwen3-8B-Q8_0.gguf"),
        ("Qwen3-8B-Q8_0", "Qwen3-8B-Q8_0.gguf"),
        ("mmproj-F16.gguf", "mmproj-F16.gguf"),
        ("", "Qwen3-8B-Q4_K_M.gguf"),
    ],
)
def test_case_and_separators_do_not_matter(wanted: str, expected: str) -> None:
    assert choose(SIZES, wanted, "unsloth/Qwen3-8B-GGUF").name == expected


@given(st.sampled_from([name for name in SIZES if is_model(name)]), st.data())
def test_a_quantisation_is_found_in_any_spelling(name: str, data: st.DataObject) -> None:
    quant = quant_of(name)
    spelt = "".join(data.draw(st.sampled_from("-_.")) if char in "-_" else char for char in quant)
    spelt = "".join(data.draw(st.sampled_from([char.lower(), char.upper()])) for char in spelt)
    assert choose(SIZES, spelt, "o/r").name == name


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4_MOE"),
        ("m-MXFP4_MOE.gguf", "mxfp4"),
        ("m-fp16.gguf", "F16"),
        ("m-Q4_K_M-imat.gguf", "Q4_K_M-imat"),
        ("m-Q4_K_M-imat.gguf", "q4_k_m"),
        ("m-Q4_K_M_imat.gguf", "Q4_K_M-imat"),
    ],
)
def test_other_names_of_one_quantisation_are_understood(file: str, wanted: str) -> None:
    assert choose({file: 1, "m-Q8_0.gguf": 1}, wanted, "o/r").name == file


def test_with_and_without_imat_are_two() -> None:
    files = {"m-Q4_K_M.gguf": 1, "m-Q4_K_M-imat.gguf": 1}
    assert choose(files, "Q4_K_M", "o/r").name == "m-Q4_K_M.gguf"
    assert choose(files, "Q4_K_M-imat", "o/r").name == "m-Q4_K_M-imat.gguf"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mmproj-F16.gguf", False),
        ("model.mmproj-Q8_0.gguf", False),
        ("imatrix.gguf", False),
        ("Qwen3-8B-imatrix.gguf", False),
        ("Qwen3-8B-BF16-imatrix.gguf", False),
        ("Qwen3-8B-Q4_K_M-imatrix.gguf", True),
        ("imatrix.dat", False),
        ("Llama-draft-Q8_0.gguf", False),
        ("mtp-Qwen3.6-Q8_0.gguf", False),
        ("EAGLE3-Llama-Q8_0.gguf", False),
        ("my-lora-F16.gguf", False),
        ("adapter-f16.gguf", False),
        ("Explorator-7B-Q8_0.gguf", True),
        ("README.md", False),
    ],
)
def test_what_goes_with_a_model_is_none(name: str, expected: bool) -> None:
    assert is_model(name) is expected


def test_a_repository_of_drafts_has_models() -> None:
    assert is_model("Qwen3-0.6B-draft-Q8_0.gguf", "somebody/Qwen3-0.6B-draft-GGUF")
    assert not is_model("Qwen3-lora-Q8_0.gguf", "somebody/Qwen3-lora-GGUF")


def test_where_none_is_named_the_usual_balance_is_taken_and_told() -> None:
    choice = choose(SIZES, "", "unsloth/Qwen3-8B-GGUF", room=8 * GB)
    assert choice.name == "Qwen3-8B-Q4_K_M.gguf"
    assert "usual balance" in choice.why


def test_where_that_has_no_space_the_largest_that_has_is_taken() -> None:
    choice = choose(SIZES, "", "unsloth/Qwen3-8B-GGUF", room=int(4.9 * GB))
    assert choice.name == "Qwen3-8B-Q4_K_S.gguf"
    assert choice.why == "Q4_K_S is the largest of 12 that has space in 4.9 GB"
    choice = choose(SIZES, "", "unsloth/Qwen3-8B-GGUF", room=1 * GB)
    assert choice.name == "Qwen3-8B-UD-IQ1_M.gguf"
    assert "none has space in 1.0 GB" in choice.why


def test_of_parts_the_sum_has_to_have_space() -> None:
    files = {f"m-Q4_K_M-0000{number}-of-00002.gguf": 3 * GB for number in (1, 2)} | {"m-Q2_K.gguf": 3 * GB}
    assert choose(files, "", "o/r", room=4 * GB).name == "m-Q2_K.gguf"
    assert choose(files, "", "o/r", room=6 * GB).name == "m-Q4_K_M-00001-of-00002.gguf"


def test_what_could_be_several_is_not_guessed() -> None:
    with pytest.raises(NotChosen) as failure:
        choose({"Llama-1B-Q4_K_M.gguf": GB, "Llama-3B-Q4_K_M.gguf": 2 * GB}, "Q4_K_M", "o/r")
    assert "2 models that Q4_K_M could mean" in failure.value.message
    assert failure.value.candidates == ("Llama-1B-Q4_K_M.gguf (1.0 GB)", "Llama-3B-Q4_K_M.gguf (2.0 GB)")
    with pytest.raises(NotChosen, match="2 models"):
        choose({"Llama-1B-Q4_K_M.gguf": 1, "Llama-3B-Q4_K_M.gguf": 1}, "", "o/r")


def test_a_word_of_the_name_tells_them_apart() -> None:
    files = {"Llama-1B-Q4_K_M.gguf": 1, "Llama-3B-Q4_K_M.gguf": 1, "Llama-3B-Q8_0.gguf": 1}
    assert choose(files, "3b-q4_k_m", "o/r").name == "Llama-3B-Q4_K_M.gguf"


def test_the_nearest_are_listed_with_their_sizes() -> None:
    with pytest.raises(NotChosen) as failure:
        choose(SIZES, "Q4_K_L", "unsloth/Qwen3-8B-GGUF")
    assert failure.value.candidates[0] in ("Qwen3-8B-Q4_K_M.gguf (5.0 GB)", "Qwen3-8B-Q4_K_S.gguf (4.8 GB)")
    assert all("mmproj" not in candidate for candidate in failure.value.candidates)


def test_a_repository_without_models_says_so() -> None:
    with pytest.raises(NotChosen, match="no GGUF file that is a model"):
        choose({"mmproj-F16.gguf": 1, "model.safetensors": 1}, "", "o/r")


def test_every_preferred_one_is_a_quantisation() -> None:
    assert [quant_of(f"m-{quant}.gguf") for quant in PREFERRED] == list(PREFERRED)
    assert len({key(quant) for quant in PREFERRED}) == len(PREFERRED)
    assert [each.quant for each in models({"m.gguf": None})] == [""]


@given(st.lists(st.text(st.characters(codec="ascii"), max_size=30), max_size=8), st.text(max_size=20))
def test_any_names_give_a_choice_or_a_reason(names: list[str], wanted: str) -> None:
    files = {name: index for index, name in enumerate(names)} | {f"{name}.gguf": None for name in names}
    try:
        assert choose(files, wanted, "o/r").name in files
    except NotChosen as error:
        assert error.message
