"""A repository that somebody cloned is the current folder: nothing in it decides where rbee goes and what runs here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.cli import main as cli
from rbee.inventory import LOCAL, Inventory, parse
from rbee.inventory.unsafe_variables import is_unsafe
from rbee.setup.base import child, pip, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import building
from rbee.transport.connection import quote
from tests.testbed.cli import Rbee
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import write_wheel

HOSTILE = """
[defaults]
model = "https://evil.example/model.gguf"
[nodes.local]
env = { LD_PRELOAD = "./evil.so" }
[nodes.gpu1]
host = "evil.example"
"""
NOTICE = "inventory.toml in this folder is not used; to use it: -i inventory.toml\n"


@pytest.fixture
def rbee(tmp_path: Path) -> Rbee:
    """A keeper that runs no model."""
    (tmp_path / "home").mkdir()
    (tmp_path / "run").mkdir(mode=0o700)
    return Rbee(tmp_path / "keeper", tmp_path / "run")


@pytest.fixture
def clone(rbee: Rbee) -> Path:
    """The folder that `rbee` runs in, as it came from somebody else."""
    (rbee.user_home / "inventory.toml").write_text(HOSTILE)
    return rbee.user_home


def test_its_inventory_names_neither_host_nor_model_nor_code(rbee: Rbee, clone: Path) -> None:
    shown = rbee("nodes", "show", "local", "--json")
    assert (shown.json()["model"], shown.json()["env"]) == (None, {})
    assert [node["name"] for node in rbee("nodes", "list", "--json").json()] == ["local"]
    refused = rbee("nodes", "show", "gpu1", status=2)
    assert refused.stderr.startswith(NOTICE)
    assert "evil" not in shown.stdout + shown.stderr + refused.stderr


def test_it_is_told_of_once_and_only_where_it_could_have_been_meant(rbee: Rbee, clone: Path) -> None:
    assert rbee("nodes", "list").stderr == NOTICE
    assert rbee("nodes", "list", "--json").stderr == NOTICE
    assert rbee("nodes", "list", "-q").stderr == ""
    assert rbee("nodes", "list", "-q", "--json").stderr == ""
    assert rbee("version").stderr == ""
    rbee.home.mkdir()
    rbee.inventory.write_text("[nodes.mine]\n")
    assert rbee("nodes", "list").stderr == NOTICE
    assert rbee("nodes", "list", "-i", str(rbee.inventory)).stderr == ""
    assert rbee("nodes", "list", env={"RBEE_INVENTORY": str(rbee.inventory)}).stderr == ""
    assert rbee("nodes", "list", env={"RBEE_HOME": str(clone)}, status=2).stderr.startswith("error: ")


def test_cron_hears_nothing_of_it(rbee: Rbee, clone: Path) -> None:
    assert rbee("gc").stderr == ""
    assert NOTICE in rbee("gc", "-v").stderr


def test_the_inventory_of_rbees_own_home_is_the_one_in_use(rbee: Rbee) -> None:
    (rbee.user_home / "inventory.toml").write_text("[nodes.mine]\n")
    found = rbee("nodes", "list", env={"RBEE_HOME": "."})
    assert "mine" in found.stdout
    assert found.stderr == ""


def test_a_node_is_added_to_ones_own_inventory(rbee: Rbee, clone: Path) -> None:
    added = rbee("nodes", "add", "gpu2", "gpu2.example.org", "--no-check")
    assert added.stderr == f"{NOTICE}added gpu2 to {rbee.inventory}\n"
    assert "gpu2" in rbee.inventory.read_text()
    assert (clone / "inventory.toml").read_text() == HOSTILE
    removed = rbee("nodes", "remove", "gpu1", status=2)
    assert f"no node 'gpu1' in {rbee.inventory}" in removed.stderr


def test_where_it_is_named_its_variables_still_steer_nothing_here(rbee: Rbee, clone: Path) -> None:
    refused = rbee("-i", "inventory.toml", "nodes", "show", "local", status=2)
    assert "inventory.toml: [nodes.local] env: LD_PRELOAD decides which code this machine runs" in refused.stderr


def test_where_it_is_named_no_program_of_its_own_runs(rbee: Rbee, clone: Path) -> None:
    """A home that came along has a runtime, which a keeper would run as one that rbee made."""
    target = Target.here()
    ran = clone / "ran"
    evil = (
        clone
        / "node/runtimes"
        / requirements.runtime_key(target, "cpu", building.cmake_flags(target, "cpu"))
        / "bin/python"
    )
    evil.parent.mkdir(parents=True)
    evil.write_text(f"#!/bin/sh\ntouch {quote(str(ran))}\n")
    evil.chmod(0o755)
    (clone / "inventory.toml").write_text(f'[nodes.local]\nhome = "{clone}/node"\nbackend = "cpu"\n')
    for words in (("infer", "--model", "smollm2:135m", "hello"), ("nodes", "show", "local")):
        refused = rbee("-i", "inventory.toml", *words, status=None)
        assert not ran.exists()
        assert refused.status == 2
        assert "[nodes.local] home decides which programs this machine runs" in refused.stderr
        assert f"write it into {rbee.inventory}, or set RBEE_HOME" in refused.stderr


def test_where_it_is_named_its_default_home_is_for_the_others(rbee: Rbee, clone: Path) -> None:
    (clone / "inventory.toml").write_text(f'[defaults]\nhome = "{clone}/node"\n[nodes.gpu1]\n')
    for name, home in (("gpu1", clone / "node"), ("local", rbee.home / "node")):
        assert rbee("-i", "inventory.toml", "nodes", "show", name, "--json").json()["home"] == str(home)


def test_the_inventory_of_rbees_own_home_moves_this_machines(rbee: Rbee) -> None:
    rbee.home.mkdir(mode=0o700)
    for table in ("nodes.local", "defaults"):
        rbee.inventory.write_text(f'[{table}]\nhome = "/scratch/rbee"\n')
        for words in ((), ("-i", str(rbee.inventory))):
            assert rbee(*words, "nodes", "show", "local", "--json").json()["home"] == "/scratch/rbee"


async def test_no_tool_of_ours_runs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rustup's `rustc` runs what `rust-toolchain.toml` of the current folder names, and pip asks it for its version."""
    clone, programs = tmp_path / "clone", tmp_path / "programs"
    clone.mkdir()
    programs.mkdir()
    (clone / "rust-toolchain.toml").write_text('[toolchain]\npath = "./evil"\n')
    rustc = programs / "rustc"
    asked, obeyed = tmp_path / "asked", tmp_path / "obeyed"
    rustc.write_text(
        f"#!/bin/sh\ntouch {quote(str(asked))}\n[ ! -e rust-toolchain.toml ] || touch {quote(str(obeyed))}\n"
    )
    rustc.chmod(0o755)
    index = PackageIndex(tmp_path, monkeypatch)
    write_wheel(index.folder, "tiny", {"tiny.py": b""})
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.chdir(clone)
    await pip.download(["tiny"], tmp_path / "fetched", on_line=lambda _: None)
    assert (asked.exists(), obeyed.exists()) == (True, False)
    said: list[str] = []
    await child.run(["pwd"], said.append)
    assert said == ["/"]


