"""What a push of wheels runs where the index lies: POSIX sh, made of quoted values. Pure.

Rules
- What an index is changes under a lock, in one script that takes a moment: files that lie ready get their names.
- Between looking and changing others may have changed it: then nothing is done, and the caller looks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rbee.setup.index.files import LONGEST, PROJECT, SIGNATURE, SUMS
from rbee.transport.connection import quote
from rbee_remote.protocol.load_options import COMPILED_BACKENDS

LOCK = ".rbee-push.lock"
#: How files are called that lie ready.
INCOMING = ".incoming-"
#: Minutes after which one that lies ready belongs to nobody any more.
STALE_MINUTES = 24 * 60

_HASH = """LC_ALL=C; export LC_ALL; umask 022
hash_of() {
  if command -v sha256sum >/dev/null 2>&1; then sha256sum <"$1"
  elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <"$1"
  else openssl dgst -sha256 -r <"$1"
  fi 2>/dev/null | sed -n 's/^\\([0-9a-f]\\{64\\}\\).*/\\1/p'
}
"""


def prepare(folder: str, backends: Sequence[str], wheels: Sequence[str]) -> str:
    """Make the folders; tell the index's absolute path, and which wheels are there. A folder of others stays as it is.

    folder: absolute, or from the home folder on. wheels: paths in the index.
    Prints `root PATH`, `foreign NAME`, `wheel HASH PATH`.
    """
    at = f'"$HOME"/{quote(folder[2:])}' if folder.startswith("~/") else '"$HOME"' if folder == "~" else quote(folder)
    ours = "|".join((*COMPILED_BACKENDS, SUMS, SIGNATURE))
    line = f"^[0-9a-f]{{64}} [ *]({'|'.join(COMPILED_BACKENDS)})/{PROJECT}/llama_cpp_python-[[:alnum:]_.+-]+[.]whl$"
    return "\n".join(
        [
            _HASH,
            "set -e",
            f"unset CDPATH; mkdir -p -- {at}",
            f"cd -- {at}",
            'printf "root %s\\n" "$(pwd -P)"',
            f"[ -f {SUMS} ] || for name in *; do",
            f'  case $name in {ours}) ;; *) [ ! -e "$name" ] || {{ printf "foreign %s\\n" "$name"; exit 0; }} ;; esac',
            "done",
            f"[ ! -f {SUMS} ] || ! head -c {LONGEST + 1} {SUMS} | grep -Eqv '{line}' || {{",
            f"  echo 'foreign another {SUMS}'; exit 0; }}",
            f"[ -e {LOCK} ] || : >>{LOCK}",
            *(f"mkdir -p {backend}/{PROJECT}" for backend in backends),
            f"find . -mindepth 2 -name '{INCOMING}*' -type f -mmin +{STALE_MINUTES} -exec rm -f {{}} +",
            *(f'[ ! -f {quote(path)} ] || echo "wheel $(hash_of {quote(path)}) "{quote(path)}' for path in wheels),
        ]
    )


def read(root: str, name: str) -> str:
    """Print a small file of the index, nothing where it is not there."""
    path = quote(f"{root}/{name}")
    return f"[ ! -f {path} ] || head -c {LONGEST + 1} {path}"


def ready(root: str) -> str:
    """Print the names of what lies ready to be part of the index itself, the newest first."""
    return f"cd {quote(root)} && {{ ls -t {INCOMING}* 2>/dev/null || :; }}"


def commit(root: str, seen: str, moves: Mapping[str, str]) -> str:
    """Give files that lie ready their names, if SHA256SUMS still is what was seen.

    seen: its SHA-256, "" for none. moves: from where, to where; paths in the index, done in this order. Prints
    `done` or `changed`.
    """
    return "\n".join(
        [
            _HASH,
            f"cd {quote(root)} || exit 1",
            f"exec 9<{LOCK}",
            "if command -v flock >/dev/null 2>&1; then flock 9",
            "elif command -v perl >/dev/null 2>&1; then perl -e 'open(my $f, \"<&=\", 9) && flock($f, 2) or exit 1'",
            "else echo 'neither flock nor perl is there, one of which locks the index' >&2; exit 1",
            "fi || exit 1",
            f"now=''; [ ! -f {SUMS} ] || now=$(hash_of {SUMS})",
            f'[ "$now" = {quote(seen)} ] || {{ echo changed; exit 0; }}',
            # Who pushed the same wheel meanwhile has taken it along.
            *(f"[ -f {quote(before)} ] || {{ echo changed; exit 0; }}" for before in moves),
            *(f"mv -f {quote(before)} {quote(after)} || exit 1" for before, after in moves.items()),
            # Of what lay ready to be the index, nothing is of use any more.
            f"find . -name '{INCOMING}*' -type f -mmin +{STALE_MINUTES} -exec rm -f {{}} +",
            "echo done",
        ]
    )


def discard(root: str, names: Sequence[str]) -> str:
    return f"cd {quote(root)} && rm -f {' '.join(map(quote, names))}" if names else ":"
