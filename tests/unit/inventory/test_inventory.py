"""The inventory: what it accepts, what it refuses and how it says so, and edits that keep the rest as it was."""

from __future__ import annotations

import fcntl
import os
import stat
import string
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import ConfigError, UsageError
from rbee.base.settings import Settings
from rbee.inventory import LOCAL, Inventory, Node, load, parse
from rbee.inventory.edit import add_node, remove_node
from rbee.inventory.names import check_host_name, check_user_name
from rbee.inventory.schema import KEEPER_KEYS, KEYS, SANDBOX, check_name
from rbee_remote.protocol import LoadOptions
from rbee_remote.protocol.load_options import BACKENDS, FLASH_ATTENTION, KV_TYPES

ROOT = Path(__file__).parents[3]
FINGERPRINT = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"


def read(text: str) -> Inventory:
    return parse(text.encode(), Path("/etc/inventory.toml"))


def test_the_example_shows_every_key_and_is_valid() -> None:
    path = ROOT / "inventory.example.toml"
    inventory = load(path)
    document = tomllib.loads(path.read_text())
    assert set(document["nodes"]["gpu1"]) | set(document["defaults"]) == set(KEYS) | set(KEEPER_KEYS)
    assert inventory.node("gpu1").jump == ("bastion",)
    assert inventory.node(LOCAL).keep_alive_s == 900


def test_a_node_has_what_its_table_says_and_the_defaults_for_the_rest() -> None:
    inventory = read(
        """
        [defaults]
        model = "smollm2:135m"
        keep_alive = "1h30m"
        tags = ["lab"]
        env = { A = "1", B = "2" }
        [nodes.gpu1]
        host = "192.0.2.11"
        identity_file = "key"
        host_key = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
        env = { B = "3" }
        keep_alive = "never"
        """
    )
    node = inventory.node("gpu1")
    assert (node.model, node.keep_alive_s, node.tags) == ("smollm2:135m", -1, {"lab"})
    assert node.env == {"A": "1", "B": "3"}
    assert node.identity_file == Path("/etc/key")
    assert node.host_key == FINGERPRINT


def test_local_is_always_there_and_takes_defaults_but_not_an_address() -> None:
    inventory = read('[defaults]\nuser = "bee"\nhost = "x"\nmodel = "m"\n[nodes.gpu1]\n')
    assert inventory.node(LOCAL).is_local
    assert inventory.node(LOCAL).user is None
    assert inventory.node(LOCAL).model == "m"
    assert inventory.node("gpu1").host == "x"


def test_a_hub_token_is_trusted_to_one_node_at_a_time() -> None:
    inventory = read("[nodes.gpu1]\nhub_token = true\n[nodes.gpu2]\n")
    assert [inventory.node(name).hub_token for name in ("gpu1", "gpu2", LOCAL)] == [True, False, False]
    for table in ("defaults", f"nodes.{LOCAL}"):
        with pytest.raises(ConfigError) as caught:
            read(f"[{table}]\nhub_token = true\n")
        assert f"[{table}] hub_token: this has to be set for each node separately" in caught.value.message
        assert caught.value.hint


def test_a_node_without_a_host_is_reached_by_its_name() -> None:
    assert read("[nodes.gpu1]\n").node("gpu1").host == "gpu1"


