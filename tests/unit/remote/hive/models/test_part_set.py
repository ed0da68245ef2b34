"""The parts of a split model become the model together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rbee_remote.hive.models import part_set
from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.part_file import PartFile, Wanted, open_part
from rbee_remote.hive.models.part_set import PartSet

WANTED = tuple(Wanted(f"https://h.example/{number}", str(number) * 64, 1) for number in range(3))


def come(_: object, wanted: Wanted, part: PartFile, __: object) -> None:
    part.prepare(wanted)
    part.append(b"x")


def test_who_is_killed_while_parts_are_written_out_goes_on_with_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_set, "fetch", come)
    written, fsync = 0, os.fsync

    def killed_at_the_third(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", killed_at_the_third)
    target = tmp_path / "m.gguf"
    with httpx.Client() as client, pytest.raises(KeyboardInterrupt):  # noqa: SIM117 - the parts are closed first
        with open_part(target) as first, PartSet(target, first) as parts:
            parts.fetch(client, WANTED, lambda *_: None)
    names = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("*.part")) == [f"{name}.part" for name in names]
    assert not list(tmp_path.glob("*.gguf"))
    with open_part(target) as first, PartSet(target, first) as parts, httpx.Client() as client:
        parts.fetch(client, WANTED, lambda *_: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
