"""Whatever is sent, wherever to: an envelope that says what is wrong, and no harm done."""

import json
import os
import re
import socket
from http.client import HTTPResponse
from urllib.parse import urlsplit

import pytest
import requests
from django.conf import settings

from deploy.local.layout import Stack
from instagram.api.dispatch import parameters
from tests.instagram.routes import filled, routes
from tests.support import Person, get

SITE = settings.SITE_URL
STACK = Stack(os.environ["STACK"])
ROUTES = {one.path: one for one in routes()}
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FORM = "application/x-www-form-urlencoded"


def meta_of(response: requests.Response) -> dict:
    """The envelope's `meta` of an error, after checking that it is one envelope and agrees with the status."""
    assert response.headers["Content-Type"].startswith("application/json"), response.text
    meta = response.json()["meta"]
    assert set(response.json()) == {"meta"} or response.request.path_url.startswith("/oauth/")
    assert meta["code"] == response.status_code >= 400
    assert meta["error_type"]
    assert meta["error_message"]
    return meta


@pytest.fixture(scope="module")
def one():
    return Person()


def send(one: Person, method: str, path: str, **options) -> requests.Response:
    options["headers"] = {"Authorization": f"Bearer {one.token}"} | options.get("headers", {})
    return requests.request(method, SITE + path, timeout=20, **options)


UNKNOWN = ["/v1", "/v1/nothing", "/v1/users/1/2/3", "/v1/users//", "/nothing", "/oauth/access_token/x"]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize("path", UNKNOWN)
@pytest.mark.parametrize("accept", [None, "*/*", "text/html;q=0.5,application/json", ";q=,/,*", "é"])
def test_an_unknown_path_is_a_404_envelope(path, accept):
    response = get(path, headers={"Accept": accept and accept.encode()})
    assert meta_of(response)["code"] == 404
    assert response.headers["Vary"] == "Accept"


@pytest.mark.parametrize("path", [path for path in UNKNOWN if path.startswith(("/v1", "/oauth/access_token"))])
def test_an_unknown_path_of_the_api_is_an_envelope_for_browsers_too(path):
    assert meta_of(get(path, headers={"Accept": BROWSER}))["code"] == 404


@pytest.mark.parametrize("accept", [BROWSER, "text/html", "text/*"])
@pytest.mark.parametrize("path", ["/nothing", "/nothing/<script>", "/nothing?a=b"])
def test_an_unknown_path_is_a_page_for_a_browser(path, accept):
    response = get(path, headers={"Accept": accept})
    assert response.status_code == 404
    assert response.headers["Content-Type"].startswith("text/html")
    assert response.headers["Vary"] == "Accept"
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "There is no such page" in response.text
    assert "<script>" not in response.text


@pytest.mark.parametrize("path", ["/v1/é", "/v1/%ff", "/v1/%00", "/v2/users/self", "/v1/nothing"])
def test_an_unknown_path_is_a_404_for_every_method(one, path):
    for method in METHODS:
        response = send(one, method, path)
        assert meta_of(response)["code"] == (400 if "%00" in path else 404)  # nginx refuses NUL by itself


@pytest.mark.parametrize("path", ROUTES)
def test_a_wrong_method_is_a_405_that_names_the_right_ones(one, path):
    wrong = set(METHODS) - set(ROUTES[path].endpoints)
    for method in [*wrong, "TRACE", "BREW"]:
        response = send(one, method, filled(path))
        assert meta_of(response)["code"] == 405
        if method in wrong:
            assert set(response.headers["Allow"].split(", ")) == set(ROUTES[path].endpoints)


