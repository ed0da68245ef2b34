"""The input's file, read line by line: never all of it at once."""

from __future__ import annotations

import csv
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rbee.base.errors import UsageError
from rbee.batch.lines import LineError, Raw, Row, read_line
from rbee.batch.template import Template, UnknownFieldError

#: Bytes of a line: what the gateway takes for a request.
MOST_LINE = 32 * 2**20
#: Lines among which the same custom_id is looked for, and names of models that are kept.
_MOST_IDS, _MOST_MODELS = 2_000_000, 64
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_AS_UTF8 = "write it as UTF-8, as `iconv -f UTF-16 -t UTF-8` does"
_UNPACKED = "unpack it first: a run that was stopped reads it again to go on"
#: What files of other kinds begin with: what they are, and what to do.
_OTHERS = {
    b"\xff\xfe": ("UTF-16", _AS_UTF8),
    b"\xfe\xff": ("UTF-16", _AS_UTF8),
    b"\x1f\x8b": ("compressed", _UNPACKED),
    b"\x28\xb5\x2f\xfd": ("compressed", _UNPACKED),
    b"\xfd7zXZ": ("compressed", _UNPACKED),
    b"BZh": ("compressed", _UNPACKED),
    b"PK\x03\x04": ("an archive, or a spreadsheet", "unpack it, or save the sheet as CSV"),
}


@dataclass(slots=True)
class Survey:
    """What a first look at the input says. sha256: of its content. bad: the first lines that ask for nothing, and why;
    bad_count: of all. twice: how many custom_ids are used again. models: what lines name, "" for nothing."""

    sha256: str
    count: int = 0
    bad_count: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    twice: int = 0
    models: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Input:
    """A JSONL file, or a CSV one by its name. template: for prompts, None for lines that are requests."""

    path: Path
    template: Template | None = None

    @property
    def is_table(self) -> bool:
        return self.path.suffix.lower() in _SEPARATORS

    def check(self) -> None:
        """Raises UsageError for what cannot be read, or has no such columns."""
        if str(self.path) == "-":
            hint = "write it into a file first: a run that was stopped reads it again to go on"
            raise UsageError("the input has to be a file, not standard input", hint=hint)
        try:
            with self.path.open("rb") as file:
                if not file.seekable():
                    raise UsageError(f"{self.path} is no regular file", hint="a run that goes on reads it again")
                beginning = file.read(8)
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from error
        for known, (what, hint) in _OTHERS.items():
            if beginning.startswith(known):
                raise UsageError(f"{self.path} is {what}", hint=hint)
        if self.is_table:
            self._check_columns()

    def _check_columns(self) -> None:
        with self._text() as file:
            header = next(self._rows(file), [])
        if isinstance(header, LineError):
            raise UsageError(f"the head of {self.path} cannot be read: {header}")
        if self.template is None:
            if "prompt" not in header:
                told = f"{self.path} has no column prompt"
                hint = f'say what is asked of a row with --template "… {{NAME}}"; columns: {", ".join(header)}'
                raise UsageError(told, hint=hint)
            return
        try:
            self.template.check(header)
        except UnknownFieldError as error:
            raise UsageError(f"--template: {error}") from error

    def lines(self) -> Iterator[Raw]:
        """In order; lines with nothing in them are passed over."""
        return self._table() if self.is_table else self._json()

    def survey(self) -> Survey:
        """Reads all of it. Raises UsageError."""
        self.check()
        with self.path.open("rb") as file:
            survey = Survey(hashlib.file_digest(file, "sha256").hexdigest())
        ids = array("q")
        for raw in self.lines():
            survey.count += 1
            try:
                ask = read_line(raw, self.template)
            except LineError as error:
                survey.bad_count += 1
                if len(survey.bad) < 3:
                    survey.bad.append((raw.number, str(error)))
                continue
            if len(ids) < _MOST_IDS:
                ids.append(hash(ask.custom_id))
            model = ask.body.get("model") or ""
            if isinstance(model, str) and (model in survey.models or len(survey.models) < _MOST_MODELS):
                survey.models[model] += 1
        if not survey.count:
            raise UsageError(f"{self.path} has no lines")
        survey.twice = len(ids) - len(set(ids))
        return survey

    def _json(self) -> Iterator[Raw]:
        with self.path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE + 1):
                number += 1
                if len(line) > MOST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MOST_LINE)
                    yield Raw(number, LineError(f"it is longer than {MOST_LINE // 2**20} MiB"))
                elif line.strip(b"\xef\xbb\xbf \t\r\n"):
                    yield Raw(number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)

    def _table(self) -> Iterator[Raw]:
        with self._text() as file:
            rows = self._rows(file)
            header = next(rows, [])
            if isinstance(header, LineError):
                return
            for number, row in enumerate(rows, 1):
                if isinstance(row, LineError):
                    yield Raw(number, row)
                elif not row:
                    continue
                elif len(row) != len(header):
                    told = f"the row has {len(row)} fields, and the head of the table {len(header)}"
                    yield Raw(number, LineError(told))
                else:
                    yield Raw(number, Row(zip(header, row, strict=True)))

    def _text(self) -> IO[str]:
        csv.field_size_limit(MOST_LINE)
        return self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _rows(self, file: IO[str]) -> Iterator[list[str] | LineError]:
        """A row, or why it is none."""
        rows = csv.reader(file, delimiter=_SEPARATORS[self.path.suffix.lower()])
        while True:
            try:
                row = next(rows)
                for value in row:
                    value.encode()
            except StopIteration:
                return
            except csv.Error as error:
                yield LineError(str(error))
            except UnicodeEncodeError:
                yield LineError("it is not UTF-8")
            else:
                yield row