def test_a_relative_home_is_the_users_word_and_no_more_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RBEE_HOME", "home")
    monkeypatch.delenv("RBEE_INVENTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home").chmod(0o777)
    assert cli.main(["nodes", "list", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"] == f"rbee's home {tmp_path}/home is not used: it can be written by everybody"
    assert error["hint"] == f"chmod go-w {tmp_path}/home"


# --- variables --------------------------------------------------------------------------------------------------------

CODE = (
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "GCONV_PATH", "LOCPATH", "GLIBC_TUNABLES"),
    *("PYTHONPATH", "PYTHONSTARTUP", "LLAMA_CPP_LIB_PATH", "GGML_BACKEND_PATH", "GGML_METAL_PATH_RESOURCES"),
    *("OPENSSL_CONF", "OPENSSL_MODULES", "CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH", "HSA_TOOLS_LIB"),
    *("VK_LAYER_PATH", "VK_ICD_FILENAMES", "VK_DRIVER_FILES", "XDG_DATA_HOME", "HOME", "PATH", "BASH_ENV", "ENV"),
    *("MTMD_CPP_LIB", "LLAVA_CPP_LIB", "ROCBLAS_TENSILE_LIBPATH", "HIPBLASLT_TENSILE_LIBPATH", "CUDA_CACHE_PATH"),
    *(
        "NCCL_CONF_FILE",
        "NCCL_TOPO_FILE",
        "CUBLASLT_LOG_FILE",
        "CUDA_COREDUMP_FILE",
        "NCCL_DEBUG_FILE",
        "CUDA_LOG_FILE",
    ),
    *("CUDNN_LOGDEST_DBG", "CUBLAS_LOGDEST_DBG", "ROCBLAS_LOG_PATH", "ROCBLAS_LOG_TRACE_PATH", "MIOPEN_USER_DB_PATH"),
)
DATA = (
    *("HF_HOME", "HF_ENDPOINT", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "GGML_CUDA_ENABLE_UNIFIED_MEMORY", "LLAMA_ARG_THREADS"),
    *(
        "CUDA_DEVICE_ORDER",
        "CUDA_CACHE_MAXSIZE",
        "NCCL_DEBUG",
        "NCCL_P2P_DISABLE",
        "GGML_CUDA_FORCE_MMQ",
        "GOMP_CPU_AFFINITY",
    ),
    *("HSA_OVERRIDE_GFX_VERSION", "MALLOC_ARENA_MAX", "TMPDIR", "LANG", "TZ", "A", "MY_PATH", "ENVIRONMENT"),
)


def inventory(text: str) -> Inventory:
    return parse(text.encode(), Path("/etc/inventory.toml"))


@pytest.mark.parametrize("name", CODE)
def test_a_variable_that_decides_which_code_runs_is_refused_for_this_machine(name: str) -> None:
    with pytest.raises(ConfigError, match=f"env: {name} decides") as caught:
        inventory(f'[nodes.local]\nenv = {{ A = "1", {name} = "x" }}')
    assert caught.value.details == {
        "file": "/etc/inventory.toml",
        "table": "nodes.local",
        "key": "env",
        "variable": name,
    }


@pytest.mark.parametrize("name", DATA)
def test_others_are_passed_on(name: str) -> None:
    assert not is_unsafe(name)
    assert inventory(f'[nodes.local]\nenv = {{ {name} = "x" }}').node(LOCAL).env == {name: "x"}


def test_defaults_are_for_the_nodes_which_need_them() -> None:
    read = inventory(
        '[defaults]\nenv = { LD_LIBRARY_PATH = "/opt/cuda/lib", HF_HOME = "/scratch" }\n'
        '[nodes.gpu1]\nenv = { PYTHONPATH = "x" }\n[nodes.local]\nenv = { A = "1" }\n'
    )
    assert read.node("gpu1").env == {"LD_LIBRARY_PATH": "/opt/cuda/lib", "HF_HOME": "/scratch", "PYTHONPATH": "x"}
    assert read.node(LOCAL).env == {"HF_HOME": "/scratch", "A": "1"}
