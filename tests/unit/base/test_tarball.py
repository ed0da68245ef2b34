from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from rbee.base import tarball


def test_the_same_files_are_the_same_bytes_whoever_made_them_and_when(tmp_path: Path) -> None:
    packed = []
    for name, when in (("a", 1), ("b", 2_000_000_000)):
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        for each in ("z", "sub/y") if name == "a" else ("sub/y", "z"):
            (folder / each).write_text(each)
            os.utime(folder / each, (when, when))
        (folder / "link").symlink_to("sub/y")
        into = io.BytesIO()
        tarball.pack(folder, into, level=6)
        packed.append(into.getvalue())
    assert packed[0] == packed[1]
    with tarfile.open(fileobj=io.BytesIO(packed[0])) as archive:
        assert archive.getnames() == ["link", "sub", "sub/y", "z"]
        assert archive.getmember("link").linkname == "sub/y"
