"""`wheel_indexes` of the inventory: what it takes, what it refuses, and whose inventory may say it of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.base.settings import Settings
from rbee.inventory import LOCAL, Inventory, WheelIndex, load, parse

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
HASH = "0123456789abcdef" * 4


def read(text: str) -> Inventory:
    return parse(text.encode(), Path("/etc/inventory.toml"))


def test_what_it_takes() -> None:
    inventory = read(
        f"""
        [defaults]
        wheel_indexes = [
          {{ backend = "cpu", url = "https://w.example/llama/", key = "{KEY} me@laptop" }},
          {{ backend = "cuda", url = "file:///srv/wheels", sha256 = ["{HASH}"] }},
          {{ backend = "cpu", url = "/srv/wheels", sha256 = "{HASH}" }},
        ]
        [nodes.gpu1]
        [nodes.gpu2]
        wheel_indexes = [{{ backend = "rocm", url = "http://w.example" }}]
        wheel_index = "off"
        """
    )
    assert inventory.node("gpu1").wheel_indexes == (
        WheelIndex("https://w.example/llama", "cpu", key=KEY),
        WheelIndex("file:///srv/wheels", "cuda", (HASH,)),
        WheelIndex("file:///srv/wheels", "cpu", (HASH,)),
    )
    assert inventory.node("gpu1").wheel_index == "on"
    assert inventory.node("gpu2").wheel_indexes == (WheelIndex("http://w.example", "rocm"),)
    assert inventory.node("gpu2").wheel_index == "off"


def test_a_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    inventory = read('[defaults]\nwheel_indexes = [{ backend = "cpu", url = "~/wheels" }]')
    assert inventory.node(LOCAL).wheel_indexes[0].url == "file:///home/me/wheels"


def test_who_vouches() -> None:
    assert WheelIndex("https://w.example", "cpu").vouchers() == frozenset()
    assert WheelIndex("https://w.example", "cpu", (HASH,)).vouchers() == {f"sha256:{HASH}"}
    (signer,) = WheelIndex("https://w.example", "cpu", key=KEY).vouchers()
    # What `ssh-keygen -l` says of that key.
    assert signer == "signed:SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA"
    assert WheelIndex("https://me:secret@w.example", "cpu").name == "https://w.example"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ('"https://w.example"', "expected a list of tables"),
        ('["https://w.example"]', "expected a list of tables"),
        ('[{ backend = "cpu" }]', "needs url"),
        ('[{ url = "https://w.example" }]', "needs backend"),
        ('[{ backend = "auto", url = "https://w.example" }]', "'auto' is not a backend that wheels are for"),
        ('[{ backend = "cpu", url = "https://w.example", hash = "x" }]', "'hash' is not a key of an index"),
        ('[{ backend = "cpu", url = "ftp://w.example" }]', "neither an address"),
        ('[{ backend = "cpu", url = "wheels" }]', "neither an address"),
        ('[{ backend = "cpu", url = "https://" }]', "neither an address"),
        ('[{ backend = "cpu", url = "file:wheels" }]', "is not a folder of this machine"),
        ('[{ backend = "cpu", url = "file://nas/wheels" }]', "is not a folder of this machine"),
        ('[{ backend = "cpu", url = "file:/srv/my wheels" }]', "is not an address"),
        ('[{ backend = "cpu", url = "https://w.example/a b" }]', "is not an address"),
        ('[{ backend = "cpu", url = "https://w.example#sha256=1" }]', "a query or a fragment"),
        ('[{ backend = "cpu", url = "https://w.example", sha256 = "1" }]', "is not a SHA-256"),
        ('[{ backend = "cpu", url = "https://w.example", sha256 = [] }]', "a hash, or a list of some"),
        (f'[{{ backend = "cpu", url = "https://w.example", sha256 = "{HASH}", key = "{KEY}" }}]', "not both"),
        ('[{ backend = "cpu", url = "https://w.example", key = "~/.ssh/id.pub" }]', "has to be a public key"),
        ('[{ backend = "cpu", url = "https://w.example", key = "ssh-ed25519 AAAA" }]', "has to be a public key"),
        (
            f'[{{ backend = "cpu", url = "https://w.example", key = "ssh-rsa {KEY.split()[1]}" }}]',
            "has to be a public key",
        ),
    ],
)
def test_what_it_refuses(value: str, why: str) -> None:
    with pytest.raises(ConfigError, match="wheel_indexes") as caught:
        read(f"[defaults]\nwheel_indexes = {value}")
    assert why in caught.value.message


def test_another_setting_of_the_official_one() -> None:
    with pytest.raises(ConfigError, match="choose one of on, off"):
        read('[defaults]\nwheel_index = "https://w.example"')


def test_an_inventory_from_elsewhere_says_nothing_of_what_this_machine_runs(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "home")
    shared = tmp_path / "shared.toml"
    indexes = f'wheel_indexes = [{{ backend = "cpu", url = "https://w.example", sha256 = "{HASH}" }}]'
    shared.write_text(f"[defaults]\n{indexes}\n[nodes.gpu1]\n")
    inventory = load(shared, settings)
    assert inventory.node("gpu1").wheel_indexes
    assert inventory.node(LOCAL).wheel_indexes == ()
    shared.write_text(f"[nodes.local]\n{indexes}\n")
    with pytest.raises(ConfigError, match="wheel_indexes decides which programs this machine runs") as caught:
        load(shared, settings)
    assert str(settings.inventory_path) in (caught.value.hint or "")
    settings.home.mkdir()
    settings.inventory_path.write_text(f"[defaults]\n{indexes}\n")
    assert load(None, settings).node(LOCAL).wheel_indexes
