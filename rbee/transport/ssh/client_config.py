"""What ~/.ssh/config and /etc/ssh/ssh_config say of a host, split into lines and put together as OpenSSH does.

Rules
- The user's file comes first, the first value of an option wins, and tokens are expanded when all is read.
- `Match final` and `Match canonical` have a second pass over both files, which can only add.
- asyncssh knows the options and conditions. Lines are split here: it takes a comment at their end for a value, and `=`
  in an argument for one of its own.
- The user's file, and each that is included, is read only where nobody else can write to it. As with ssh, the system's
  own file is what it is, and the folders are not looked at.
- An option that decides who is reached, and that is not honoured here, is refused: rbee never goes elsewhere than ssh.
"""

from __future__ import annotations

import getpass
import ipaddress
import os
import re
import shlex
from pathlib import Path
from typing import Any

from asyncssh.config import ConfigParseError, SSHClientConfig

from rbee.base import trusted_files
from rbee.base.errors import ConfigError

SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_WHAT = "the SSH configuration"

_LINE = re.compile(r'"?([^\s="]+)"?\s*=?\s*(.*)')
#: A word with its quotes; what begins with `#` begins a comment.
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|["'\\])+""")
#: Conditions of Match that stand alone.
_ALONE = ("all", "canonical", "final")


def settings_of(alias: str, *, user: str | None, port: int | None, files: tuple[Path, ...]) -> Settings:
    """The options for `alias`; a user and a port that are given win there too. files: the ones that exist are read.

    Raises ConfigError for a file that cannot be used, and for an option that rbee does not honour.
    """
    try:
        settings = Settings(None, alias, user, port)
        settings.read(files)
        if settings.wants_second_pass:
            settings = Settings(settings, alias, user, port)
            settings.read(files)
        settings.expand()
    except (KeyError, OSError, ConfigParseError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the SSH configuration cannot be used: {error}",
            hint=f"check it with: ssh -G {alias}",
        ) from error
    settings.refuse_what_is_not_honoured()
    return settings


