"""What every command has in common: the options that stand before or after its name, and what they give it.

    @command(app, "list", example="rbee nodes list --json")
    def list_(shell: Shell) -> None: ...

`command` adds the common options to the function's own, and calls it with a `Shell` in place of its first parameter.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from rbee.base.errors import ElsewhereError, RbeeError
from rbee.cli.help import Command, Group
from rbee.render import Output, OutputClosed, Renderer, make_renderer
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from rbee.base.settings import Settings
    from rbee.context import Context
    from rbee.inventory import Inventory
    from rbee.link.session import Session
    from rbee.registry import Registry

T = TypeVar("T")

InventoryOption = Annotated[
    Path | None, typer.Option("--inventory", "-i", metavar="FILE", help="The inventory to use.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
VerboseOption = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Show more; given twice, everything.", show_default=False)
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only what was asked for, and errors.")]
NoColorOption = Annotated[bool, typer.Option("--no-color", help="No colours; $NO_COLOR does the same.")]


@dataclass(frozen=True, slots=True)
class Options:
    """The common options. Before and after the command's name they mean the same; the later one wins."""

    inventory: Path | None = None
    json: bool = False
    verbose: int = 0
    quiet: bool = False
    no_color: bool = False

    def merged(self, later: Options) -> Options:
        return Options(
            inventory=later.inventory or self.inventory,
            json=later.json or self.json,
            verbose=max(later.verbose, self.verbose),
            quiet=later.quiet or self.quiet,
            no_color=later.no_color or self.no_color,
        )


_COMMON: dict[str, Any] = {
    "inventory": InventoryOption,
    "json": JsonOption,
    "verbose": VerboseOption,
    "quiet": QuietOption,
    "no_color": NoColorOption,
}


@dataclass
class State:
    """What one run of the command line keeps: options as they are read, the command's renderer for a late error.

    session: of the client that the command is run for, None where it is this process's own."""

    options: Options = field(default_factory=Options)
    renderer: Renderer | None = None
    session: Session | None = None

    def make_renderer(self, **options: Any) -> Renderer:
        """As `make_renderer`, for whoever reads this command's output."""
        if self.session is not None:
            out, err = self.session.streams
            options |= {"stdout": out, "stderr": err}
        return make_renderer(**options)


