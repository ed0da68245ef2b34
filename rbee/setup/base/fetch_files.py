"""Fetches files by a node's own way to the internet: `python -I -c THIS LIMITS [SHA256 URL TARGET]…`. Run there, by the
Python that runtimes are made from, so it imports the standard library alone, and works with Python 3.10.

stdout: `progress NUMBER DONE TOTAL` (of a file, bytes), and at the end `fetched` or `failed WHY`.

Rules
- A file gets its name when its SHA-256 is the one that the keeper named. Its part, `.NAME.part`, is gone on with.
- Nothing but https is spoken, with servers that prove who they are; the node's proxy variables count.
- Where no server answers soon, this process is ended by its own alarm: a look-up of a name cannot be broken off else.
- What fails, the keeper does in another way: then the part is of no more use, and goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

#: Bytes that are read at once at most, of a file, and that a try has to bring to count as one that got on.
PIECE = 2**18
LARGEST = 2**30
LEAST = 2**20
REPORT_S = 0.5


class BrokenError(Exception):
    """The connection ended too soon, or the server asks for patience: another try may go on."""


class GivenUpError(Exception):
    """No further try would help."""


class HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Redirects that stay on https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_https(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme != "https":
        raise GivenUpError("it leads to an address that is not https")


def main(limits: str, *words: str) -> int:
    """limits: JSON of `Fetch`'s arguments. words: of each file its SHA-256, its address, and its absolute path here."""
    fetch = Fetch(**json.loads(limits))
    files = list(zip(words[::3], words[1::3], map(Path, words[2::3])))  # noqa: B905 - as many of each
    try:
        for number, (sha256, url, target) in enumerate(files):
            fetch.file(number, sha256, url, target)
    except (GivenUpError, BrokenError, OSError, ValueError, http.client.HTTPException) as error:
        is_status = isinstance(error, urllib.error.HTTPError)
        reason = error if is_status else getattr(error, "reason", None) or error
        say(f"failed {' '.join(str(reason).split())[:200] or type(error).__name__}")
        return 1
    say("fetched")
    return 0


class Fetch:
    """Seconds. answer: for the first server to answer. stall: without a byte, or for less than `LEAST`. whole: for all
    files. pause: before the second try, doubled each time. tries: in a row that do not get on."""

    def __init__(self, answer_s: float, stall_s: float, whole_s: float, tries: int, pause_s: float) -> None:
        self.answer_s, self.stall_s, self.whole_s = answer_s, stall_s, whole_s
        self.tries, self.pause_s = tries, pause_s
        self.answered = False
        self.opener = urllib.request.build_opener(HttpsOnly())

    def file(self, number: int, sha256: str, url: str, target: Path) -> None:
        """One file, whoever of several bootstraps fetches it. Raises GivenUpError, BrokenError and OSError."""
        check_https(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(part_of(target)) as part:
            if target.is_file():  # whether it is the right one, who unpacks it sees
                part_of(target).unlink()
                return
            try:
                continues = size_of(part) > 0
                self.all_of(number, url, part)
                if continues and digest_of(part) != sha256:
                    part.truncate(0)
                    self.all_of(number, url, part)
                if digest_of(part) != sha256:
                    raise GivenUpError("what came has another SHA-256 than the locked one")
                os.fsync(part.fileno())
                part_of(target).replace(target)
            except Exception:
                part_of(target).unlink(missing_ok=True)
                raise

    def all_of(self, number: int, url: str, part: IO[bytes]) -> None:
        """By several tries, where the connection breaks."""
        failures = 0
        while True:
            before = size_of(part)
            try:
                return self.go_on(number, url, part)
            except (BrokenError, OSError, http.client.HTTPException) as error:
                failures = 1 if size_of(part) - before >= LEAST else failures + 1
                is_final = isinstance(error, (urllib.error.HTTPError, TimeoutError)) or not self.answered
                if is_final or failures >= self.tries:
                    raise
                time.sleep(self.pause_s * 2.0 ** (failures - 1))

    def go_on(self, number: int, url: str, part: IO[bytes]) -> None:
        """One try, from where the part ends."""
        begin = size_of(part)
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        request = urllib.request.Request(url, headers={"User-Agent": "rbee", **headers})  # noqa: S310 - it is https
        try:
            answer = self.opened(request)
        except urllib.error.HTTPError as error:
            if error.code == 416 and begin:  # there is no more, which the SHA-256 tells
                return
            raise
        with answer:
            if answer.status != 206:
                part.truncate(begin := 0)
            total = total_of(answer, begin)
            if total > LARGEST:
                raise GivenUpError(f"it is larger than {LARGEST // 2**20} MiB")
            if total - begin > free_beside(part):
                raise GivenUpError("the disk has no room for it")
            self.append_all(number, answer, part, begin, total)

    def opened(self, request: urllib.request.Request) -> Any:
        """An answer. The first has little time: most nodes without a way out drop what is sent, and say nothing."""
        if self.answered:
            return self.opener.open(request, timeout=self.stall_s)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self.answer_s)
        try:
            answer = self.opener.open(request, timeout=self.stall_s)
            self.answered = True
            return answer
        except urllib.error.HTTPError:
            self.answered = True
            raise
        finally:
            signal.signal(signal.SIGALRM, out_of_time)
            signal.setitimer(signal.ITIMER_REAL, self.whole_s)

    def append_all(self, number: int, answer: Any, part: IO[bytes], done: int, total: int) -> None:
        told = 0.0
        since, then = time.monotonic(), done
        while done < total:
            piece = answer.read1(min(PIECE, total - done))
            if not piece:
                raise BrokenError(f"the connection ended after {done} of {total} bytes")
            part.write(piece)
            done += len(piece)
            now = time.monotonic()
            if now - since >= self.stall_s:
                if done - then < LEAST:
                    raise TimeoutError(f"less than {LEAST // 2**20} MiB came in {self.stall_s:g} s")
                since, then = now, done
            if now - told >= REPORT_S or done == total:
                told = now
                say(f"progress {number} {done} {total}")


def total_of(answer: Any, begin: int) -> int:
    """Bytes of the whole file. Raises BrokenError and GivenUpError."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes ([0-9]{1,15})-[0-9]+/([0-9]{1,15})", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != begin:
            raise GivenUpError("the server sent something else than the rest")
        return int(found[2])
    length = answer.headers.get("Content-Length", "")
    if answer.status != 200 or not re.fullmatch(r"[0-9]{1,15}", length):
        raise GivenUpError("the server does not say how long it is")
    return int(length)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """A part, which others wait for; who has waited looks again, for it may be a finished file's by now."""
    while True:
        with path.open("a+b", buffering=0) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(part.fileno()).st_ino:
                yield part
                return


def size_of(part: IO[bytes]) -> int:
    return os.fstat(part.fileno()).st_size


def free_beside(part: IO[bytes]) -> int:
    return shutil.disk_usage(Path(part.name).parent).free


def digest_of(part: IO[bytes]) -> str:
    part.seek(0)
    digest = hashlib.sha256()
    while piece := part.read(PIECE):
        digest.update(piece)
    return digest.hexdigest()


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def out_of_time(*_: object) -> None:
    raise GivenUpError("it took too long")


def say(line: str) -> None:
    """Who reads no more ends this; the part stays for who comes next."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
