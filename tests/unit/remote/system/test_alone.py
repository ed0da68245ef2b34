"""What a first token imports of the large packages, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rbee_remote.system.alone import import_alone
from tests import tiny_models

#: What `llama_cpp/__init__.py` and `gguf/__init__.py` bring, and no first token needs.
HEAVY = "numpy", "diskcache", "requests", "yaml", "tqdm"


@pytest.mark.parametrize("module", ["rbee_remote.worker.llama.engine", "rbee_remote.worker.llama.memory"])
def test_a_worker_that_only_generates_imports_nothing_heavy(module: str) -> None:
    assert _heavy_after(f"import {module}") == []


def test_a_model_is_inspected_without_anything_heavy(tmp_path: Path) -> None:
    model = tiny_models.write(tmp_path / "tiny.gguf", "llama")
    read = "import pathlib; from rbee_remote.gguf.metadata import read_meta\n"
    assert _heavy_after(f"{read}assert read_meta(pathlib.Path({str(model)!r})).architecture == 'llama'") == []


def test_the_rest_of_a_package_comes_when_it_is_asked_for() -> None:
    """As llguidance asks llama_cpp's package for names of the bindings."""
    code = (
        "from rbee_remote.system.alone import import_alone; bindings = import_alone('llama_cpp.llama_cpp')\n"
        "import llama_cpp; assert llama_cpp.llama_cpp is bindings\n"
        "assert llama_cpp.llama_vocab_p is bindings.llama_vocab_p\n"
        "assert llama_cpp.Llama and not hasattr(llama_cpp, 'nothing')\n"
    )
    assert "numpy" in _heavy_after(code)


def test_a_package_that_is_there_stays_as_it_is_and_one_that_is_not_is_named() -> None:
    import json

    assert import_alone("json.decoder") is json.decoder
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_alone("no_such_package.module")


def _heavy_after(code: str) -> list[str]:
    program = f"{code}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules), sep=' ')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()