@pytest.mark.parametrize(
    ("text", "message", "key"),
    [
        ("[nodes.gpu1]\nprot = 1", "has an unknown key 'prot'", "prot"),
        ('[nodes.gpu1]\nport = "22"', "expected a whole number, got text", "port"),
        ("[nodes.gpu1]\nport = true", "got a boolean", "port"),
        ("[nodes.gpu1]\nport = 0", "not between 1 and 65535", "port"),
        ("[nodes.gpu1]\nport = 65536", "not between", "port"),
        ("[nodes.gpu1]\nhost = 3", "expected text", "host"),
        ('[nodes.gpu1]\nhost = "-oProxyCommand=x"', "is not a host name", "host"),
        ('[nodes.gpu1]\nuser = "a b"', "is not a login name", "user"),
        ('[nodes.gpu1]\nbackend = "gpu"', "is not a backend", "backend"),
        ('[nodes.gpu1]\nkeep_alive = "soon"', "not a duration", "keep_alive"),
        ("[nodes.gpu1]\nkeep_alive = true", "duration", "keep_alive"),
        ('[nodes.gpu1]\ntags = "cuda"', "expected a list", "tags"),
        ('[nodes.gpu1]\ntags = ["a", "a"]', "twice", "tags"),
        ('[nodes.gpu1]\njump = ["local"]', "cannot be a jump host", "jump"),
        ('[nodes.gpu1]\nhost_key = "SHA256:short"', "not a fingerprint", "host_key"),
        ('[nodes.gpu1]\nhome = "relative"', "absolute", "home"),
        ('[nodes.gpu1]\nhome = "/a/../.."', "absolute", "home"),
        ("[nodes.gpu1]\nslots = 0", "not between", "slots"),
        ("[nodes.gpu1]\nctx = 1.5", "got a number", "ctx"),
        ("[nodes.gpu1]\nctx = 0", "not between", "ctx"),
        ("[nodes.gpu1]\nctx = 'most'", "neither a whole number nor 'auto'", "ctx"),
        ("[nodes.gpu1]\nkv_type = 'q3_k'", "KV cache type; choose one of f16", "kv_type"),
        ("[nodes.gpu1]\nflash_attention = true", "expected text", "flash_attention"),
        ("[nodes.gpu1]\nsandbox = 'yes'", "one of auto, on, off", "sandbox"),
        ("[nodes.gpu1]\nflash_attention = 'yes'", "one of auto, on, off", "flash_attention"),
        ("[nodes.gpu1]\ndevices = 'CUDA0'", "expected a list", "devices"),
        ("[nodes.gpu1]\ndevices = ['CUDA0', 'CUDA0']", "twice", "devices"),
        ("[nodes.gpu1]\ntensor_split = '3,1'", "expected a list of numbers", "tensor_split"),
        ("[nodes.gpu1]\ntensor_split = [3, 'x']", "expected numbers, got 'x'", "tensor_split"),
        ("[nodes.gpu1]\ntensor_split = [3, -1]", "-1 is not a share, which is a number from 0 up", "tensor_split"),
        ("[nodes.gpu1]\ntensor_split = [0, 0]", "at least one share has to be above 0", "tensor_split"),
        ("[nodes.gpu1]\ngpu_layers = 'some'", "neither a whole number nor 'auto' or 'all'", "gpu_layers"),
        ("[nodes.gpu1]\ngpu_layers = -1", "not between", "gpu_layers"),
        ("[defaults]\nslots = 'auto'", "expected a whole number", "slots"),
        ("[nodes.gpu1]\nenv = { A = 1 }", "A: expected text", "env"),
        ('[nodes.gpu1]\nenv = { "A B" = "x" }', "environment variable", "env"),
        ('[nodes.gpu1]\nmodel = "a\\u001bb"', "control characters", "model"),
        ("[defaults]\nslots = 'x'", "expected a whole number", "slots"),
        ('[nodes.local]\nhost = "x"', "without SSH", "host"),
    ],
)
def test_a_wrong_value_is_refused_by_file_table_and_key(text: str, message: str, key: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(text)
    table = "defaults" if text.startswith("[defaults]") else text[1 : text.index("]")]
    assert caught.value.details == {"file": "/etc/inventory.toml", "table": table, "key": key}
    assert "/etc/inventory.toml" in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes.all]", "every node"),
        ('[nodes."@x"]', "is not a valid name"),
        ('[nodes."a b"]', "is not a valid name"),
        ('[nodes.""]', "expected some text"),
        ("[node.x]", "unknown table or key 'node'"),
        ("nodes = 3", "table of tables"),
        ("[nodes]\ngpu1 = 3", "has to be a table"),
        ("defaults = []", "has to be a table"),
        ('[nodes.a]\njump = ["b"]\n[nodes.b]\njump = ["a"]', "a -> b -> a"),
    ],
)
def test_a_wrong_shape_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(text)


def test_an_unknown_key_comes_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError) as caught:
        read("[nodes.gpu1]\nidentity = 'x'")
    assert caught.value.hint == "did you mean 'identity_file'?"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[nodes.a]\nport = \n", 2),
        (b"[nodes.a]\n[nodes.a]\n", 2),
        (b"[nodes.a]\nport = 1\nport = 2\n", 3),
        (b"\n\n[nodes.\xff]\n", 3),
        (b'x = "', 1),
    ],
)
def test_a_syntax_error_names_its_line(content: bytes, line: int) -> None:
    with pytest.raises(ConfigError, match=f"line {line}:") as caught:
        parse(content, Path("i.toml"))
    assert caught.value.details["line"] == line


