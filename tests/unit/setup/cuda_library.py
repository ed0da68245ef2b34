"""A library with code for GPUs: headers as nvcc 13.0 wrote them, in what gcc links."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path

CC = shutil.which("cc")

#: Headers of entries as nvcc 13.0.88 wrote them for one kernel; the length of what follows is in bytes 8 to 16.
ENTRIES = {
    "sm_75": (64, "02000101 40000000 28000000 00000000 00000000 00000000 08000100 4b000000 0 0 11000000"),
    "sm_90": (64, "02000101 40000000 28000000 00000000 00000000 00000000 08000100 5a000000 0 0 11000000"),
    "sm_90a": (64, "02000101 40000000 28000000 00000000 00000000 00000000 08000100 5a000000 0 0 11001000"),
    "sm_100f": (112, "02000101 70000000 28000000 00000000 00000000 40000000 08000100 64000000 0 0 11002001"),
    "sm_120a": (96, "02000101 60000000 28000000 00000000 00000000 40000000 08000100 78000000 0 0 11001001"),
    "compute_90": (80, "01000101 50000000 28000000 00000000 fb000000 40000000 00000900 5a000000 0 0 11800000"),
    "compute_100f": (80, "01000101 50000000 28000000 00000000 fb000000 40000000 00000900 64000000 0 0 11802000"),
}


def container(*names: str) -> bytes:
    entries = b""
    for name in names:
        size, words = ENTRIES[name]
        head = b"".join(bytes.fromhex(word.zfill(8)) for word in words.split())
        entries += head.ljust(size, b"\0") + b"\x7f" * 40
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def library(folder: Path, *parts: bytes, needs: str = "libcudart.so.13") -> io.BytesIO:
    """Linked by gcc, with these bytes where nvcc puts what it compiled."""
    assert CC is not None
    (folder / "fatbin").write_bytes(b"".join(parts))
    (folder / "fatbin.s").write_text('.section .nv_fatbin, "a"\n.align 8\n.incbin "fatbin"\n')
    (folder / "empty.c").write_text("")
    options = ["-shared", "-Wl,--no-as-needed", "-o"]
    subprocess.run([CC, *options, needs, "-Wl,-soname," + needs, "empty.c"], cwd=folder, check=True, timeout=60)
    subprocess.run([CC, *options, "made.so", "fatbin.s", needs], cwd=folder, check=True, timeout=60)
    return io.BytesIO((folder / "made.so").read_bytes())
