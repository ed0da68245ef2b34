"""What a request may ask for: the worker refuses what is beyond, and the keeper does before it connects."""

from __future__ import annotations

import re

#: Field of `Sampling` to its lowest and highest value, both allowed. Seeds are llama.cpp's uint32; its largest means
#: "choose one".
SAMPLING: dict[str, tuple[float, float]] = {
    "temperature": (0, 5),
    "top_k": (0, 1_000_000),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0.1, 10),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "penalty_last_n": (-1, 1_000_000),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 10),
    "dry_allowed_length": (0, 1_000_000),
    "dry_penalty_last_n": (-1, 1_000_000),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
    "seed": (0, 2**32 - 2),
    "logprobs": (0, 20),
}
#: Texts that end an answer, and the characters of each.
MAX_STOPS = 64
MAX_STOP_LENGTH = 256
#: Characters of a chat template. The longest ones known have 30,000.
MAX_TEMPLATE = 2**20
#: Variables of a chat template that a request gives in its own fields, or that are not its to give.
RESERVED_VARIABLES = frozenset(
    {
        "messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token",
        "raise_exception", "strftime_now",
    }
)  # fmt: skip
#: OpenAI's rule for names of functions. Templates and grammars write them as they are.
FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