def test_an_unknown_node_comes_with_the_nearest_name() -> None:
    inventory = read("[nodes.gpu1]\n[nodes.bastion]\n")
    with pytest.raises(UsageError) as caught:
        inventory.node("gpu2")
    assert caught.value.hint == "did you mean 'gpu1'?"


def test_selectors() -> None:
    inventory = read('[nodes.a]\ntags = ["cuda"]\n[nodes.b]\n[nodes.c]\ntags = ["cuda", "lab"]\n')
    names = {
        selector: [node.name for node in inventory.select(selector)] for selector in (None, "all", "b", "@cuda", "@lab")
    }
    everything = ["a", "b", "c", LOCAL]
    assert names == {None: everything, "all": everything, "b": ["b"], "@cuda": ["a", "c"], "@lab": ["c"]}
    with pytest.raises(UsageError) as caught:
        inventory.select("@cud")
    assert caught.value.hint == "did you mean 'cuda'?"


def test_the_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    assert load(None, Settings(home)) == Inventory({LOCAL: Node(LOCAL, home=str(home / "node"))})
    for path in (home / "inventory.toml", tmp_path / "inventory.toml", tmp_path / "env.toml", tmp_path / "given.toml"):
        path.write_text(f"[nodes.{path.parent.name[:4].replace('_', 'x')}-{path.stem}]\n")
    assert load(None, Settings(home)).path == home / "inventory.toml"
    assert load(None, Settings(home, tmp_path / "env.toml")).path == tmp_path / "env.toml"
    assert load(tmp_path / "given.toml", Settings(home, tmp_path / "env.toml")).path == tmp_path / "given.toml"
    (home / "inventory.toml").unlink()
    assert load(None, Settings(home)).path is None


def test_a_named_inventory_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no inventory at"):
        load(tmp_path / "none.toml", Settings(tmp_path))


# --- edits ------------------------------------------------------------------------------------------------------

FILE = """# my machines, in the order I like

[defaults]
model = "smollm2:135m"   # small

[nodes.zeta]             # first by choice
host = "z.example.org"

# the old one
[nodes.alpha]
host = "a.example.org"   # on the shelf
env = { B = "1", A = "2" }
"""


def test_adding_keeps_every_line_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(FILE)
    add_node(path, Node("mid", host="192.0.2.3", port=2222, user="bee", tags=frozenset({"b", "a"})))
    text = path.read_text()
    assert text.startswith(FILE.rstrip("\n"))
    assert load(path).node("mid") == Node(
        "mid", host="192.0.2.3", port=2222, user="bee", tags=frozenset({"a", "b"}), model="smollm2:135m"
    )
    assert list(load(path).nodes) == ["zeta", "alpha", "mid", LOCAL]


