"""What the /words do; `words` has the table of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from rbee.base.errors import UsageError
from rbee.chat import known, words
from rbee.chat.attachments import read_file
from rbee.chat.chat import Chat
from rbee.chat.code_blocks import code_blocks
from rbee.chat.conversation import Conversation, Turn
from rbee.chat.interfaces import Listed, Session, Store
from rbee.models.alias import alias_of
from rbee.render.text import plain_value

SESSIONS = ("ID", "CHANGED", "TURNS", "TITLE")


async def do(chat: Chat, call: words.Call) -> None:
    """Raises RbeeError for what cannot be done."""
    await _WORDS[call.name](chat, call.argument)


async def _help(chat: Chat, _: str) -> None:
    chat.view.table((), words.help_rows())


async def _model(chat: Chat, ref: str) -> None:
    if not ref:
        now = chat.session.asked.model or (chat.asking.place.model if chat.asking.place else "")
        rows = [("*" if model == now else "", model) for model in known.models(chat.context)]
        chat.view.table(("", "MODEL"), rows)
        return
    alias_of(ref, chat.context.inventory)
    _ask(chat, model=ref)
    chat.asking.leave()
    chat.prepare()
    chat.view.notice(f"{ref} answers from now on")


async def _node(chat: Chat, name: str) -> None:
    if not name:
        now = chat.asking.place.node if chat.asking.place else ""
        chat.view.table(("", "NODE"), [("*" if node == now else "", node) for node in known.nodes(chat.context)])
        return
    if name != words.ANY:
        chat.context.inventory.select(name)
    _ask(chat, node=None if name == words.ANY else name)
    chat.asking.leave()
    chat.prepare()
    chat.view.notice("any node answers from now on" if name == words.ANY else f"{name} answers from now on")


async def _system(chat: Chat, text: str) -> None:
    if not text:
        chat.view.text(chat.system or "there is no system message")
        return
    _ask(chat, system="" if text == words.NONE else text)
    chat.view.notice("there is no system message now" if text == words.NONE else "the system message is set")


async def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    if name:
        chat.session = replace(chat.session, asked=chat.session.asked.with_setting(name, value.strip()))
        chat.keep()
    said = chat.session.asked.said
    if said:
        chat.view.table((), [(key, plain_value(value)) for key, value in said.items()])
    else:
        chat.view.notice("everything is at its default")


async def _think(chat: Chat, word: str) -> None:
    if word in ("show", "hide"):
        chat.view.fold(is_folded=word == "hide")
        chat.view.notice(f"reasoning is {'shown' if word == 'show' else 'folded to one line'}")
        last = chat.conversation.last
        if word == "show" and last and last.reasoning:
            chat.view.turn(Turn("", reasoning=last.reasoning))
        return
    if word:
        chat.session = replace(chat.session, asked=chat.session.asked.thinking(word))
        chat.keep()
    asked = chat.session.asked
    how = asked.effort or {None: "as the model's template has it", True: "on", False: "off"}[asked.think]
    chat.view.notice(f"reasoning: {how}")


async def _file(chat: Chat, path: str) -> None:
    file = read_file(path)
    chat.files = (*(each for each in chat.files if each.name != path), file)
    chat.view.notice(f"{path} ({len(file.text):,} characters) goes along with the next message")


async def _retry(chat: Chat, _: str) -> None:
    _last(chat)
    before = chat.conversation
    chat.conversation = before.again()
    await chat.answer()
    _unless_nothing_came(chat, before)


async def _edit(chat: Chat, _: str) -> None:
    last = chat.conversation.last
    typed = last.typed if last else ""
    text = (await chat.view.edit(typed)).strip("\r\n")
    if not text.strip() or (last and text == typed):
        chat.view.notice("nothing was changed")
        return
    if last is None:
        await chat.send(text)
        return
    files = last.question.removesuffix(typed)
    before = chat.conversation
    chat.conversation = before.undone().asked(f"{files}{text}", text)
    await chat.answer()
    _unless_nothing_came(chat, before)


async def _undo(chat: Chat, _: str) -> None:
    typed = " ".join(_last(chat).typed.split())
    chat.conversation = chat.conversation.undone()
    chat.keep()
    chat.view.notice(f"taken back: “{typed if len(typed) <= 60 else typed[:59] + '…'}”")


async def _copy(chat: Chat, which: str) -> None:
    answers = [turn.answer for turn in chat.conversation.turns if turn.answer]
    if not answers:
        raise UsageError("there is no answer to copy yet")
    blocks = code_blocks(answers[-1])
    if which.isdigit():
        if not 0 < int(which) <= len(blocks):
            raise UsageError(f"the last answer has {len(blocks)} code blocks, and no {which}")
        text, what = blocks[int(which) - 1].text, f"code block {which}"
    elif which == "all" or (not which and not blocks):
        text, what = answers[-1], "the answer"
    elif not which:
        text, what = blocks[-1].text, "the last code block" if len(blocks) > 1 else "the code block"
    else:
        raise UsageError(f"/copy knows all, and the number of a code block, not {which!r}")
    chat.view.notice(f"{what} is copied ({chat.view.copy(text)})")


async def _tokens(chat: Chat, _: str) -> None:
    use, rows = chat.use, []
    about = "" if use.is_counted else "about "
    rows.append(("in use", f"{about}{use.tokens:,} tokens"))
    rows.append(("context", f"{use.ctx:,} tokens, {use.share:.0%} in use" if use.ctx else "not known yet"))
    conversation = chat.conversation
    rows.append(("turns", f"{len(conversation.turns)}, of which {conversation.first} are left out"))
    last = conversation.last
    if last and last.prompt_tokens:
        rows.append(("last prompt", f"{last.prompt_tokens:,} tokens"))
        rows.append(("last answer", f"{last.answer_tokens:,} tokens"))
    chat.view.table((), rows)


async def _new(chat: Chat, _: str) -> None:
    chat.session = Session(asked=chat.session.asked)
    chat.files = ()
    chat.view.notice("a new session")


async def _save(chat: Chat, name: str) -> None:
    _store(chat)
    if not chat.conversation.turns:
        raise UsageError("there is nothing to keep yet")
    chat.session = replace(chat.session, name=name or chat.session.name)
    chat.keep()
    if chat.store:
        chat.view.notice(f"kept as {chat.session.id}{f', {name}' if name else ''}")


async def _load(chat: Chat, which: str) -> None:
    open_session(chat, _store(chat).find(which))
    chat.asking.leave()
    chat.prepare()


async def _sessions(chat: Chat, wanted: str) -> None:
    chat.view.table(SESSIONS, [session_row(each) for each in _store(chat).listed(wanted)])


async def _exit(chat: Chat, _: str) -> None:
    chat.is_over = True


def open_session(chat: Chat, session: Session) -> None:
    """Go on with a session; what the command line says of load and keep-alive stays."""
    here = chat.session.asked
    asked = replace(session.asked, load=here.load, keep_alive_s=here.keep_alive_s)
    chat.session, chat.files = replace(session, asked=asked), ()
    count = len(session.conversation.turns)
    chat.view.notice(f"session {session.id}, {count} turn{'' if count == 1 else 's'}")
    if session.conversation.last:
        chat.view.turn(session.conversation.last)


def session_row(each: Listed) -> tuple[str, ...]:
    title = " ".join((each.excerpt or each.title).split())
    return (each.id, each.changed_at[:16].replace("T", " "), str(each.turns), title[:60])


def _ask(chat: Chat, **changes: str | None) -> None:
    chat.session = replace(chat.session, asked=replace(chat.session.asked, **changes))  # type: ignore[arg-type]
    chat.keep()


def _unless_nothing_came(chat: Chat, before: Conversation) -> None:
    """An answer that was there stays, where another one was asked for and none came."""
    now, had = chat.conversation.last, before.last
    if now and not now.is_answered and had and had.is_answered:
        chat.conversation = before
        chat.keep()
        chat.view.notice("the answer that was there is kept")


def _last(chat: Chat) -> Turn:
    if chat.conversation.last is None:
        raise UsageError("nothing was asked yet")
    return chat.conversation.last


def _store(chat: Chat) -> Store:
    if chat.store is None:
        raise UsageError("nothing is kept of this chat", hint="without --no-history sessions are kept")
    return chat.store


_WORDS: dict[str, Callable[[Chat, str], Awaitable[None]]] = {
    "help": _help, "model": _model, "node": _node, "system": _system, "set": _set, "think": _think, "file": _file,
    "retry": _retry, "edit": _edit, "undo": _undo, "copy": _copy, "tokens": _tokens, "new": _new, "save": _save,
    "load": _load, "sessions": _sessions, "exit": _exit,
}  # fmt: skip
