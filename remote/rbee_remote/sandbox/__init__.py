"""What a process that reads a stranger's file may still do: as little as it needs.

    confine_worker      llama.cpp with a model, or `measure`      confine_reader   `inspect`
    confine_to_nothing  `render`, which runs a model's template   harden           what cannot break anything

Rules
- Landlock and seccomp bind the thread that asks for them and those that it starts. So a process confines itself while
  it has one thread, and before it opens what it does not trust.
- Nothing is taken back: what is needed later is allowed here, or it is open already.
- What a system does not have is left out, and told. Only `sandbox = "on"` in the inventory makes that an error.

Standard library only: three system calls by ctypes. The libraries for them are a year old at most, with one maintainer
each, and would be one more thing that runs on every node.
"""

from __future__ import annotations

from rbee_remote.sandbox.confine import AUTO as AUTO
from rbee_remote.sandbox.confine import OFF as OFF
from rbee_remote.sandbox.confine import ON as ON
from rbee_remote.sandbox.confine import confine_reader as confine_reader
from rbee_remote.sandbox.confine import confine_to_nothing as confine_to_nothing
from rbee_remote.sandbox.confine import confine_worker as confine_worker
from rbee_remote.sandbox.confine import harden as harden
