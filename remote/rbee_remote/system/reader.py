"""A command that its reader started ends with it, however the reader ends: killed, even, while nothing is to be said.

The reader holds the other end of the command's stdout. When the last one closes, which the kernel does for a process
that is killed, the write end says so.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time

#: Seconds that an end by SIGTERM may take: a name that is being resolved is not interrupted by it.
_PATIENCE_S = 5.0


def end_with_reader() -> None:
    """From now on this process gets SIGTERM when nobody can read its stdout any more, and is ended should it still be
    there some seconds later."""
    descriptor = sys.stdout.fileno()
    threading.Thread(target=_watch, args=(descriptor,), name="reader", daemon=True).start()


def _watch(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, 0)  # errors and hang-ups are told unasked
    poll.poll()
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # nobody reads the last words
    main = threading.main_thread().ident
    assert main is not None  # it runs
    signal.pthread_kill(main, signal.SIGTERM)  # the one that waits for bytes has to be interrupted
    time.sleep(_PATIENCE_S)
    os._exit(1)