def test_removing_keeps_the_others_with_their_comments(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(FILE)
    remove_node(path, "alpha")
    text = path.read_text()
    assert "alpha" not in text
    for line in ("# my machines, in the order I like", 'model = "smollm2:135m"   # small', "# first by choice"):
        assert line in text


def test_add_then_remove_gives_the_file_back(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(FILE)
    add_node(path, Node("mid", host="m"))
    remove_node(path, "mid")
    assert path.read_text().rstrip() == FILE.rstrip()


def test_file_and_folder_are_made_and_modes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "inventory.toml"
    add_node(path, Node("a", host="a.example.org"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    add_node(path, Node("b", host="b.example.org"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text(FILE)
    link.symlink_to(real)
    add_node(link, Node("b", host="b"))
    assert link.is_symlink()
    assert "[nodes.b]" in real.read_text()


def test_a_name_that_is_taken_or_missing_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text(FILE)
    with pytest.raises(UsageError, match="already"):
        add_node(path, Node("alpha", host="x"))
    with pytest.raises(UsageError) as caught:
        remove_node(path, "alpah")
    assert caught.value.hint == "did you mean 'alpha'?"
    assert path.read_text() == FILE


def test_a_file_that_is_wrong_is_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    path.write_text("[nodes.a]\nprot = 1\n")
    with pytest.raises(ConfigError, match="prot"):
        add_node(path, Node("b", host="b"))
    assert path.read_text() == "[nodes.a]\nprot = 1\n"


def test_edits_at_once_all_count(tmp_path: Path) -> None:
    path = tmp_path / "inventory.toml"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_node(path, Node(f"n{i}", host=f"h{i}")), range(16)))
    assert set(load(path).nodes) == {f"n{i}" for i in range(16)} | {LOCAL}


def test_a_lock_that_somebody_holds_for_ever_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.inventory.edit._LOCK_PATIENCE_S", 0.1)
    path = tmp_path / "inventory.toml"
    path.write_text("[nodes.a]\n")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with pytest.raises(ConfigError, match=f"the folder {tmp_path} of the inventory has been locked") as caught:
            remove_node(path, "a")
        assert f"fuser -v {tmp_path}" in caught.value.hint
        path.chmod(0o666)
        with pytest.raises(ConfigError, match="is not used: it can be written by everybody"):
            remove_node(path, "a")
    finally:
        os.close(descriptor)
    path.chmod(0o600)
    remove_node(path, "a")


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(
    lambda name: name not in ("all", LOCAL)
)
WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(lambda t: t[0] != "-")


def _passes(check: Callable[[str], str], text: str) -> bool:
    try:
        return check(text) == text
    except ValueError:
        return False


NODES = st.builds(
    Node,
    name=NAMES,
    host=WORDS.filter(partial(_passes, check_host_name)),
    port=st.none() | st.integers(1, 65535),
    user=st.none() | WORDS.filter(partial(_passes, check_user_name)),
    tags=st.frozensets(NAMES, max_size=3),
    backend=st.sampled_from(BACKENDS),
    keep_alive_s=st.just(-1.0) | st.integers(0, 10**6).map(float),
    load=st.builds(
        LoadOptions,
        slots=st.none() | st.integers(1, 256),
        ctx=st.none() | st.just(0) | st.integers(16, 2**20),
        kv_type=st.none() | st.sampled_from(list(KV_TYPES)),
        flash_attention=st.none() | st.sampled_from(list(FLASH_ATTENTION)),
        devices=st.none() | st.lists(WORDS, max_size=3, unique=True).map(tuple),
        tensor_split=st.none() | st.lists(st.floats(0.1, 10), min_size=1, max_size=3).map(tuple),
        gpu_layers=st.none() | st.integers(-1, 4096),
    ),
    sandbox=st.sampled_from(SANDBOX),
    env=st.dictionaries(
        st.text(string.ascii_letters + "_", min_size=1, max_size=8),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20),
        max_size=3,
    ),
)


@given(nodes=st.lists(NODES, min_size=1, max_size=3, unique_by=lambda node: node.name))
def test_any_node_that_is_written_is_read_back(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("edit") / "inventory.toml"
    path.write_text("# kept\n[nodes.there] # kept too\nhost = 'h'\n")
    nodes = [node for node in nodes if node.name != "there"]
    for node in nodes:
        add_node(path, node)
    loaded = load(path)
    assert [loaded.node(node.name) for node in nodes] == nodes
    for node in nodes:
        remove_node(path, node.name)
    assert path.read_text().rstrip() == "# kept\n[nodes.there] # kept too\nhost = 'h'"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_content_gives_an_inventory_or_a_config_error(content: bytes) -> None:
    try:
        assert LOCAL in parse(content, Path("i.toml")).nodes
    except ConfigError as error:
        assert "i.toml" in error.message


@given(st.text(max_size=70))
def test_a_name_is_safe_in_a_shell_a_path_and_an_option(name: str) -> None:
    try:
        assert not set(check_name(name)) - set(string.ascii_letters + string.digits + "._-")
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 60.0), ('persist = "5m"', 300.0), ('persist = "0"', 0.0), ("persist = 90", 90.0)]
)
def test_how_long_connections_are_held(text: str, seconds: float) -> None:
    assert read(f"[defaults]\n{text}\n").persist_s == seconds


@pytest.mark.parametrize("value", ['"never"', '"9h"', "-1", "true", '"soon"'])
def test_connections_are_not_held_for_ever(value: str) -> None:
    with pytest.raises(ConfigError, match=r"\[defaults\] persist"):
        read(f"[defaults]\npersist = {value}\n")


def test_how_long_connections_are_held_is_no_matter_of_a_node() -> None:
    with pytest.raises(ConfigError, match="persist"):
        read('[nodes.gpu1]\npersist = "5m"\n')
