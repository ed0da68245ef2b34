"""One llama-cpp-python wheel of the cache, as the `wheel.json` beside it describes it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.errors import ConfigError
from rbee.base.files import LocalFile, file_sha256
from rbee.setup.base import requirements
from rbee.setup.base.cuda import Code, obstacle
from rbee.setup.base.platforms import Target, Version

#: What the files are, in errors.
WHAT = "the wheel cache"


@dataclass(frozen=True, slots=True)
class LlamaWheel:
    """What `wheel.json` says of the wheel beside it.

    libc_version: the oldest C library it runs with. built_on: the node, or who answers for what an index gave, as
    `Builders` has it; "" for what this machine built. cpu: what a processor has to be capable of, as the kernel names
    it; nothing where every variant is inside. cuda: what it has for NVIDIA's GPUs, as `Code.text` says it; "" where it
    has nothing for them, or nobody has looked.
    """

    file: str
    sha256: str
    version: str
    backend: str
    system: str
    machine: str
    libc: str
    libc_version: Version
    built_on: str = ""
    cpu: str = ""
    cuda: str = ""

    @classmethod
    def read(cls, described: Path) -> LlamaWheel:
        """What a `wheel.json` says; what a later rbee writes besides is passed over. Raises ConfigError and OSError."""
        content = trusted_files.read(described, WHAT)
        try:
            said = json.loads(content)
            values = {field.name: said[field.name] for field in dataclasses.fields(cls) if field.name in said}
            version = tuple(map(int, values.pop("libc_version")))
            if wrong := [name for name, value in values.items() if not isinstance(value, str)]:
                raise TypeError(f"{wrong[0]} is no text")
            return cls(**values, libc_version=version)
        except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
            raise ConfigError(
                f"{described} is damaged",
                hint="`rbee wheels prune` removes that wheel, which is then built or fetched again",
                details={"reason": f"{type(error).__name__}: {error}"},
            ) from error

    @classmethod
    def of(cls, folder: Path) -> LlamaWheel | None:
        """What lies in a folder, None for what is damaged. Raises ConfigError for what others may have written."""
        try:
            known = cls.read(folder / "wheel.json")
        except OSError:
            return None
        except ConfigError as error:
            if "reason" in error.details:
                return None
            raise
        return known if known.is_in(folder) else None

    def is_in(self, folder: Path) -> bool:
        return Path(self.file).name == self.file and (folder / self.file).is_file()

    def is_unchanged(self, folder: Path) -> bool:
        """Whether the wheel is what it was when it was made. Reads it."""
        try:
            return file_sha256(folder / self.file) == self.sha256
        except OSError:
            return False

    def file_in(self, folder: Path) -> LocalFile:
        return LocalFile(folder / self.file, self.sha256)

    def fits(self, target: Target, backend: str) -> bool:
        same = (self.version, self.backend) == (requirements.llama().version, backend)
        builder = Target(self.system, self.machine, self.libc, tuple(self.libc_version), target.python)
        if not (same and target.runs_what_is_built_on(builder) and target.cpu.issuperset(self.cpu.split())):
            return False
        return self.code is None or not obstacle(self.code, target)

    @property
    def code(self) -> Code | None:
        return Code.read(self.cuda)