class Settings(SSHClientConfig):
    """The options of one host. first: those of the first pass, None in it."""

    _percent_expand = set[str]()  # noqa: RUF012 - asyncssh expands these after each file; here that comes at the end
    _expanded = SSHClientConfig._percent_expand | {"UserKnownHostsFile"}

    def __init__(self, first: Settings | None, alias: str, user: str | None, port: int | None) -> None:
        second = first is not None
        super().__init__(
            first,  # type: ignore[arg-type]  # asyncssh takes None, and says otherwise
            False,
            second,
            second,
            getpass.getuser(),
            () if user is None else user,  # type: ignore[arg-type]  # () is asyncssh's word for "not given"
            alias,
            port or (),  # type: ignore[arg-type]
        )
        self._alias = alias

    def read(self, files: tuple[Path, ...]) -> None:
        for file in files:
            if file.exists():
                self._default_path = file.parent  # where relative names of Include start
                self.parse(file)

    def parse(self, path: Path) -> None:
        """Add a file. Raises ConfigParseError, OSError, UnicodeDecodeError; ConfigError where others can write it."""
        self._path, self._matching, self._tokens = path, True, {"%": "%"}
        for number, line in enumerate(_content(path).split("\n"), 1):
            self._line_no = number
            if (found := _LINE.match(line.strip())) and not found[1].startswith("#"):
                self._add(found[1].lower(), found[2])

    def _add(self, keyword: str, rest: str) -> None:
        if keyword not in self._handlers or not (self._matching or keyword in self._conditionals):
            return
        option, handler = self._handlers[keyword]
        try:
            words = [rest] * bool(rest) if keyword in self._no_split else shlex.split(_without_comment(rest))
        except ValueError as error:
            self._error(str(error))
        if not words:
            self._error(f"Missing {option} value")
        if keyword == "match":
            words = self._conditions(words)
        handler(self, option, words)
        if words:
            self._error(f"Extra data at end: {' '.join(words)}")

    def _conditions(self, words: list[str]) -> list[str]:
        """The words of a Match line; in the command of `exec`, tokens stand for what is known so far."""
        made: list[str] = []
        rest = iter(words)
        for word in rest:
            name, equals, value = word.partition("=")
            made.append(name)
            if (
                name.lower().lstrip("!") not in _ALONE
                and (argument := value if equals else next(rest, None)) is not None
            ):
                if name.lower().lstrip("!") == "exec":
                    self._set_tokens()
                    argument = self._expand_val(argument)
                made.append(argument)
        return made

    @property
    def wants_second_pass(self) -> bool:
        return self.has_match_final() or bool(self.get("CanonicalizeHostname"))

    def expand(self) -> None:
        """Put in what %h and the like stand for. Raises ConfigParseError."""
        self._set_tokens()
        for option in self._expanded:
            match self._options.get(option):
                case str() as value:
                    self._options[option] = self._expand_val(value)
                case list() as values:
                    # The second pass reads lists once more.
                    self._options[option] = list(dict.fromkeys(map(self._expand_val, values)))

    def refuse_what_is_not_honoured(self) -> None:
        """Raises ConfigError."""
        if self.get("ProxyUseFdpass"):
            raise self._not_honoured("ProxyUseFdpass", "use a ProxyCommand that passes data on, or a ProxyJump")
        if self.get("RevokedHostKeys"):
            raise self._not_honoured("RevokedHostKeys", "mark the keys with @revoked in a known_hosts file")
        if self.get("BindInterface"):
            raise self._not_honoured("BindInterface", "use BindAddress")
        if self._would_be_canonicalized():
            raise self._not_honoured("CanonicalizeHostname", "write its full name as `host` in the inventory")

    def _not_honoured(self, option: str, instead: str) -> ConfigError:
        return ConfigError(
            f"the SSH configuration sets {option} for {self._alias}, which rbee does not support",
            hint=f"{instead}; `ssh -G {self._alias}` shows what ssh makes of it",
        )

    def _would_be_canonicalized(self) -> bool:
        """Whether ssh would look this name up in CanonicalDomains. `yes` does so only where no proxy does it."""
        wanted = self.get("CanonicalizeHostname")
        if not wanted or not self.get("CanonicalDomains"):
            return False
        if wanted != "always" and (self.get("ProxyJump") or self.get("ProxyCommand")):
            return False
        host = str(self.get("Hostname", self._alias))
        most_dots: Any = self.get("CanonicalizeMaxDots", 1)
        return not _is_address(host) and host.count(".") <= most_dots

    def _match_val(self, match: str) -> object:
        """What ssh would compare with for `ssh HOST COMMAND`."""
        match match:
            case "sessiontype":
                return "exec"
            case "command":
                return "exec /bin/sh"
            case _:
                return super()._match_val(match)

    def _set_proxy(self, option: str, args: list[str]) -> None:
        """Of ProxyJump and ProxyCommand the one that comes first counts, `none` included."""
        if "ProxyJump" in self._options or "ProxyCommand" in self._options:
            args.clear()
        else:
            self._set_string(option, args)

    _handlers = SSHClientConfig._handlers | {
        "proxyjump": ("ProxyJump", _set_proxy),
        "proxycommand": ("ProxyCommand", _set_proxy),
        "proxyusefdpass": ("ProxyUseFdpass", SSHClientConfig._set_bool),
        "revokedhostkeys": ("RevokedHostKeys", SSHClientConfig._set_string),
        "bindinterface": ("BindInterface", SSHClientConfig._set_string),
    }


def _content(path: Path) -> str:
    with os.fdopen(trusted_files.open_at_once(path), encoding="utf-8") as file:
        if path != SYSTEM_CONFIG:
            trusted_files.judge(os.fstat(file.fileno()), path, _WHAT)
        os.set_blocking(file.fileno(), True)
        return file.read()


def _without_comment(text: str) -> str:
    for word in _WORD.finditer(text):
        if word[0].startswith("#"):
            return text[: word.start()]
    return text


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