UNREADABLE = {
    "no JSON": ("application/json", b"{"),
    "JSON of something else": ("application/json", b"[]"),
    "JSON of null": ("application/json", b"null"),
    "JSON that is not UTF-8": ("application/json", b'{"text": "\xff\xfe"}'),
    "JSON too deep": ("application/json", b"[" * 100_000),
    "JSON with a number too long": ("application/json", b'{"text": ' + b"9" * 10_000 + b"}"),
    "half a character in JSON": ("application/json", b'{"text": "\\ud800"}'),
    "NUL in JSON": ("application/json", b'{"text": "\\u0000"}'),
    "NUL in a form": (FORM, b"text=%00"),
    "too many fields": (FORM, b"&a=" * 2000),
    "no boundary": ("multipart/form-data", b"text=a"),
    "a boundary that cannot be": (f"multipart/form-data; boundary={'x' * 300}", b"--x\r\n"),
    "too many files": (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n\r\n' * 300 + b"--x--",
    ),
}
# What Django reads of a POST alone: the body of a DELETE is a form or JSON.
OF_A_POST = {"no boundary", "a boundary that cannot be", "too many files"}
WRITES = [(method, path) for path, one in ROUTES.items() for method in ("POST", "DELETE") if method in one.endpoints]


@pytest.mark.parametrize("body", UNREADABLE)
def test_a_body_that_cannot_be_read_is_a_400(one, body):
    content_type, content = UNREADABLE[body]
    for method, path in WRITES:
        if method == "DELETE" and body in OF_A_POST:
            continue
        response = send(one, method, filled(path), data=content, headers={"Content-Type": content_type})
        meta = meta_of(response)
        assert (meta["code"], meta["error_type"]) == (400, "APIInvalidParametersError"), (method, path)


@pytest.mark.parametrize(
    "content_type", ["application/json", FORM, "text/plain", "multipart/form-data; boundary=x", ""]
)
def test_a_body_that_is_too_large_is_a_413(one, content_type):
    for method, path in WRITES:
        response = send(one, method, filled(path), data=b"a" * (2 << 20), headers={"Content-Type": content_type})
        assert meta_of(response)["code"] == 413, (method, path)


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/xml", b"<text/>"),
        ("text/plain; charset=hex", b"text=a"),
        ("nonsense", b"\xff\x00"),
        ("", b"\xff"),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n--y--"),
        (FORM, b"\xff\xfe=\xff&%ed%a0%80=%ff"),
        ("application/json", b'{"\\ud800": 1, "unknown": {"a": ["\\u0000"]}}'),
    ],
)
def test_a_body_of_something_else_is_answered_as_if_it_were_empty(one, content_type, content):
    for method, path in WRITES:
        empty = send(one, method, filled(path))
        response = send(one, method, filled(path), data=content, headers={"Content-Type": content_type})
        assert (response.status_code, response.json()["meta"]) == (empty.status_code, empty.json()["meta"])
        assert response.status_code < 500


@pytest.mark.parametrize(
    "value", ["%00", "%ff", "%ed%a0%80", "%f0%9f%8c%85", "x" * 1000, "-1", "1e3", "%d9%a3", "%2e", "9" * 30]
)
def test_strange_values_in_paths_and_queries_are_an_envelope(one, value):
    names = ("q", "count", "lat", "lng", "cursor", "max_id", "min_timestamp", "callback")
    for path, route in ROUTES.items():
        if "GET" in route.endpoints:
            query = "&".join(f"{name}={value}" for name in names)
            for asked in {re.sub(r"{\w+}", value, f"/{path}"), f"{filled(path)}?{query}"}:
                response = send(one, "GET", asked)
                assert response.status_code < 500, (asked, response.text)
                assert response.json()["meta"]["code"] == response.status_code


@pytest.mark.parametrize("token", ["é", "\x01", "x" * 5000, "a b", "null", "' OR 1=1"])
def test_a_token_that_cannot_be_one_is_a_400(token):
    for path, route in ROUTES.items():
        _, endpoint = route.endpoints.get("GET", ("", len))
        if "viewer" in parameters(endpoint):
            assert meta_of(get(filled(path), params={"access_token": token}))["error_type"].startswith("OAuth")


