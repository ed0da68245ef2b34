"""Where the steps leave what later ones need. The folder outlives a step, and the pack is only read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

#: For tests/e2e/test_gpu.py: the folder.
ENV = "RBEE_TEST_GPU"


@dataclass(frozen=True, slots=True)
class Work:
    """backend: that everything is built for, and computes with: cuda, or cpu in a rehearsal. pack: see pack.py."""

    folder: Path
    pack: Path
    backend: str

    @classmethod
    def read(cls, folder: Path) -> Work:
        """As `write` left it."""
        kept = json.loads((folder / "work.json").read_text())
        return cls(folder, Path(kept["pack"]), kept["backend"])

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "work.json").write_text(json.dumps({"pack": str(self.pack), "backend": self.backend}))

    @property
    def source(self) -> Path:
        """The sources, unpacked."""
        return self.folder / "source"

    @property
    def tree(self) -> Path:
        """The one build tree."""
        return self.folder / "tree"

    @property
    def wheel_cache(self) -> Path:
        """A keeper's; the peers lie beside it, where benchmarks/llama_cpp.py looks for them."""
        return self.folder / "cache" / "wheels"

    @property
    def out(self) -> Path:
        """Where results and logs go: $OUT, whose files come back from such a machine, else below the folder."""
        return Path(os.environ.get("OUT") or self.folder / "out")

    def keep_logs(self, *files: Path) -> None:
        """Put copies of logs, and of all in folders of logs, beside the results; each time beside what is there."""
        found = [path for file in files for path in (sorted(file.rglob("*")) if file.is_dir() else [file])]
        if not (found := [path for path in found if path.is_file()]):
            return
        self.out.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("logs-%H%M%S-"), dir=self.out))
        for path in found:
            shutil.copyfile(path, folder / path.name)

    def model(self, name: str) -> Path:
        """A model's file, by the name of its shape."""
        return self.folder / "models" / f"{name}.gguf"

    @property
    def large(self) -> Path:
        """The model whose speed counts: the largest that was written."""
        return max((self.folder / "models").glob("*.gguf"), key=lambda path: path.stat().st_size)

    def environment(self) -> dict[str, str]:
        """For keepers: packages come from the pack alone."""
        return {
            "RBEE_WHEEL_CACHE": str(self.wheel_cache),
            "RBEE_WHEEL_INDEX": "off",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.pack / "wheels"),
        }

    def enter(self) -> None:
        """Have this process, and what it starts, find all of that."""
        os.environ |= self.environment() | {ENV: str(self.folder)}
