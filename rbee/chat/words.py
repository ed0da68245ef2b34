"""What is typed: a message, or one of the /words; and how a word that was begun may go on. Pure.

A message may begin with a path such as /etc/hosts; `//` begins one with any other slash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rbee.base.errors import UsageError
from rbee.chat import multiline
from rbee.chat.asked import DEFAULT, SETTINGS
from rbee.inventory.schema import nearest


@dataclass(frozen=True, slots=True)
class Word:
    """argument: what it takes, in words for the help, "" for nothing. needs: whether it means nothing without."""

    name: str
    argument: str
    help: str
    needs: bool = False

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument}".rstrip()


WORDS = (
    Word("help", "", "what can be typed here"),
    Word("model", "[REF]", "which model answers"),
    Word("node", "[NAME]", "on which node; any for any of them"),
    Word("system", "[TEXT]", "the system message; none for none"),
    Word("set", "[NAME VALUE]", "sampling, such as temperature 0.2; default takes a value back"),
    Word("think", "[WORD]", "reasoning: on, off, low, medium, high, default; show or hide it"),
    Word("file", "PATH", "put a text file into the next message", needs=True),
    Word("retry", "", "another answer to the last message"),
    Word("edit", "", "change the last message in $EDITOR, and ask again"),
    Word("undo", "", "take the last message and its answer back"),
    Word("copy", "[all | N]", "copy the last code block, block N, or the whole answer"),
    Word("tokens", "", "how much of the context is in use"),
    Word("new", "", "begin another session"),
    Word("save", "[NAME]", "keep this session, under a name"),
    Word("load", "ID or NAME", "go on with another session", needs=True),
    Word("sessions", "[WORDS]", "the last sessions, or those with these words"),
    Word("exit", "", "leave; so does Ctrl-D"),
)
_BY_NAME = {word.name: word for word in WORDS}
#: What people type out of habit.
_ALSO = {"?": "help", "quit": "exit", "bye": "exit", "q": "exit", "clear": "new", "regenerate": "retry"}
THINK = ("on", "off", "low", "medium", "high", DEFAULT, "show", "hide")
ANY, NONE = "any", "none"

KEYS = (
    ("Alt-Enter", "another line; or between three quotes"),
    ("Ctrl-R, Up", "what was typed before, in all sessions"),
    ("Tab", "completes words, names and paths"),
    ("Ctrl-C", "stops the answer; at the prompt, clears the line"),
    ("Ctrl-X Ctrl-E", "writes the message in $EDITOR"),
    ("Ctrl-D", "leaves"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """A word of WORDS, and what stands after it."""

    name: str
    argument: str = ""


def read(text: str) -> Call | str:
    """What was typed: a word with its argument, or a message, which may be empty. Raises UsageError for a word that
    there is not, or that lacks what it needs."""
    stripped = text.strip()
    if stripped.startswith("//"):
        return stripped[1:]
    match = re.fullmatch(r"/([a-zA-Z?]+)(?:\s+(.*))?", stripped, re.DOTALL)
    if stripped == "/":
        match = re.fullmatch(r"/(\?)()", "/?")
    if match is None:
        return multiline.inside(text).strip("\r\n") if stripped else ""
    name = _ALSO.get(match[1].lower(), match[1].lower())
    argument = multiline.inside((match[2] or "").strip()).strip()
    word = _BY_NAME.get(name)
    if word is None:
        near = nearest(name, [*_BY_NAME, *_ALSO])
        raise UsageError(f"there is no /{name}", hint=near or "/help lists the words; // begins a message with a slash")
    if word.needs and not argument:
        raise UsageError(f"/{name} needs {word.argument}", hint=word.usage)
    if argument and not word.argument:
        raise UsageError(f"/{name} stands alone", hint="// begins a message with a slash")
    return Call(name, argument)


# --- completion ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Completion:
    """text: what takes the place of the last `replaces` characters. about: a few words beside it."""

    text: str
    replaces: int
    about: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What there is to complete, asked when it is wanted. sessions: id to title. paths: those that begin so."""

    models: Callable[[], Iterable[str]] = tuple
    nodes: Callable[[], Iterable[str]] = tuple
    sessions: Callable[[], dict[str, str]] = dict
    paths: Callable[[str], Iterable[str]] = field(default=lambda _: ())


def completions(before: str, known: Known) -> list[Completion]:
    """How the text before the cursor may go on, where it is a word with or without an argument."""
    if not before.startswith("/") or "\n" in before:
        return []
    name, space, argument = before[1:].partition(" ")
    if not space:
        return [
            Completion(f"/{word.name}{' ' if word.argument else ''}", len(before), word.help)
            for word in WORDS
            if word.name.startswith(name.lower())
        ]
    argument = argument.lstrip()
    return [
        Completion(text, len(argument.rpartition(" ")[2]) if name == "set" else len(argument), about)
        for text, about in _arguments(_ALSO.get(name, name), argument, known)
    ]


def _arguments(name: str, begun: str, known: Known) -> Sequence[tuple[str, str]]:
    match name:
        case "file":
            return [(path, "") for path in known.paths(begun)]
        case "load":
            return [
                (id, title) for id, title in known.sessions().items() if _begins(id, begun) or _begins(title, begun)
            ]
        case "set":
            setting, space, value = begun.partition(" ")
            if space:
                return [(DEFAULT, "")] if DEFAULT.startswith(value) else []
            return [(f"{each} ", "") for each in SETTINGS if each.startswith(setting)]
    choices: Iterable[str] = ()
    match name:
        case "model":
            choices = known.models()
        case "node":
            choices = (*known.nodes(), ANY)
        case "think":
            choices = THINK
        case "copy":
            choices = ("all",)
        case "system":
            choices = (NONE,)
    return [(choice, "") for choice in dict.fromkeys(choices) if choice.startswith(begun)]


def _begins(text: str, begun: str) -> bool:
    return text.lower().startswith(begun.lower())


def help_rows() -> list[tuple[str, str]]:
    """What /help shows: words, then keys."""
    return [*((word.usage, word.help) for word in WORDS), ("", ""), *KEYS]
