"""Which addresses are opened; how their bytes come is tested with the cache that asks for them."""

from __future__ import annotations

import urllib.request

import pytest

from visllama.data.shards.cache import ShardCache
from visllama.data.shards.remote import FailedAttempt, _Redirects, check_address, is_remote
from visllama.errors import ConfigError


def test_tells_addresses_from_paths():
    for address in ("https://h/a.tar", "s3://b/a", "pipe:cat a", "file:/a", "file:///a", "simplecache::s3://b/a"):
        assert is_remote(address)
    for path in ("/a/b.tar", "a.tar", "./s3:/a", "../a::b", "data/{0..9}.tar", "", "~/x:y"):
        assert not is_remote(path)


@pytest.mark.parametrize(
    "address",
    ["pipe:cat /etc/passwd", "file:///etc/passwd", "file:/etc/passwd", "simplecache::s3://b/a.tar", "zip://a::https://h/a",
     "https://h/a::file:///b", "ftp://h/a.tar", "memory://a", "local://a", "data:,x", "github://a", "reference://", "HTTPS://h/a",
     "s3:b/a", "https:h/a", "https://user:password@h/a.tar", "ssh://h/a"],
)  # fmt: skip
def test_other_addresses_are_refused(address, tmp_path):
    with pytest.raises(ConfigError) as caught:
        check_address(address)
    assert "password@" not in str(caught.value)
    with pytest.raises(ConfigError):
        ShardCache(tmp_path).open(address, None)


def test_the_schemes_allowed_are_named():
    with pytest.raises(ConfigError, match=r"https://.*s3://.*gs://.*hf://"):
        check_address("ftp://h/a.tar")
    for address in ("http://[::1]:80/a.tar", "https://h/a.tar?x=a:b@c", "s3://b/a@1.tar"):
        check_address(address)


def test_never_from_https_to_http():
    request = urllib.request.Request("https://h/a.tar")
    with pytest.raises(FailedAttempt, match="redirected to"):
        _Redirects().redirect_request(request, None, 302, "", {}, "http://h/b.tar")
    assert _Redirects().redirect_request(request, None, 302, "", {}, "https://i/b.tar").host == "i"
