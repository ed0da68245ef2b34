"""What the audit log gets to know of an answer."""

from __future__ import annotations

from typing import Any

from rbee.base.events import Finished


def what_came(finished: Finished) -> dict[str, Any]:
    """Details for `audit.recorded`: where it was answered, and how many tokens that took. Never what was said."""
    return {
        "node": finished.node,
        "model": finished.model,
        "worker": finished.worker,
        "prompt_tokens": finished.usage.prompt_tokens,
        "completion_tokens": finished.usage.completion_tokens,
        "finish": finished.finish_reason,
    }
