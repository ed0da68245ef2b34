"""`render`: makes prompts of chats with the model's template, in a process that can do nothing else.

A template is a program that came with the model. Jinja's sandbox keeps it from Python's inside, not from taking any
time and memory, while it is compiled already, or from crashing Python with a deeply nested expression. So it runs here,
where the kernel sets the bounds: seconds of processor, address space, no file, no socket, no other process. What hits a
bound ends, and the worker makes the next one (`render_pool`).

MiniJinja counts steps and recursion, but is another language: transformers' templates use Python's string methods,
loop controls, the generation tag and tojson's arguments as Jinja has them, and a prompt that differs in one blank makes
a model worse without anybody noticing. And it bounds no memory.

It ends with its stdin: with the worker, however that ends.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import datetime
import functools
import importlib
import math
import resource
import sys
import time
from typing import Any, BinaryIO

from rbee_remote.protocol import ChatOptions, Message, ProtocolError, RemoteError, decode, encode
from rbee_remote.sandbox import confine_to_nothing
from rbee_remote.system.command import accept_tags
from rbee_remote.worker.templates.compiled import TooLong
from rbee_remote.worker.templates.frames import CPU_S, HEAD_BYTES, MEMORY_BYTES, length_of, most_text, pack, unpack
from rbee_remote.worker.templates.rendered import Rendered
from rbee_remote.worker.templates.template import ChatTemplate

#: Templates of requests that are kept compiled.
MOST_OWN = 4


def main(argv: list[str]) -> int:
    """0 when its stdin has ended, 1 when a bound was hit that leaves it unfit for more."""
    parser = argparse.ArgumentParser(prog="rbee_remote render")
    accept_tags(parser)
    parser.parse_args(argv)
    _import_all()
    _bound()
    confine_to_nothing()
    return _serve(sys.stdin.buffer, sys.stdout.buffer)


def _serve(requests: BinaryIO, answers: BinaryIO) -> int:
    templates: Templates | None = None
    while head := requests.read(HEAD_BYTES):
        frame = requests.read(length_of(head))
        _bound_time()
        fit = True
        try:
            if templates is None:
                templates = Templates(unpack(frame))
                answer = encode(Rendered(""))
            else:
                answer = encode(_render(templates, frame))
        except RemoteError as error:
            answer = error.encode()
        except MemoryError:
            answer, fit = {"bound": "memory"}, False
        except TooLong:
            answer = {"bound": "output"}
        with contextlib.suppress(BrokenPipeError):
            answers.write(pack(answer))
            answers.flush()
        if not fit or templates is None:
            return 1
    return 0


class Templates:
    """The model's, and the last few that requests brought. opening: the first frame.

    Raises RemoteError as `ChatTemplate` does."""

    def __init__(self, opening: dict[str, Any]) -> None:
        self._make = functools.partial(
            ChatTemplate,
            bos=opening["bos"],
            eos=opening["eos"],
            special=opening["special"],
            user_defined=frozenset(opening["user_defined"]),
        )
        self._model = self._make(opening["template"])
        self._own = functools.lru_cache(maxsize=MOST_OWN)(lambda source: self._make(source, own=True))

    def find(self, source: str) -> ChatTemplate:
        """source: the request's, "" for the model's."""
        return self._own(source) if source else self._model


def _render(templates: Templates, frame: bytes) -> Rendered:
    request = unpack(frame)
    try:
        messages = [decode(Message, message) for message in request["messages"]]
        chat = decode(ChatOptions, request["chat"])
    except ProtocolError as error:  # the worker has checked them
        raise AssertionError from error
    return templates.find(chat.template).prompt(messages, request["tools"], chat, most=most_text(frame))


#: What Jinja, Python's text methods and error messages import when it comes to it.
_LAZY = (
    "jinja2.constants", "jinja2.debug", "jinja2.nodes", "pprint", "textwrap", "html", "html.entities", "unicodedata",
    "warnings", "traceback", "linecache", "encodings.ascii", "encodings.latin_1", "encodings.utf_16",
    "encodings.utf_32", "encodings.unicode_escape", "encodings.raw_unicode_escape", "encodings.charmap",
    "encodings.cp1252", "encodings.idna", "encodings.punycode", "encodings.hex_codec", "encodings.base64_codec",
)  # fmt: skip


def _import_all() -> None:
    """What rendering imports or reads only when it comes to it: later no file can be opened."""
    for name in _LAZY:
        importlib.import_module(name)
    for encoding in ("ascii", "latin-1", "unicode_escape", "utf-16", "utf-32"):
        codecs.lookup(encoding)
    datetime.datetime.now().astimezone().strftime("%c")  # the C library reads the time zone


def _bound() -> None:
    """As far as the system has such bounds; the worker ends what takes too long in any case."""
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)


def _bound_time() -> None:
    """From now on. The hard limit stays, so that the next request can have as much."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + CPU_S, hard))


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))
