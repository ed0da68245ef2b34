"""NVML kept open a little longer than one question takes.

A driver whose GPUs nothing uses stops them, where persistence mode is off, and starts them anew for whoever asks next:
seconds each time, and what is decided of a worker takes several looks.
"""

from __future__ import annotations

import contextlib
import threading
import time

from rbee_remote.system import gpu_nvml


class StayAwake:
    """Each call keeps the driver awake for `seconds`. NVML counts its users, so that nothing else has to know."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._again_at = 0.0

    def __call__(self) -> None:
        """Blocks as long as the driver takes."""
        now = time.monotonic()
        if now < self._again_at:
            return
        self._again_at = now + self._seconds / 2
        use = contextlib.ExitStack()
        if isinstance(use.enter_context(gpu_nvml.opened()), gpu_nvml.Trouble):
            use.close()
            return
        timer = threading.Timer(self._seconds, use.close)
        timer.daemon = True
        timer.start()
