"""The API's description and its reference: /developer/."""

import base64
import hashlib
import html
import re
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlsplit

import openapi_spec_validator
import pytest
import requests
from django.conf import settings
from django.urls import get_resolver

from instagram import reference
from instagram.api import openapi
from instagram.api.dispatch import Route
from tests.accounts.test_oauth import Browser, Client
from tests.instagram.routes import filled
from tests.support import Person, get

SITE = settings.SITE_URL


@pytest.fixture(scope="module")
def served() -> dict:
    return get("/developer/openapi.json").json()


@pytest.fixture(scope="module")
def one():
    return Person()


def operations(description: dict) -> list[tuple[str, str, dict]]:
    return [
        (method.upper(), path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]


def test_it_is_openapi_3_1(served):
    assert served["openapi"] == "3.1.0"
    openapi_spec_validator.validate(served)


def test_every_route_is_in_it(served):
    described = {(method, path) for method, path, _ in operations(served)}
    assert described == {(method, f"/{one.path}") for one in openapi.routes() for method in one.endpoints}
    assert ("GET", "/v1/users/{user_id}") in described
    assert ("POST", "/oauth/access_token") in described


def test_every_url_of_the_api_is_a_route():
    """What is not described are pages for people, files and health."""
    others = [one.pattern.regex.pattern for one in get_resolver().url_patterns if not hasattr(one.callback, "route")]
    assert [pattern for pattern in others if "v1/" in pattern] == []


def test_operations_have_names_of_their_own_and_words(served):
    ids = [operation["operationId"] for _, _, operation in operations(served)]
    assert len(set(ids)) == len(ids)
    endpoints = [endpoint for one in openapi.routes() for _, endpoint in one.endpoints.values()]
    assert [endpoint.__name__ for endpoint in endpoints if not endpoint.__doc__] == []


def test_parameters_are_described(served):
    words = {}
    for _, _, operation in operations(served):
        for parameter in operation["parameters"]:
            words[parameter["name"]] = parameter.get("description")
        for content in operation.get("requestBody", {"content": {}})["content"].values():
            words |= {name: schema.get("description") for name, schema in content["schema"]["properties"].items()}
    assert [name for name, description in words.items() if not description] == []


def no_annotation(viewer): ...
def bare_dict(viewer) -> dict: ...  # fmt: skip
def list_of_dicts(viewer) -> list[dict]: ...  # fmt: skip
def page_without_cursor(viewer) -> tuple[list[str], int]: ...  # fmt: skip


@pytest.mark.parametrize("endpoint", [no_annotation, bare_dict, list_of_dicts, page_without_cursor])
def test_an_endpoint_that_does_not_say_what_it_returns_is_named(endpoint):
    with pytest.raises(openapi.Undescribed, match=rf"{endpoint.__name__} \(/v1/things\)"):
        openapi.operation_of(Route("v1/things", {"GET": ("basic", endpoint)}), "GET", {})


def test_refused_credentials_are_what_the_description_says(served):
    """Every operation that needs a token refuses none, one that is made up, and a client_id where that will not do."""
    asked = 0
    for method, path, operation in operations(served):
        ways = {name for way in operation["security"] for name in way}
        if not ways:
            continue
        url = SITE + filled(path.removeprefix("/"))
        nobody = requests.request(method, url, timeout=10)
        assert nobody.json()["meta"]["error_type"] == "OAuthParameterException", (method, path)
        made_up = requests.request(method, url, headers={"Authorization": "Bearer made-up"}, timeout=10)
        assert made_up.json()["meta"]["error_type"] == "OAuthAccessTokenException", (method, path)
        client = requests.request(method, url, params={"client_id": "phone"}, timeout=10).json()["meta"]
        assert (client.get("error_type") != "OAuthParameterException") == ("client_id" in ways), (method, path)
        asked += 1
    assert asked > 20


def test_it_is_json_that_caches_may_keep_and_ask_about():
    first = get("/developer/openapi.json")
    assert first.headers["Content-Type"] == "application/json; charset=utf-8"
    assert first.headers["Cache-Control"] == "public, max-age=300"
    again = get("/developer/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert requests.head(f"{SITE}/developer/openapi.json", timeout=10).headers["ETag"] == first.headers["ETag"]
    assert requests.post(f"{SITE}/developer/openapi.json", timeout=10).json()["meta"]["code"] == 405


class Tries(HTMLParser):
    """The forms of the reference that try a call: {(method, path): {name: type of the field}}."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: dict[tuple[str, str], dict[str, str]] = {}
        self.fields: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == "form":
            self.fields = self.forms[a["data-method"], a["data-path"]] = {}
        elif tag in ("input", "select") and "name" in a:
            self.fields[a["name"]] = a.get("type", tag)


def test_the_reference_has_a_form_for_every_operation_with_its_parameters(served):
    page = get("/developer/").text
    forms = Tries(page).forms
    assert set(forms) == {(method, path) for method, path, _ in operations(served)}
    for method, path, operation in operations(served):
        body = list(operation.get("requestBody", {"content": {}})["content"].values())
        in_body = body[0]["schema"]["properties"] if body else {}
        assert set(forms[method, path]) == {one["name"] for one in operation["parameters"]} | set(in_body)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(set(ids)) == len(ids)
    assert forms["POST", "/v1/accounts/password"] == {"old_password": "password", "new_password": "password"}
    assert forms["POST", "/v1/users/{user_id}/relationship"] == {"user_id": "text", "action": "select"}


def test_the_browser_runs_the_references_own_script_and_style_alone():
    page = get("/developer/")
    policy = page.headers["Content-Security-Policy"]
    for tag in ("style", "script"):
        sources = re.search(rf"{tag}-src ([^;]*);", policy)[1].split()
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in inline]
        assert sources == [f"'sha256-{one}'" for one in hashes]
    assert "default-src 'none'" in policy
    assert "connect-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy


def test_what_the_description_says_is_text_in_the_reference():
    parameter = {"name": "q", "required": True, "schema": {"enum": ["<i>"], "type": "string"}, "description": "<b>&"}
    operation = {
        "operationId": "x",
        "summary": "<script> `<p>`",
        "security": [],
        "parameters": [parameter],
        "responses": {"200": {"content": {"application/json": {"schema": {"const": "<u>"}}}}},
    }
    shown = reference.shown("GET", "/x", operation)
    assert shown["summary"] == "&lt;script&gt; <code>&lt;p&gt;</code>"
    assert shown["answer"] == "<code>&lt;u&gt;</code>"
    assert shown["parameters"][0]["description"] == "&lt;b&gt;&amp;"
    assert shown["parameters"][0]["type"] == "<code>&lt;i&gt;</code>"


def test_a_developer_gets_a_token_on_the_reference_after_the_usual_question(one):
    browser = Browser(one)
    assert "Get a token" not in browser.open("/developer/").text
    Client(browser, f"{SITE}/developer/", implicit="on", name="Mine & <co>")
    Client(browser, "https://elsewhere.example/", implicit="on", name="Other")
    page = browser.open("/developer/")
    (link,) = re.findall(r'<a href="([^"]*)">Get a token for Mine &amp; &lt;co&gt;</a>', page.text)
    assert "Other" not in page.text
    question = browser.open(html.unescape(link))
    assert "Mine &amp; &lt;co&gt;" in question.text
    answer = browser.submit(question, "Allow")
    assert urlsplit(answer.url).path == "/developer/"
    token = parse_qs(urlsplit(answer.url).fragment)["access_token"][0]
    assert get("/v1/users/self", params={"access_token": token}).json()["data"]["id"] == str(one.id)
