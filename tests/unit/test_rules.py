"""The rules that keep the house in order: who imports whom, how long a file may be, what the wheel contains."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
KEEPER = ROOT / "rbee"
REMOTE = ROOT / "remote" / "rbee_remote"
UNIT = ROOT / "tests" / "unit"
SOURCES = sorted([*KEEPER.rglob("*.py"), *REMOTE.rglob("*.py")])
REGISTRY = KEEPER / "registry"
CHATS = KEEPER / "chat" / "store"
RENDER = KEEPER / "render"
GATEWAY = KEEPER / "gateway"
#: The gateway is a server on sockets as hive and worker are, with the same bounds, and tells of changes as they do.
SERVES_WITH = ("rbee_remote.serving", "rbee_remote.system.unix_socket", "rbee_remote.system.changes")
#: Has a table of its own, which sqlite-utils makes and fills without a line of SQL: sqlite3 is there for its errors.
USAGE = GATEWAY / "records" / "usage.py"
LLAMA = REMOTE / "worker" / "llama"
LONGEST_FILE = 400
#: What the runtime on a node holds; everything else there is the standard library.
RUNTIME = {
    "starlette", "uvicorn", "anyio", "psutil", "pynvml", "jinja2", "numpy", "gguf", "huggingface_hub", "httpx",
    "httpx2", "llama_cpp", "llguidance", "prometheus_client", "h11",
}  # fmt: skip


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    yield
    tree.cache_clear()  # half a million objects, through which the garbage collector would go again and again


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, anywhere in it, by its full name."""
    return frozenset(imported(path))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who depends on whom"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def against_it(paths: Iterable[Path], wrong: Callable[[Path], Iterable[object]]) -> dict[str, list[object]]:
    """What is wrong in each file that breaks a rule. One test for all files: there are hundreds, and ten rules."""
    found = {relative(path): list(wrong(path)) for path in paths}
    assert found, "no file is looked at"
    return {name: each for name, each in found.items() if each}


def test_what_runs_on_a_node_imports_its_runtime_and_nothing_else() -> None:
    known = set(sys.stdlib_module_names) | RUNTIME | {"rbee_remote"}
    assert against_it(REMOTE.rglob("*.py"), lambda path: roots(path) - known) == {}


def test_the_protocol_needs_the_standard_library_alone() -> None:
    def wrong(path: Path) -> set[str]:
        ours = {module for module in imports(path) if module.split(".")[0] == "rbee_remote"}
        foreign = roots(path) - set(sys.stdlib_module_names) - {"rbee_remote"}
        return foreign | {name for name in ours if name.split(".")[:2] != ["rbee_remote", "protocol"]}

    assert against_it([*(REMOTE / "protocol").glob("*.py"), REMOTE / "__init__.py"], wrong) == {}


def test_the_keeper_knows_the_node_by_its_protocol_and_what_it_may_ask_for() -> None:
    """A schema is refused before anything is connected by what would refuse it on the node."""

    def wrong(path: Path) -> set[str]:
        remote = {name for name in imports(path) if name.split(".")[0] == "rbee_remote"}
        if path.is_relative_to(GATEWAY):
            remote = {name for name in remote if not any(f"{name}.".startswith(f"{own}.") for own in SERVES_WITH)}
        known = {"rbee_remote.protocol", "rbee_remote.constraints"}
        return {name for name in remote if ".".join(name.split(".")[:2]) not in known}

    assert against_it(KEEPER.rglob("*.py"), wrong) == {}


def test_constraints_need_the_protocol_and_llguidance_alone() -> None:
    def wrong(path: Path) -> set[str]:
        ours = {module.split(".")[1] for module in imports(path) if module.startswith("rbee_remote.")}
        foreign = roots(path) - set(sys.stdlib_module_names) - {"rbee_remote", "llguidance"}
        return foreign | ours - {"protocol", "constraints"}

    assert against_it((REMOTE / "constraints").rglob("*.py"), wrong) == {}


def test_only_one_package_imports_llama_cpp() -> None:
    others = [path for path in SOURCES if not path.is_relative_to(LLAMA)]
    assert against_it(others, lambda path: roots(path) & {"llama_cpp"}) == {}


def test_only_the_registry_and_the_chats_know_sql() -> None:
    known = (REGISTRY, CHATS)
    others = [path for path in SOURCES if path != USAGE and not any(path.is_relative_to(folder) for folder in known)]
    assert against_it(others, lambda path: roots(path) & {"sqlite3", "sqlite_utils"}) == {}


def test_only_the_screen_of_a_chat_knows_prompt_toolkit() -> None:
    others = [path for path in KEEPER.rglob("*.py") if not path.is_relative_to(KEEPER / "chat" / "screen")]
    assert against_it(others, lambda path: roots(path) & {"prompt_toolkit"}) == {}


def test_usage_has_a_table_and_no_sql() -> None:
    called = {node.attr for node in ast.walk(tree(USAGE)) if isinstance(node, ast.Attribute)}
    assert called & {"execute", "executemany", "executescript", "query", "rows_where", "search"} == set()


def test_nothing_prints_and_only_the_renderers_know_rich() -> None:
    def prints(path: Path) -> list[int]:
        calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        return [call.lineno for call in calls if isinstance(call, ast.Name) and call.id == "print"]

    keeper = list(KEEPER.rglob("*.py"))
    assert against_it(keeper, prints) == {}
    others = [path for path in keeper if not path.is_relative_to(RENDER)]
    assert against_it(others, lambda path: roots(path) & {"rich"}) == {}


#: What a `NodeSession` owns. Two at most are handed on by themselves; with a third the session is the argument to take.
IN_A_NODE_SESSION = {"Context", "Node", "Connection", "Registry", "Emit", "Attached"}
#: Where the session is put together.
MAKES_NODE_SESSIONS = "rbee/node/session.py NodeSession.__init__"


