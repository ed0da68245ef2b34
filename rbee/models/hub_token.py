"""The hub token of this user: from the environment, or from the file that `hf auth login` writes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.errors import ConfigError
from rbee.base.settings import expand, user_home


def hub_token(environ: Mapping[str, str] | None = None) -> str:
    """`$HF_TOKEN`, else the file's content, else "". Raises ConfigError for what is none, or what others can read."""
    env = os.environ if environ is None else environ
    if token := env.get("HF_TOKEN", "").strip():
        return _checked(token, "HF_TOKEN")
    path = token_path(env)
    what = "the hub token in"
    try:
        # Looked at before anything is opened: in a folder for all, a FIFO or a link to another secret may lie there.
        status = trusted_files.check(path, what)
        if status and trusted_files.is_exposed(status, os.getuid()):
            raise ConfigError(
                f"the hub token in {path} can be read by other users",
                hint=f"chmod 600 {path} (and consider making another token: others may have read this one)",
            )
        return _checked(trusted_files.read(path, what).decode().strip(), str(path))
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the hub token in {path} cannot be read: {error}", hint="set HF_TOKEN instead") from error


def _checked(token: str, where: str) -> str:
    """The error tells where the token is, and nothing of it."""
    if not re.fullmatch(r"[!-~]*", token):
        raise ConfigError(
            f"the hub token in {where} is not valid: it has spaces, line ends or other characters that no token has",
            hint="a token is one word, such as hf_…",
        )
    return token


def token_path(env: Mapping[str, str]) -> Path:
    """Where huggingface_hub looks for it."""
    if chosen := env.get("HF_TOKEN_PATH"):
        return expand(chosen, env)
    if chosen := env.get("HF_HOME"):
        return expand(chosen, env) / "token"
    cache = env.get("XDG_CACHE_HOME")
    return (expand(cache, env) if cache else user_home(env) / ".cache") / "huggingface" / "token"
