"""Models of a few thousand random weights, in the shapes that matter to what remembers their tokens: attention over
everything, attention over a sliding window, and a recurrent state. Their text means nothing, but it is a function of
every token before, and wrong memory changes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, LAYERS = 32, 2, 6
WINDOW = 16
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_TOKENS = ["<unk>", "<s>", "</s>", *_BYTES]

Tensor = Callable[..., None]


#: What a model that fills in has besides, under names by which llama.cpp knows them.
FILLING_IN = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]


def write(path: Path, kind: str, template: str = "", *, fills_in: bool = False) -> Path:
    """kind: llama (attention over everything), gemma3 (a sliding window of 16 tokens in five of six layers) or mamba
    (recurrent). template: of its chats. The same file each time."""
    writer = gguf.GGUFWriter(str(path), kind)
    random = np.random.default_rng(1)

    def tensor(name: str, *shape: int, around: float = 0.0) -> None:
        """A tensor of `shape`, numpy's order, with values near `around`."""
        values = random.normal(around, 0.05 if around else 0.3, shape)
        writer.add_tensor(name, values.astype(np.float32))

    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [*_TOKENS, *(FILLING_IN if fills_in else [])]
    _add_vocabulary(writer, tokens)
    if template:
        writer.add_chat_template(template)
    tensor("token_embd.weight", len(tokens), WIDTH)
    tensor("output_norm.weight", WIDTH, around=1.0)
    (_add_mamba if kind == "mamba" else _add_attention)(writer, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    more = [gguf.TokenType.CONTROL] * (len(tokens) - len(_TOKENS))
    writer.add_token_types([*kinds, *[gguf.TokenType.BYTE] * len(_BYTES), *more])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add_attention(writer: gguf.GGUFWriter, tensor: Tensor, kind: str) -> None:
    head = WIDTH // HEADS
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_rope_freq_base(10000.0)
    if kind == "gemma3":
        writer.add_sliding_window(WINDOW)
    norms = ["attn_norm", "ffn_norm", *(["post_attention_norm", "post_ffw_norm"] if kind == "gemma3" else [])]
    for layer in range(LAYERS):
        for name in norms:
            tensor(f"blk.{layer}.{name}.weight", WIDTH, around=1.0)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        if kind == "gemma3":
            for name in ("attn_q_norm", "attn_k_norm"):
                tensor(f"blk.{layer}.{name}.weight", head, around=1.0)
        for name, shape in (("gate", (2 * WIDTH, WIDTH)), ("up", (2 * WIDTH, WIDTH)), ("down", (WIDTH, 2 * WIDTH))):
            tensor(f"blk.{layer}.ffn_{name}.weight", *shape)


def _add_mamba(writer: gguf.GGUFWriter, tensor: Tensor, _: str) -> None:
    inner, state, rank, kernel = 2 * WIDTH, 8, 4, 4
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    for layer in range(LAYERS):
        tensor(f"blk.{layer}.attn_norm.weight", WIDTH, around=1.0)
        tensor(f"blk.{layer}.ssm_in.weight", 2 * inner, WIDTH)
        tensor(f"blk.{layer}.ssm_conv1d.weight", inner, kernel)
        tensor(f"blk.{layer}.ssm_conv1d.bias", inner)
        tensor(f"blk.{layer}.ssm_x.weight", rank + 2 * state, inner)
        tensor(f"blk.{layer}.ssm_dt.weight", inner, rank)
        tensor(f"blk.{layer}.ssm_dt.bias", inner)
        tensor(f"blk.{layer}.ssm_a", inner, state, around=-0.5)
        tensor(f"blk.{layer}.ssm_d", inner)
        tensor(f"blk.{layer}.ssm_out.weight", WIDTH, inner)