class Shell:
    """The surroundings of one command: its options, and what is made of them when it is asked for."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.options = state.options
        #: `gc`, which cron runs, is silent while there is nothing to do.
        self.tells_of_unused_inventory = True

    @property
    def renderer(self) -> Renderer:
        return self._state.renderer or self.use_renderer()

    def use_renderer(self, *, stream: bool = True, timing: bool = False, reasoning: bool | None = None) -> Renderer:
        """Set the command's renderer up; `infer` asks for more than the options that all share."""
        options = self.options
        self._state.renderer = self._state.make_renderer(
            json=options.json,
            quiet=options.quiet,
            verbose=options.verbose,
            color=not options.no_color,
            stream=stream,
            timing=timing,
            reasoning=reasoning,
        )
        return self._state.renderer

    @cached_property
    def settings(self) -> Settings:
        """Raises ConfigError, also for a home that somebody else can write."""
        from rbee.base.settings import Settings, check_home

        settings = Settings.from_environment()
        check_home(settings)
        return settings

    @cached_property
    def inventory(self) -> Inventory:
        """Raises ConfigError."""
        from rbee.inventory import load

        found = self._inventory_path
        return load(self._folder / found if found else None, self.settings)

    @property
    def is_for_client(self) -> bool:
        """Whether it is run for a client of the link, whose terminal is not this process's."""
        return self._state.session is not None

    @property
    def _folder(self) -> Path:
        """The current one."""
        return self._state.session.folder if self._state.session else Path()

    @cached_property
    def _inventory_path(self) -> Path | None:
        """The inventory's file, None for none. One that lies about in the current folder is told of, and not used."""
        from rbee.inventory import FILE_NAME, find, lies_about_unused

        if self.tells_of_unused_inventory and lies_about_unused(self.options.inventory, self.settings, self._folder):
            self._warn(f"{FILE_NAME} in this folder is not used; to use it: -i {FILE_NAME}")
        return find(self.options.inventory, self.settings)

    def _warn(self, text: str) -> None:
        """A notice on stderr, with --json too: the document on stdout is not about it."""
        from rbee.base.events import Notice

        if not self.options.json:
            self.renderer(Notice(text))
            return
        with self._state.make_renderer(quiet=self.options.quiet, color=not self.options.no_color) as renderer:
            renderer(Notice(text))

    def writable_inventory(self) -> Path:
        """The file to write nodes into: the one in use, else `inventory.toml` in rbee's home. It may be missing."""
        from rbee.inventory import parse

        path = self._inventory_path or self.settings.inventory_path
        if not path.exists():
            self.inventory = parse(b"", path)
        return path

    @cached_property
    def context(self) -> Context:
        """Raises ConfigError for a wrong inventory."""
        from rbee.base.settings import keeper_id
        from rbee.context import Context
        from rbee.render.question import Questions, can_ask

        session = self._state.session
        questions = Questions(self.renderer.close) if not session and can_ask() and not self.options.json else None
        context = Context(
            settings=self.settings,
            inventory=self.inventory,
            open_registry=self.open_registry,
            keeper_id=keeper_id(self.settings),
            ask=questions.confirm if questions else None,
            ask_passphrase=questions.passphrase if questions else None,
            emit=self.renderer,
        )
        self._mend_registry(context)
        return session.context(context) if session else context

    def _mend_registry(self, context: Context) -> None:
        """A registry that lost its rows gets them back from the hives before the command begins."""
        if not self.settings.registry_path.exists():
            return
        with self.open_registry() as registry:
            lost = registry.lost
        if lost:
            from rbee.fleet.workers import rebuild

            self.run(rebuild(context))

    def hold_connection(self, name: str) -> None:
        """A command has used the connection to this node: leave a process behind that has one for the next."""
        if self._state.session is not None or self.inventory.nodes[name].is_local:
            return
        from rbee.link.leaving import leave

        leave(name, self.inventory.path, self.inventory.persist_s)

    def open_registry(self, tell: Callable[[str], None] | None = None) -> Registry:
        """Raises ConfigError. A registry that lost its rows, or cannot be written, is told of: to `tell`, None for the
        command's output."""
        from rbee.base.events import Notice
        from rbee.registry import Registry

        tell = tell or (lambda text: self.renderer(Notice(text)))
        registry = Registry.open(self.settings.registry_path, tell=tell)
        if registry.lost:
            tell(f"the registry {registry.path} {registry.lost}")
        return registry

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a use case. SIGTERM and SIGHUP cancel it as Ctrl-C does, so that it cleans up: KeyboardInterrupt."""
        if self._state.session is not None:
            return self._state.session.run(work)
        import asyncio

        try:
            return asyncio.run(_cancelable(work))
        except asyncio.CancelledError as error:
            raise KeyboardInterrupt from error


async def _cancelable(work: Coroutine[Any, Any, T]) -> T:
    import asyncio
    import signal

    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, task.cancel)
    return await work


def command(
    app: typer.Typer, name: str, *, example: str, over_link: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function, whose first parameter is a `Shell`, as the command `name`; `example` ends its help.

    over_link: it may be run for a client of the link, in a process that holds connections.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def call(context: typer.Context, **values: Any) -> None:
            _take_options(context, values)
            shell = Shell(context.obj)
            if context.obj.session is not None and (shell.options.verbose or not over_link):
                raise ElsewhereError("not over the link")
            if shell.options.verbose:
                _log_to_stderr(shell.options.verbose)
            try:
                function(shell, **values)
            except KeyboardInterrupt as error:
                raise RbeeError(ErrorCode.REQUEST_CANCELED, "canceled") from error  # Typer would end without a word
            finally:
                if context.obj.renderer:
                    _close(context.obj.renderer)

        _dress(call, function, own)
        app.command(name, cls=Command, epilog=f"Example: {example}")(call)
        return function

    return register


def group(app: typer.Typer, name: str, help_text: str) -> typer.Typer:
    """A group of commands that takes the common options before the command's name too."""
    child = typer.Typer(name=name, cls=Group, help=help_text, rich_markup_mode=None)
    options_callback(child, help_text)
    app.add_typer(child)
    return child


def options_callback(app: typer.Typer, help_text: str) -> None:
    """Let `app` itself take the common options; without a command it shows its help."""

    def call(context: typer.Context, **values: Any) -> None:
        _take_options(context, values)
        if context.invoked_subcommand is None:
            if context.obj.session is not None:
                raise ElsewhereError("help is shown elsewhere")
            Output(sys.stdout).write(context.get_help() + "\n")

    _dress(call, None, [])
    app.callback(help=help_text, invoke_without_command=True)(call)


def _take_options(context: typer.Context, values: dict[str, Any]) -> None:
    """Move the common options out of `values` into the run's state."""
    later = Options(**{name: values.pop(name) for name in _COMMON})
    context.obj.options = context.obj.options.merged(later)


def _dress(call: Callable[..., None], function: Callable[..., None] | None, own: list[inspect.Parameter]) -> None:
    """Give `call` the signature that Typer is to read: its context, the command's own parameters, the common ones."""
    if function:
        functools.update_wrapper(call, function)
        del call.__wrapped__  # type: ignore[attr-defined]  # Typer would read the inner signature
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    defaults = Options()
    common = [
        inspect.Parameter(name, keyword, annotation=kind, default=getattr(defaults, name))
        for name, kind in _COMMON.items()
    ]
    parameters = [context, *(parameter.replace(kind=keyword) for parameter in own), *common]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _log_to_stderr(verbose: int) -> None:
    """-v: what the libraries say of their work; -vv: all of it."""
    import logging

    handler = logging.StreamHandler(Output(sys.stderr))  # an Output, because libraries quote what nodes say
    logging.basicConfig(
        level=logging.INFO if verbose == 1 else logging.DEBUG, format="%(name)s: %(message)s", handlers=[handler]
    )


def log_warnings_to_stderr() -> None:
    """For a command that runs on and on: what goes wrong meanwhile is said there, unless -v says it anyway."""
    import logging

    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(Output(sys.stderr))
        handler.setLevel(logging.WARNING)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def _close(renderer: Renderer) -> None:
    """Whoever read stdout may have gone; what brought us here matters more."""
    with contextlib.suppress(OutputClosed):
        renderer.close()
