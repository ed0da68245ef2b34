"""Models of a few thousand random weights that embed or rank, and what they have to give, computed with numpy.

A BERT, after Devlin et al. 2018 with the post-norm of transformers' BertModel; its vocabulary are words and letters.
And a decoder in the shape of Qwen 3, as Qwen3-Embedding and Qwen3-Reranker are, whose last token counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

WIDTH, HEADS, LAYERS, INNER, TRAINED = 32, 2, 2, 64, 128
_EPS = 1e-6

Floats = NDArray[np.float32]
Weights = dict[str, Floats]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["cat", "dog", "sat", "mat", "the", "on", "red", "rug"]
CLS, SEP = 2, 3
_LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
#: llama.cpp's form of a WordPiece vocabulary: what begins a word has a mark, what goes on with one has none.
VOCABULARY = [*SPECIAL, *(f"\u2581{word}" for word in WORDS), *(f"\u2581{letter}" for letter in _LETTERS), *_LETTERS]


def token(word: str) -> int:
    return VOCABULARY.index(f"\u2581{word}")


def write_bert(path: Path, pooling: gguf.PoolingType | None, *, trained: int = TRAINED) -> Weights:
    """The weights of the file. pooling: None for a file that does not say. Each time the same, but for RANK's head."""
    writer, weights = gguf.GGUFWriter(str(path), "bert"), _bert_weights(trained)
    if pooling is gguf.PoolingType.RANK:
        weights |= _random(2, {"cls.weight": (WIDTH, WIDTH), "cls.bias": (WIDTH,)})
        weights |= _random(3, {"cls.output.weight": (1, WIDTH), "cls.output.bias": (1,)})
    _add_shape(writer, trained)
    writer.add_layer_norm_eps(_EPS)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(VOCABULARY)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([*[control] * len(SPECIAL), *[normal] * (len(VOCABULARY) - len(SPECIAL))])
    writer.add_token_type_count(2)
    for add, index in (
        (writer.add_pad_token_id, 0),
        (writer.add_unk_token_id, 1),
        (writer.add_bos_token_id, CLS),
        (writer.add_sep_token_id, SEP),
        (writer.add_mask_token_id, 4),
    ):
        add(index)
    return _written(writer, weights)


def hidden(weights: Weights, tokens: list[int]) -> Any:
    """The last layer's state of each token, alone in its text."""
    positions = weights["position_embd.weight"][: len(tokens)]
    states: Any = weights["token_embd.weight"][tokens] + weights["token_types.weight"][0] + positions
    states = _normed(states, weights, "token_embd_norm")
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        query, key, value = (_heads(_linear(states, weights, f"{at}attn_{name}")) for name in "qkv")
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ value
        joined = mixed.transpose(1, 0, 2).reshape(len(tokens), WIDTH)
        states = _normed(states + _linear(joined, weights, f"{at}attn_output"), weights, f"{at}attn_output_norm")
        inner = _linear(states, weights, f"{at}ffn_up")
        inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        states = _normed(states + _linear(inner, weights, f"{at}ffn_down"), weights, f"{at}layer_output_norm")
    return states


def score(weights: Weights, tokens: list[int]) -> float:
    """What the head of RANK makes of a query and a document."""
    pooled = np.tanh(_linear(hidden(weights, tokens)[:1], weights, "cls"))
    return float(_linear(pooled, weights, "cls.output")[0, 0])


def write_decoder(path: Path, pooling: gguf.PoolingType | None, template: str = "", *, causal: bool = True) -> Weights:
    """template: of a reranker. causal: whether a token sees those before it alone. The same weights each time, with a
    head of two classes for RANK."""
    writer, head = gguf.GGUFWriter(str(path), "qwen3"), WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (259, WIDTH)}
    norms = {"output_norm.weight": WIDTH}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        shapes |= {f"{at}attn_{name}.weight": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {f"{at}ffn_{name}.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{at}ffn_down.weight": (WIDTH, INNER)}
        norms |= {f"{at}attn_norm.weight": WIDTH, f"{at}ffn_norm.weight": WIDTH}
        norms |= {f"{at}attn_q_norm.weight": head, f"{at}attn_k_norm.weight": head}
    weights = _random(1, shapes) | {name: np.ones(size, np.float32) for name, size in norms.items()}
    if pooling is gguf.PoolingType.RANK:
        weights |= _random(2, {"cls.output.weight": (2, WIDTH)})
        writer.add_classifier_output_labels(["yes", "no"])
        writer.add_chat_template([{"name": "rerank", "template": template}])
    _add_shape(writer, 4096)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(_EPS)
    writer.add_rope_freq_base(10000.0)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if not causal:
        writer.add_causal_attention(False)
    _add_bytes(writer)
    return _written(writer, weights)


def _add_bytes(writer: gguf.GGUFWriter) -> None:
    """A token for each byte, behind three of control."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([*kinds, *[gguf.TokenType.BYTE] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_eos_token(True)
    writer.add_add_space_prefix(False)


def _add_shape(writer: gguf.GGUFWriter, trained: int) -> None:
    writer.add_context_length(trained)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_feed_forward_length(INNER)


def _bert_weights(trained: int) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(VOCABULARY), WIDTH),
        "token_types.weight": (2, WIDTH),
        "position_embd.weight": (trained, WIDTH),
    }
    norms = ["token_embd_norm"]
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= {f"{at}{name}.weight": (WIDTH, WIDTH), f"{at}{name}.bias": (WIDTH,)}
        shapes |= {f"{at}ffn_up.weight": (INNER, WIDTH), f"{at}ffn_up.bias": (INNER,)}
        shapes |= {f"{at}ffn_down.weight": (WIDTH, INNER), f"{at}ffn_down.bias": (WIDTH,)}
        norms += [f"{at}attn_output_norm", f"{at}layer_output_norm"]
    weights = _random(1, shapes) | _random(4, {f"{name}.bias": (WIDTH,) for name in norms})
    return weights | {f"{name}.weight": np.ones(WIDTH, np.float32) for name in norms}


def _random(seed: int, shapes: dict[str, tuple[int, ...]]) -> Weights:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def _written(writer: gguf.GGUFWriter, weights: Weights) -> Weights:
    for name, values in weights.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _linear(states: Floats, weights: Weights, name: str) -> Any:
    return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _normed(states: Any, weights: Weights, name: str) -> Any:
    centred = states - states.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + _EPS)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _heads(states: Floats) -> Any:
    return states.reshape(len(states), HEADS, WIDTH // HEADS).transpose(1, 0, 2)
