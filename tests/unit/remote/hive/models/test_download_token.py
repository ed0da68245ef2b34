"""A hub token goes to the hub it is for, over https, and only where nothing is given without one; and where redirects
lead. The `download` process and the real huggingface_hub client, against a hub with TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee_remote.hive.models.http_library import httpx
from rbee_remote.hive.models.redirects import Guard, is_inside
from rbee_remote.protocol import RemoteError, Source
from tests.hub import COMMIT, Hub
from tests.unit.remote.hive.models.test_download import (
    CONTENT,
    FILE,
    REPO,
    TOKEN,
    download,
    failure,
    https,
    left,
    target,
)

__all__ = ["target"]

BEARER = f"Bearer {TOKEN}"
API = f"/api/models/{REPO}"
RESOLVE = f"/{REPO}/resolve/{COMMIT}/{FILE}"


@pytest.fixture
def hub(tls_hub: Hub) -> Hub:
    tls_hub.add(REPO, FILE, CONTENT)
    return tls_hub


@pytest.mark.parametrize("gated", [False, True], ids=["hidden", "gated"])
def test_a_private_file_needs_the_token_which_stays_with_the_hub(hub: Hub, target: Path, gated: bool) -> None:
    hub.token, hub.gated = TOKEN, gated
    error = failure(download(hub, target))
    assert error["code"] == ("DOWNLOAD_FAILED" if gated else "MODEL_NOT_FOUND")
    assert error["details"] == {"denied": True}
    assert "token" in error["hint"]
    assert hub.tokens() == {"hub": {None}}
    assert download(hub, target, token=TOKEN)[-1]["size"] == len(CONTENT)
    assert hub.tokens() == {"hub": {None, BEARER}, "content": {None}}


def test_what_everybody_may_have_is_fetched_without_the_token(hub: Hub, target: Path) -> None:
    assert download(hub, target, token=TOKEN)[-1]["size"] == len(CONTENT)
    assert hub.tokens() == {"hub": {None}, "content": {None}}


def test_a_token_that_is_no_good_says_what_to_do(hub: Hub, target: Path) -> None:
    hub.token, hub.gated = "another", True
    error = failure(download(hub, target, token=TOKEN))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "accepted its licence" in error["hint"]
    assert left(target) == set()


def test_a_token_is_never_sent_over_http(hub: Hub, target: Path) -> None:
    hub.token = TOKEN
    error = failure(download(hub, target, token=TOKEN, endpoint=hub.plain_url))
    assert error["code"] == "MODEL_NOT_FOUND"
    assert "only sent over https" in error["hint"]
    assert hub.tokens() == {"plain": {None}}


def test_no_request_of_a_guarded_client_carries_a_token_over_http(hub: Hub) -> None:
    with httpx.Client() as client:
        Guard(client)
        with pytest.raises(RemoteError) as caught:
            client.get(hub.plain_url, headers={"Authorization": BEARER})
    assert "only sent over https" in caught.value.message
    assert hub.seen == []


def test_what_the_machines_own_variables_say_gets_no_token(hub: Hub, target: Path) -> None:
    """The keeper named no hub, so the token is for the public one, which this test does not reach."""
    hub.token = TOKEN
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_anothers",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }
    error = failure(download(hub, target, token=TOKEN, endpoint="", extra=variables))
    assert error["details"]["network"] is False
    assert hub.tokens() == {"hub": {None}}


@pytest.mark.parametrize("path", [API, RESOLVE], ids=["API", "file"])
def test_a_redirect_to_another_port_takes_no_token_along(hub: Hub, target: Path, path: str) -> None:
    hub.token = TOKEN
    hub.redirects[path] = hub.content_url + path
    assert "error" in download(hub, target, token=TOKEN)[-1]
    assert hub.tokens()["content"] == {None}


@pytest.mark.parametrize("path", [API, RESOLVE], ids=["API", "file"])
@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_redirect_from_https_to_http_is_refused_before_the_request(
    hub: Hub, target: Path, path: str, token: str
) -> None:
    hub.token = token
    hub.redirects[path] = hub.plain_url + path
    error = failure(download(hub, target, token=token))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "it leads to an address that is not https" in error["message"]
    assert "plain" not in hub.tokens()
    assert left(target) == set()


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "unix:///run/docker.sock"])
@pytest.mark.parametrize("path", [API, RESOLVE], ids=["API", "file"])
def test_only_https_and_http_are_spoken(hub: Hub, target: Path, path: str, location: str) -> None:
    hub.redirects[path] = location
    error = failure(download(hub, target))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "is not fetched" in error["message"]
    assert hub.content_requests() == []


@pytest.mark.parametrize("path", [API, RESOLVE], ids=["API", "file"])
def test_a_redirect_that_leads_nowhere_is_not_tried_again(hub: Hub, target: Path, path: str) -> None:
    hub.redirects[path] = hub.url + path
    error = failure(download(hub, target))
    assert error["code"] == "DOWNLOAD_FAILED"
    assert "cannot be followed" in error["message"]
    assert len(hub.seen) < 30


def test_a_plain_address_that_leads_on_shows_no_query(hub: Hub, target: Path) -> None:
    hub.redirects["/plain/m.gguf"] = hub.plain_url
    error = failure(download(hub, target, https(f"{hub.url}/plain/m.gguf?X-Signature=canary")))
    assert "canary" not in str(error)


@pytest.mark.parametrize("inside", ["http://127.0.0.1:PORT", "http://127.1:PORT", "http://localhost:PORT"])
def test_a_redirect_from_the_internet_does_not_lead_to_this_machine(hub: Hub, target: Path, inside: str) -> None:
    """A proxy on loopback is what the internet looks like from here."""
    content = inside.replace("PORT", hub.plain_url.rpartition(":")[2])
    hub.redirects[RESOLVE] = f"{content}/content/{REPO}/{FILE}"
    proxy = {"HTTPS_PROXY": "", "HTTP_PROXY": hub.plain_url, "NO_PROXY": ""}
    hub.redirects_of = "plain"
    error = failure(download(hub, target, Source(kind="hf", repo=REPO), endpoint="http://hub.example.org", extra=proxy))
    assert "which is not a public address" in error["message"]
    assert [seen.path for seen in hub.seen] == [API, RESOLVE]


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST.", "x.localhost", "127.0.0.1", "127.1", "2130706433")),
        *((host, True) for host in ("0x7f000001", "0.0.0.0", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1")),
        *((host, True) for host in ("fe80::1", "fd00:ec2::254", "::ffff:169.254.169.254", "100.64.0.1")),
        *((host, False) for host in ("huggingface.co", "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "a.b")),
    ],
)
def test_what_is_inside(host: str, inside: bool) -> None:
    assert is_inside(host) is inside