NO_HTTP = {
    "a URL with UTF-8 in it": "GET /v1/tags/café HTTP/1.1\r\n\r\n",
    "a URL with a blank in it": "GET /v1/tags/a b HTTP/1.1\r\n\r\n",
    "a control character": "GET /v1/users/self HTTP/1.1\r\nX-Any: \x01\r\n\r\n",
    "two Content-Types": "POST /v1/media HTTP/1.1\r\nContent-Type: a\r\nContent-Type: b\r\n\r\n",
    "an unknown version": "GET /v1/users/self HTTP/9.9\r\n\r\n",
    "an unknown transfer coding": "POST /v1/media HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a chunk without a length": "POST /v1/media HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a small letter": "get /v1/users/self HTTP/1.1\r\n\r\n",
}


def raw(request: str, address: str = urlsplit(SITE).netloc) -> HTTPResponse:
    """The answer to a request that no library would send."""
    host, port = address.split(":")
    request = request.replace("\r\n", f"\r\nHost: {host}\r\nConnection: close\r\n", 1)
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(request.encode())
        response = HTTPResponse(connection)
        response.begin()
        response.meta = json.loads(response.read())["meta"]
    assert response.headers["Content-Type"].startswith("application/json")
    assert response.status == response.meta["code"]
    return response


@pytest.mark.parametrize("what", NO_HTTP)
def test_what_is_no_proper_http_is_a_400(what):
    # At nginx: a load balancer, HAProxy as well as ELB, has a page of its own for most of these.
    assert raw(NO_HTTP[what], STACK.address("edge_1")).status == 400


def test_who_claims_to_use_tls_is_not_believed():
    response = raw("GET /v1/users/self HTTP/1.1\r\nX-Forwarded-Ssl: on\r\nX-Forwarded-Proto: https\r\n\r\n")
    assert response.meta["error_type"] == "OAuthParameterException"


def test_a_large_body_that_nobody_reads_does_not_cost_the_next_request(one):
    """gunicorn's connections are shared by all clients."""
    with requests.Session() as session:
        for _ in range(100):
            response = session.post(f"{SITE}/v1/users/self", data=b"a" * 200_000, timeout=20)
            assert meta_of(response)["code"] == 405


@pytest.mark.parametrize("asked", ["/v1/users/self?" + "a" * 9000, "/v1/users/" + "1" * 9000])
def test_a_url_that_is_too_long_is_a_414(one, asked):
    assert meta_of(send(one, "GET", asked))["code"] == 414


def test_a_query_of_thousands_of_fields_is_a_400(one):
    for path, route in ROUTES.items():
        if "GET" in route.endpoints:
            assert meta_of(send(one, "GET", f"{filled(path)}?{'&a=' * 2000}"))["code"] == 400


def test_a_body_in_chunks_is_a_body(one):
    def chunks():
        yield b'{"full_name": "In '
        yield b'Chunks"}'

    response = send(one, "POST", "/v1/accounts/edit", data=chunks(), headers={"Content-Type": "application/json"})
    assert response.json()["data"]["full_name"] == "In Chunks"
    endless = (b"x" * 65536 for _ in range(64))
    response = send(one, "POST", "/v1/accounts/edit", data=endless, headers={"Content-Type": "application/json"})
    assert meta_of(response)["code"] == 413


@pytest.mark.parametrize("value", [{"a": 1}, [1], 5, True, None])
def test_a_json_value_of_the_wrong_type_is_named(one, value):
    response = send(one, "POST", "/v1/media", json={"upload_id": value})
    assert "upload_id" in meta_of(response)["error_message"]


def test_a_missing_parameter_is_named(one):
    assert "upload_id" in meta_of(send(one, "POST", "/v1/media"))["error_message"]
    response = requests.post(f"{SITE}/v1/accounts", data={"client_id": "phone"}, timeout=10)
    assert "username" in meta_of(response)["error_message"]


def test_what_was_refused_has_changed_nothing(one):
    """By all of the above."""
    profile = one.get("users/self")
    assert profile["counts"] == {"media": 0, "follows": 0, "followed_by": 0}
    assert (profile["bio"], profile["website"]) == ("", "")
