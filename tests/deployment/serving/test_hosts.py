"""Web pages of other sites may not send requests through the browser of somebody who can reach the server."""

import pytest
from starlette.datastructures import Headers

from timm_stitch.deployment.serving.hosts import HostCheck


def refusal(allowed=(), method="POST", **headers):
    return HostCheck(None, allowed).refusal(Headers(headers), method)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "192.168.1.5", "gpu-box:80", "a.localhost"]
)
def test_local_names_and_addresses_are_this_server(host):
    assert refusal(host=host) is None
    assert refusal(host=host, origin=f"http://{host}") is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "evil.example.", "com."]
)
def test_other_domains_are_refused_unless_they_are_named(host):
    assert "pass --allowed-host NAME" in refusal(host=host)
    assert "pass --allowed-host NAME" in refusal(host=host, method="GET")
    assert refusal(allowed=None, host=host) is None
    assert refusal(allowed=("Evil.example", "evil.example.", "com.", "127.0.0.1.evil.example"), host=host) is None


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9000", "http://[", "file://"])
def test_pages_of_other_sites_may_not_send(origin):
    assert "may not send requests here" in refusal(host="127.0.0.1:8000", origin=origin)
    assert "may not send requests here" in refusal(allowed=None, host="127.0.0.1:8000", origin=origin)
    assert refusal(host="127.0.0.1:8000", origin=origin, method="GET") is None  # no browser lets it read the answer


def test_a_browser_that_names_no_page_may_not_send_for_one():
    headers = {"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}
    check = HostCheck(None, ())
    assert "pages of 'another site' may not send" in check.refusal(Headers(headers), "POST")
    assert check.refusal(Headers(headers), "GET") is None
    assert check.refusal(Headers({**headers, "sec-fetch-site": "same-origin"}), "POST") is None


def test_pages_behind_a_named_proxy_may_send():
    assert refusal(allowed=("my.example",), host="127.0.0.1:8000", origin="https://my.example") is None
