"""Templates that know nothing of tools: text, after reasoning where the template knows `<think>`.

Tools that are described to such a model in the system turn are described in Hermes' form.
"""

from __future__ import annotations

from rbee_remote.worker.dialects.hermes import Hermes


class Plain(Hermes):
    name = "plain"

    def writes_calls(self, template: str) -> bool:  # noqa: ARG002 - whatever it is
        return True
