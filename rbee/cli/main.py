"""The command line: the Typer app, and the one place where an RbeeError becomes text and an exit status."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.main import get_command, get_group

from rbee.base.errors import RbeeError, UsageError
from rbee.cli.help import Group
from rbee.cli.shell import State, options_callback
from rbee.render import OutputClosed, Renderer
from rbee.render.text import neutralise
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from pathlib import Path


#: A command, or a group of them, is a module of `rbee.cli`; this is their order in the help.
MODULES = (
    "infer", "chat", "batch", "top", "history", "serve", "launch", "keys", "usage", "nodes", "workers", "models",
    "bench", "hive", "link", "logs", "gc", "wheels", "audit", "uninstall", "self", "version",
)  # fmt: skip


def make_app(cls: type[Group] = Group, modules: Iterable[str] = MODULES) -> typer.Typer:
    """The command line. No Rich in its help: `rbee --help` has to feel instant."""
    app = typer.Typer(
        name="rbee",
        cls=cls,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        epilog='Example: rbee infer "Why is the sky blue?"',
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    options_callback(app, "Run language models on any machine you can reach with SSH.")
    for name in modules:
        _register(name, app)
    return app


def _register(name: str, app: typer.Typer) -> None:
    import_module(f"rbee.cli.{name}").register(app)


class _OnDemand(Group):
    """The command line whose commands are read in when they are asked for."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self.read_in([cmd_name] if cmd_name in MODULES else [])
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        self.read_in(MODULES)
        return list(MODULES)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in MODULES:  # the error names those that are like it
            self.read_in(MODULES)
        return super().resolve_command(ctx, args)

    def read_in(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.commands:
                app = typer.Typer(rich_markup_mode=None)
                _register(name, app)
                self.commands.update(get_group(app).commands)


@cache
def _on_demand() -> _OnDemand:
    command = get_command(make_app(_OnDemand, ()))
    assert isinstance(command, _OnDemand)
    return command


def get_ready(names: Iterable[str]) -> None:
    """Read commands in."""
    _on_demand().read_in(names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:  # what one types by habit
        words[0] = "version"
    os.umask(0o077)  # what is made here is this user's alone: what others can write, rbee refuses the next time
    _open_closed_streams()
    return run(words, State())


def run(words: list[str], state: State) -> int:
    """Run one command line in its state; the exit status. Raises ElsewhereError, where it is run for a client."""
    try:
        return _run(words, state)
    except OutputClosed:
        return 0  # whoever read stdout had enough
    except typer.TyperException as error:
        return fail(_usage_error(error), state, words)
    except RbeeError as error:
        return fail(error, state, words)
    except (KeyboardInterrupt, typer.Abort):
        return fail(RbeeError(ErrorCode.REQUEST_CANCELED, "canceled"), state, words)
    except Exception as error:  # a bug: its traceback goes to the log, one line to the user
        return fail(_internal_error(error), state, words)


def _run(words: list[str], state: State) -> int:
    status = _on_demand().main(args=words, prog_name="rbee", standalone_mode=False, obj=state)
    return status if isinstance(status, int) else 0


def _open_closed_streams() -> None:
    """Python has None where the caller closed a stream (`>&-`); what is written there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115 - for as long as the process lives


def fail(error: RbeeError, state: State, words: Sequence[str]) -> int:
    """Show the error that ends a command; its exit status."""
    with contextlib.suppress(OutputClosed, RbeeError):  # nobody, or a full disk, takes it: the status has to do
        _renderer(state, words).error(error)
    return error.exit_status


def _renderer(state: State, words: Sequence[str]) -> Renderer:
    """The command's own; where it did not come so far, one by the options that can be seen."""
    seen = list(words)[: words.index("--")] if "--" in words else words
    return state.renderer or state.make_renderer(
        json=state.options.json or "--json" in seen, color=not (state.options.no_color or "--no-color" in seen)
    )


#: Of Typer's, which mean something to programmers alone.
_WORDS = {"is not a valid float": "is no number", "is not a valid integer": "is no whole number"}


def _usage_error(error: typer.TyperException) -> RbeeError:
    """Typer's complaint in our words; the hint names the help of the command it is about."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "rbee"
    match = re.fullmatch(
        r"(.*?)\.?\s*(?:\(Possible options: (.*)\)|Did you mean:? (.*)\?)?", error.format_message(), re.DOTALL
    )
    message, *likely = match.groups() if match else (error.format_message(),)
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    meant = next((f"did you mean {names}? " for names in likely if names), "")
    return UsageError(f"{message[:1].lower()}{message[1:]}", hint=f"{meant}`{path} --help` shows what it takes")


def _internal_error(error: Exception) -> RbeeError:
    """A bug. The traceback goes to the log, where there is a place for one."""
    details = {"error": f"{type(error).__name__}: {error}"}
    log = _log_traceback(error)
    if log:
        details["log"] = str(log)
    return RbeeError(
        ErrorCode.INTERNAL, "this is a bug in rbee", hint="please report it, with the log's last lines", details=details
    )


def _log_traceback(error: Exception) -> Path | None:
    import traceback
    from datetime import UTC, datetime

    from rbee.base.settings import Settings, make_private_folder

    try:
        settings = Settings.from_environment()
        make_private_folder(settings.log)
        descriptor = os.open(settings.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as log:
            said = neutralise("".join(traceback.format_exception(error)))  # it may quote a node
            log.write(f"{datetime.now(UTC).isoformat()} rbee {os.getpid()}\n{said}")
    except (RbeeError, OSError):
        return None
    return settings.log_file