def test_what_belongs_to_a_node_session_is_not_handed_on_piece_by_piece() -> None:
    def wrong(path: Path) -> set[str]:
        many = {f"{relative(path)} {name}" for name, pieces in session_pieces(tree(path)) if len(pieces) > 2}
        return many - {MAKES_NODE_SESSIONS}

    assert against_it(KEEPER.rglob("*.py"), wrong) == {}


def test_pieces_of_a_node_session_are_found_in_functions_methods_and_fields() -> None:
    source = """
async def f(node: Node, *rest: Emit, context: Context | None = None): ...
class A:
    def g(self, link: ReconnectingConnection, nodes: Sequence[Node]): ...
@dataclass(frozen=True)
class B:
    emit: Emit
    registry: Registry
"""
    assert dict(session_pieces(ast.parse(source))) == {
        "f": {"Node", "Emit", "Context"},
        "A.g": {"Connection", "Node"},
        "B": {"Emit", "Registry"},
    }


def session_pieces(parent: ast.AST, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """What of a node session each function takes, and each dataclass, whose fields are its constructor's parameters."""
    for child in ast.iter_child_nodes(parent):
        inside = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, pieces_in(child.args)
        elif isinstance(child, ast.ClassDef):
            inside = f"{prefix}{child.name}."
            if child.decorator_list:
                fields = [part.annotation for part in child.body if isinstance(part, ast.AnnAssign)]
                yield prefix + child.name, set().union(*map(pieces_in, fields))
        yield from session_pieces(child, inside)


def pieces_in(tree: ast.AST) -> set[str]:
    names = {node.id.removeprefix("Reconnecting") for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names & IN_A_NODE_SESSION


@pytest.mark.parametrize("top", [KEEPER, REMOTE], ids=relative)
def test_the_graph_of_folders_has_no_cycle(top: Path) -> None:
    TopologicalSorter(folder_graph(top)).prepare()  # raises CycleError, which names one


def test_a_cycle_of_folders_is_found(tmp_path: Path) -> None:
    for name, line in (("a", "from top.b import y"), ("b", "import top.a.x")):
        (tmp_path / "top" / name).mkdir(parents=True)
        (tmp_path / "top" / name / {"a": "x", "b": "y"}[name]).with_suffix(".py").write_text(line)
    with pytest.raises(CycleError):
        TopologicalSorter(folder_graph(tmp_path / "top")).prepare()


def folder_graph(top: Path) -> dict[str, set[str]]:
    """Which folder imports from which others. A file at the top counts as a folder of its own: `__main__` needs all."""
    modules = {module_name(path, top): room(path, top) for path in top.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for path in top.rglob("*.py"):
        targets = {modules[name] for name in imports(path) if name in modules and name != top.name}
        graph.setdefault(room(path, top), set()).update(targets - {room(path, top)})
    return graph


def module_name(path: Path, top: Path) -> str:
    parts = path.relative_to(top.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(path: Path, top: Path) -> str:
    return str((path if path.parent == top else path.parent).relative_to(top))


def test_the_unit_tests_mirror_the_source() -> None:
    ours = {path.parent.relative_to(UNIT).as_posix() for path in UNIT.rglob("test_*.py")} - {".", "doubles"}
    node_side = {
        f"remote/{path.parent.relative_to(REMOTE).as_posix()}".removesuffix("/.") for path in REMOTE.rglob("*.py")
    }
    assert ours <= {path.parent.relative_to(KEEPER).as_posix() for path in KEEPER.rglob("*.py")} | node_side


def test_no_test_double_travels_to_nodes() -> None:
    assert not [path for path in SOURCES if {"testing", "doubles"} & {path.stem, path.parent.name}]


def test_files_stay_short_enough_to_read() -> None:
    lines = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


def test_the_wheel_holds_the_two_packages_and_the_requirements(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    locked = ["--no-index", "--no-build-isolation", "--python", sys.executable]
    words = [str(uv), "build", "--quiet", "--wheel", *locked, "--out-dir", str(tmp_path), str(ROOT)]
    subprocess.run(words, check=True, timeout=PATIENCE_S)
    (wheel,) = tmp_path.glob("rbee-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        names = set(archive.namelist())
    dist_info = {name for name in names if ".dist-info/" in name}
    assert names - dist_info == wheel_contents()
    assert {Path(name).name for name in dist_info} >= {"METADATA", "RECORD", "WHEEL", "entry_points.txt"}
    find = "from rbee.setup.base import requirements as found; found.keeper(); print(found.folder())"
    said = subprocess.check_output([sys.executable, "-c", find], cwd=tmp_path, text=True)
    assert said.strip() == f"{tmp_path}/rbee/requirements"


def wheel_contents() -> set[str]:
    """The source tree, as a wheel lays it out."""
    packages = {path.relative_to(base).as_posix() for base, top in ((ROOT, KEEPER), (ROOT / "remote", REMOTE))
                for path in top.rglob("*") if _belongs(path)}  # fmt: skip
    requirements = {
        f"rbee/requirements/{path.name}" for path in (ROOT / "remote/requirements").iterdir() if _belongs(path)
    }
    return packages | requirements | {"rbee/requirements/keeper.txt"}


def _belongs(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def test_the_readme_names_every_command() -> None:
    from typer.main import get_command

    from rbee.cli.main import make_app

    readme = (ROOT / "README.md").read_text()
    commands = get_command(make_app()).commands  # type: ignore[attr-defined]  # the app is a group
    assert {"infer", "nodes", "workers", "models", "hive", "logs", "version"} <= set(commands)
    assert [name for name in commands if f"rbee {name}" not in readme] == []
