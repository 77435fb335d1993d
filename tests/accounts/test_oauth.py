"""OAuth 2 from both sides: people in a browser, and the servers and phones of the apps that they allow."""

import base64
import datetime
import hashlib
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import pytest
import requests
from django.conf import settings
from oauth2_provider.models import AccessToken, Application, Grant, RefreshToken

from accounts import tokens
from accounts.jobs import clear_expired
from accounts.models import User
from shardmap.redis_client import redis_client
from tests.support import PASSWORD, Person, Refused, get
from workers.registry import all_periods

SITE = settings.SITE_URL
CALLBACK = "https://app.example/callback"
STATE = "a b&c=d#é%2F"  # has to come back as it is
SCOPES = settings.OAUTH2_PROVIDER["SCOPES"]


class Forms(HTMLParser):
    """The forms of a page: [{"action": …, "fields": {name: value}, "buttons": {label: (name, value)}}]."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[dict] = []
        self.textarea = self.button = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == "form":
            assert a["method"] == "post"
            self.forms.append({"action": a.get("action", ""), "fields": {}, "buttons": {}})
        elif tag == "input" and (a.get("type") not in ("checkbox", "radio") or "checked" in a):
            self.forms[-1]["fields"][a["name"]] = a.get("value", "on")
        elif tag == "textarea":
            self.textarea = a["name"]
            self.forms[-1]["fields"][self.textarea] = ""
        elif tag == "button":
            self.button = (a.get("name"), a.get("value", ""))

    def handle_data(self, data):
        if self.textarea:
            self.forms[-1]["fields"][self.textarea] += data.removeprefix("\n")
        elif self.button:
            self.forms[-1]["buttons"][data.strip()] = self.button

    def handle_endtag(self, tag):
        self.textarea = None if tag == "textarea" else self.textarea
        self.button = None if tag == "button" else self.button


class Browser:
    """Follows links, forms and redirects on our site; a redirect to elsewhere is returned as it is."""

    def __init__(self, person: Person | None = None) -> None:
        self.session = requests.Session()
        self.person = person
        if person:
            self.log_in(self.open("/accounts/login/"))

    def request(self, method: str, url: str, **options) -> requests.Response:
        options = {"allow_redirects": False, "timeout": 20} | options
        response = self.session.request(method, urljoin(SITE, url), **options)
        while response.is_redirect and urljoin(response.url, response.headers["Location"]).startswith(f"{SITE}/"):
            url = urljoin(response.url, response.headers["Location"])
            response = self.session.get(url, allow_redirects=False, timeout=20)
        return response

    def open(self, url: str, **params) -> requests.Response:
        return self.request("GET", url, params=params)

    def submit(self, page: requests.Response, button: str, drop: str = "", **fields) -> requests.Response:
        """Presses the button with this label, after filling in the fields of its form (None: unticked)."""
        (form,) = [form for form in Forms(page.text).forms if button in form["buttons"]]
        name, value = form["buttons"][button]
        data = form["fields"] | fields | ({name: value} if name else {})
        data.pop(drop, None)
        url = urljoin(page.url, form["action"]) if form["action"] else page.url
        # Browsers say where a form comes from.
        return self.request("POST", url, data=data, headers={"Origin": SITE})

    def log_in(self, page: requests.Response, **fields) -> requests.Response:
        return self.submit(page, "Log in", **({"username": self.person.username, "password": PASSWORD} | fields))

    def is_logged_in(self) -> bool:
        return urlsplit(self.open("/accounts/manage_access/").url).path == "/accounts/manage_access/"


class Client:
    """An app of somebody's, registered through the pages."""

    def __init__(self, owner: Browser, redirect_uris: str = CALLBACK, *, public: bool = False, **fields) -> None:
        form = owner.open("/developer/clients/register/")
        fields = {"name": f"App {secrets.token_hex(4)}", "public": str(int(public))} | fields
        page = owner.submit(form, "Register", redirect_uris=redirect_uris, **fields)
        assert page.status_code == 200
        self.id = urlsplit(page.url).path.split("/")[-2]
        self.owner = owner
        self.name = fields["name"]
        self.public = public
        self.secret = None if public else shown(page, "client_secret")
        self.redirect_uri = redirect_uris.split()[0]
        self.verifier = secrets.token_urlsafe(40)

    @property
    def path(self) -> str:
        return f"/developer/clients/{self.id}/"

    def parameters(self, **changes) -> dict:
        asked = {
            "client_id": self.id,
            "redirect_uri": self.redirect_uri,
            "response_type": "code",
            "state": STATE,
        }
        if self.public:
            asked |= {"code_challenge": challenge(self.verifier), "code_challenge_method": "S256"}
        return {name: value for name, value in (asked | changes).items() if value is not None}

    def ask(self, browser: Browser, **changes) -> requests.Response:
        """Sends somebody to the consent page."""
        return browser.open("/oauth/authorize", **self.parameters(**changes))

    def allowed(self, browser: Browser, **changes) -> dict:
        """Somebody allows the app: the parameters with which they come back."""
        return answer(browser.submit(self.ask(browser, **changes), "Allow"), self.redirect_uri)

    def exchange(self, code: str, **changes) -> requests.Response:
        form = {
            "client_id": self.id,
            "grant_type": "authorization_code",
            "redirect_uri": self.redirect_uri,
            "code": code,
        }
        form |= {"code_verifier": self.verifier} if self.public else {"client_secret": self.secret}
        form = {name: value for name, value in (form | changes).items() if value is not None}
        return requests.post(f"{SITE}/oauth/access_token", data=form, timeout=20)

    def token_of(self, browser: Browser, **changes) -> str:
        return self.exchange(self.allowed(browser, **changes)["code"]).json()["access_token"]


def challenge(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def shown(page: requests.Response, element_id: str) -> str:
    return page.text.split(f'id="{element_id}">')[1].split("<")[0]


def answer(response: requests.Response, redirect_uri: str = CALLBACK, where: str = "query") -> dict:
    """The parameters of a redirect to the app: in its query or in its fragment, and in only one of them."""
    assert response.status_code == 302, response.text
    location = urlsplit(response.headers["Location"])
    assert location._replace(query="", fragment="").geturl() == redirect_uri
    other = {"query": "fragment", "fragment": "query"}[where]
    assert getattr(location, other) == ""
    return {name: value for name, (value,) in parse_qs(getattr(location, where), strict_parsing=True).items()}


def refused(response: requests.Response) -> None:
    """An error page: a person can read it, and nobody is sent anywhere."""
    assert response.status_code == 400
    assert "Location" not in response.headers
    assert "This app cannot be connected" in response.text


def error_of(response: requests.Response) -> str:
    """The error_type of a refusal at the token endpoint, in both places where clients look."""
    body = response.json()
    assert response.status_code == body["meta"]["code"] == 400
    assert "access_token" not in body
    assert body["error_message"] == body["meta"]["error_message"] != ""
    assert body["error_type"] == body["meta"]["error_type"]
    return body["error_type"]


def works(token: str) -> bool:
    return get("/v1/users/self", params={"access_token": token}).status_code == 200


def grants(client: Client) -> int:
    return Grant.objects.filter(application__client_id=client.id).count()


@pytest.fixture(scope="module")
def developer() -> Browser:
    return Browser(Person())


@pytest.fixture(scope="module")
def user() -> Browser:
    return Browser(Person())


@pytest.fixture(scope="module")
def server(developer) -> Client:
    """A confidential client with the code flow."""
    return Client(developer)


@pytest.fixture(scope="module")
def phone(developer) -> Client:
    """A public client with the code flow (not the first-party one)."""
    return Client(developer, public=True)


@pytest.fixture(scope="module")
def script(developer) -> Client:
    """A public client with the implicit flow as well."""
    return Client(developer, public=True, implicit="on")


# Logging in and out.


def test_the_whole_way_from_an_app_to_its_token(person, server):
    browser = Browser()
    browser.person = person()
    login = server.ask(browser, scope="likes comments")
    assert urlsplit(login.url).path == "/accounts/login/"
    consent = browser.log_in(login)
    assert f"Allow {server.name} to use your account?" in consent.text
    assert browser.person.username in consent.text
    assert "app.example" in consent.text
    assert [words for words in SCOPES.values() if words in consent.text] == [
        SCOPES["basic"],
        SCOPES["comments"],
        SCOPES["likes"],
    ]
    back = answer(browser.submit(consent, "Allow"))
    assert set(back) == {"code", "state"}
    assert back["state"] == STATE
    token = server.exchange(back["code"])
    assert token.status_code == 200
    assert set(token.json()) == {"access_token", "user"}
    assert set(token.json()["user"]) == {"id", "username", "full_name", "profile_picture", "bio", "website"}
    assert token.json()["user"]["id"] == str(browser.person.id)
    viewer = tokens.viewer_of(token.json()["access_token"])
    assert (viewer.user_id, viewer.client_id) == (browser.person.id, server.id)
    assert viewer.scopes == {"basic", "comments", "likes"}
    assert works(token.json()["access_token"])


@pytest.mark.parametrize("fields", [{"password": "wrong"}, {"username": "nobody.at.all"}, {"password": ""}])
def test_a_wrong_login_says_one_thing_whatever_is_wrong(person, fields):
    browser = Browser()
    browser.person = person()
    page = browser.log_in(browser.open("/accounts/login/"), **fields)
    assert "The username or the password is wrong." in page.text
    assert "sessionid" not in browser.session.cookies
    assert not browser.is_logged_in()


@pytest.mark.parametrize("username", ["a\0b", "x" * 5000, "<script>"])
def test_a_strange_username_is_only_a_wrong_one(username):
    browser = Browser()
    browser.person = Person.__new__(Person)
    browser.person.username = "nobody"
    page = browser.log_in(browser.open("/accounts/login/"), username=username)
    assert page.status_code == 200
    assert "The username or the password is wrong." in page.text
    assert "<script" not in page.text


def test_a_login_with_the_name_in_capitals(person):
    browser = Browser()
    browser.person = person()
    browser.log_in(browser.open("/accounts/login/"), username=browser.person.username.upper())
    assert browser.is_logged_in()


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "//evil.example/",
        "///evil.example/",
        "/\\evil.example/",
        "\\\\evil.example/",
        "https:evil.example",
        "javascript:alert(1)",
        " //evil.example",
        "/\t/evil.example",
        "evil.example",
        "http://127.0.0.1:8000@evil.example/",
        "",
    ],
)
def test_a_login_leads_to_no_other_site(user, path):
    for where in ("query", "form"):
        browser = Browser()
        browser.person = user.person
        form = browser.open("/accounts/login/", **({"next": path} if where == "query" else {}))
        fields = {"next": path} if where == "form" else {}
        form_fields = Forms(form.text).forms[0]["fields"] | {"username": user.person.username, "password": PASSWORD}
        response = browser.session.post(form.url, data=form_fields | fields, allow_redirects=False, timeout=20)
        assert response.status_code == 302
        assert response.headers["Location"] == "/accounts/manage_access/"


def test_a_line_break_in_next_makes_no_header(user):
    browser = Browser()
    browser.person = user.person
    response = browser.log_in(browser.open("/accounts/login/"), next="/accounts/logout/\r\nSet-Cookie: a=b")
    assert "a" not in browser.session.cookies
    assert response.status_code in (200, 404)


def test_cookies_are_out_of_scripts_and_other_sites_reach(person):
    browser = Browser(person())
    cookies = {cookie.name: cookie for cookie in browser.session.cookies}
    assert set(cookies) == {"sessionid", "csrftoken"}
    for cookie in cookies.values():
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "Lax"


def test_a_session_is_in_redis_under_a_hash_and_ends_with_the_logout(person):
    browser = Browser(person())
    key = browser.session.cookies["sessionid"]
    name = f"session:{hashlib.sha256(f'django.contrib.sessions.cache{key}'.encode()).hexdigest()}"
    redis = redis_client(settings.REDIS_FEEDS_URL)
    assert redis.exists(name) == 1
    assert 0 < redis.ttl(name) <= settings.SESSION_COOKIE_AGE
    assert key.encode() not in redis.get(name)
    browser.submit(browser.open("/accounts/logout/"), "Log out")
    assert redis.exists(name) == 0
    browser.session.cookies.set("sessionid", key)
    assert not browser.is_logged_in()


def test_a_logout_takes_a_click(person):
    browser = Browser(person())
    browser.open("/accounts/logout/")
    assert browser.is_logged_in()


def test_a_new_password_ends_the_sessions(person):
    browser = Browser(person())
    account = User.objects.get(id=browser.person.id)
    account.set_password("another good one")
    account.save()
    assert not browser.is_logged_in()


def test_a_login_never_uses_a_session_that_was_there_before(person):
    """Else whoever planted its cookie would be logged in too."""
    browser, attacker = Browser(), Browser(person())
    browser.person = person()
    for planted in (attacker.session.cookies["sessionid"], "a" * 32):
        browser.session.cookies.clear()
        browser.session.cookies.set("sessionid", planted, domain=urlsplit(SITE).hostname, path="/")
        browser.log_in(browser.open("/accounts/login/"))
        assert browser.is_logged_in()
        (cookie,) = [cookie for cookie in browser.session.cookies if cookie.name == "sessionid"]
        assert cookie.value != planted


PAGES = ["/accounts/manage_access/", "/developer/clients/", "/developer/clients/register/"]


@pytest.mark.parametrize("path", [*PAGES, "/developer/clients/abc/", "/developer/clients/abc/secret/"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_who_is_not_logged_in_gets_the_login_page(path, slash):
    response = requests.get(SITE + path.rstrip("/") + slash, allow_redirects=False, timeout=20)
    assert response.status_code == 302
    assert response.headers["Location"] == f"/accounts/login/?next={path.rstrip('/')}{slash}"


def test_pages_are_for_the_own_eyes_and_in_no_frame(developer, user, server):
    pages = [user.open(path) for path in [*PAGES, "/accounts/login/", "/accounts/logout/", "/developer/clients/no/"]]
    pages += [developer.open(f"{server.path}{what}") for what in ("", "secret/", "delete/")]
    pages += [server.ask(user), server.ask(user, client_id="nobody")]
    for page in pages:
        policy = dict(rule.split(" ", 1) for rule in page.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        style = page.text.split("<style>")[1].split("</style>")[0].encode()
        assert policy["style-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(style).digest()).decode()}'"
        at_consent = "Allow" in page.text and page.status_code == 200 and "oauth/authorize" in page.url
        assert policy["form-action"] == ("'self' https://app.example" if at_consent else "'self'")
        assert page.headers["X-Frame-Options"] == "DENY"
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Referrer-Policy"] == "same-origin"
        assert "width=device-width" in page.text
        assert "<script" not in page.text
        assert not re.search(r'(src|href|action)="?(http|//)|url\(|@import', page.text)


def test_the_api_sets_no_cookies(user):
    token = user.person.token
    for response in (get("/v1/users/self", params={"access_token": token}), get("/v1/nothing"), get("/healthz")):
        assert "Set-Cookie" not in response.headers


def test_forged_forms_change_nothing(person, developer):
    client = Client(developer)
    browser = Browser(person())
    token = client.token_of(browser)
    forms = [
        (browser, "/accounts/logout/", {}),
        (browser, "/accounts/manage_access/", {"client_id": client.id}),
        (browser, f"/oauth/authorize?{urlencode(client.parameters())}", {"allow": "yes"}),
        (developer, "/developer/clients/register/", {"name": "Forged", "redirect_uris": CALLBACK, "public": "0"}),
        (developer, client.path, {"name": "Forged", "redirect_uris": "https://evil.example/"}),
        (developer, f"{client.path}secret/", {}),
        (developer, f"{client.path}delete/", {}),
    ]
    for somebody, path, fields in forms:
        for csrf in ({}, {"csrfmiddlewaretoken": ""}, {"csrfmiddlewaretoken": secrets.token_hex(32)}):
            response = somebody.request("POST", path, data=fields | csrf, headers={"Origin": SITE})
            assert response.status_code == 403, path
            assert "Please send that form again" in response.text
    assert browser.is_logged_in()
    assert works(token)
    assert grants(client) == 0
    page = developer.open(client.path)
    assert shown(page, "client_secret") == client.secret
    assert client.name in page.text
    assert not Application.objects.filter(user=developer.person.id, name="Forged").exists()


def test_a_form_from_another_site_is_refused_even_with_a_token(person):
    browser = Browser(person())
    fields = Forms(browser.open("/accounts/logout/").text).forms[0]["fields"]
    response = browser.request("POST", "/accounts/logout/", data=fields, headers={"Origin": "https://evil.example"})
    assert response.status_code == 403
    assert browser.is_logged_in()


def test_a_login_cannot_be_forged(person):
    """Else somebody could be logged in, unawares, to an account of the forger's."""
    browser = Browser()
    browser.person = person()
    page = browser.open("/accounts/login/")
    browser.session.cookies.clear()
    assert browser.log_in(page).status_code == 403
    assert not browser.is_logged_in()


@pytest.mark.parametrize(("charset", "status"), [("hex", 400), ("nonsense", 403)])
def test_a_form_that_cannot_be_read_is_a_page(charset, status):
    kind = f"application/x-www-form-urlencoded; charset={charset}"
    response = requests.post(f"{SITE}/accounts/login/", data="a=b", headers={"Content-Type": kind}, timeout=20)
    assert response.status_code == status
    assert "<h1>" in response.text


# The consent page.


def test_a_denial_goes_back_with_access_denied(user, server):
    back = answer(user.submit(server.ask(user), "Deny"))
    assert back["error"] == "access_denied"
    assert back["state"] == STATE
    assert "code" not in back
    assert not Grant.objects.filter(user=user.person.id, application__client_id=server.id).exists()


def test_a_click_on_neither_button_is_a_denial(user, server):
    page = server.ask(user)
    fields = Forms(page.text).forms[0]["fields"]
    assert answer(user.request("POST", page.url, data=fields))["error"] == "access_denied"


def test_looking_at_the_consent_page_allows_nothing(user, developer):
    client = Client(developer)
    for changes in ({}, {"allow": "yes"}, {"approval_prompt": "auto"}, {"prompt": "none"}):
        assert "Allow" in client.ask(user, **changes).text
    assert grants(client) == 0


def test_a_second_time_asks_again(user, developer):
    client = Client(developer)
    client.token_of(user)
    assert "Allow" in client.ask(user, approval_prompt="auto").text


def test_who_is_somebody_else_can_change_the_account(person, server):
    browser, other = Browser(person()), person()
    login = browser.submit(server.ask(browser), "Log in as somebody else")
    assert urlsplit(login.url).path == "/accounts/login/"
    browser.person = other
    consent = browser.log_in(login)
    assert other.username in consent.text
    answered = answer(browser.submit(consent, "Allow"))
    assert server.exchange(answered["code"]).json()["user"]["id"] == str(other.id)


@pytest.mark.parametrize(
    "redirect_uri",
    [
        "https://evil.example/callback",
        "https://app.example/callback/",
        "https://app.example/callback?",
        "https://app.example/callback?a=b",
        "https://app.example/callback/../evil",
        "https://app.example/Callback",
        "https://APP.example/callback",
        "https://app.example:443/callback",
        "http://app.example/callback",
        "https://app.example/callback#",
        "https://evil@app.example/callback",
        "https://app.example.evil.example/callback",
        "https://app.example/callback https://evil.example/",
        "/callback",
        "javascript:alert(1)",
        "None",
    ],
)
def test_any_other_redirect_uri_is_refused_on_a_page(user, server, redirect_uri):
    for browser in (Browser(), user):
        for changes in ({}, {"scope": "nonsense"}, {"response_type": "nonsense"}):
            refused(server.ask(browser, redirect_uri=redirect_uri, **changes))


def test_a_port_is_part_of_a_redirect_uri_also_at_home(user, developer):
    client = Client(developer, "http://127.0.0.1:8123/cb")
    refused(client.ask(user, redirect_uri="http://127.0.0.1:8124/cb"))
    assert "Allow" in client.ask(user).text


def test_the_redirect_uri_may_be_left_out_if_there_is_one_only(user, developer, server):
    assert answer(user.submit(server.ask(user, redirect_uri=None), "Allow"))["code"]
    refused(Client(developer, f"{CALLBACK}\n{CALLBACK}2").ask(user, redirect_uri=None))


def test_a_second_redirect_uri_works_like_the_first(user, developer):
    client = Client(developer, f"{CALLBACK}\nhttps://app.example/2?a=b%20c")
    client.redirect_uri = "https://app.example/2?a=b%20c"
    response = user.submit(client.ask(user), "Allow")
    location = urlsplit(response.headers["Location"])
    assert location._replace(query="").geturl() == "https://app.example/2"
    query = parse_qs(location.query)
    assert query["a"] == ["b c"]
    assert client.exchange(query["code"][0]).status_code == 200


@pytest.mark.parametrize("redirect_uri", ["com.example.app:/callback", "com.example.app://callback"])
def test_an_apps_own_scheme(user, developer, redirect_uri):
    client = Client(developer, redirect_uri, public=True)
    consent = client.ask(user)
    assert consent.headers["Content-Security-Policy"].endswith("form-action 'self' com.example.app:")
    response = user.submit(consent, "Allow")
    uri, _, query = response.headers["Location"].partition("?")
    assert uri == redirect_uri
    assert client.exchange(parse_qs(query)["code"][0]).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"client_id": "nobody"},
        {"client_id": "a\0b"},
        {"client_id": None},
        {"client_id": "phone"},
        {"client_id": "phone", "redirect_uri": None},
        {"scope": ["basic", "likes"]},
        {"state": ["a", "b"]},
        {"redirect_uri": [CALLBACK, "https://evil.example/"]},
    ],
)
def test_a_request_that_no_app_may_answer_for_is_refused_on_a_page(user, server, changes):
    for browser in (Browser(), user):
        refused(server.ask(browser, **changes))


def test_a_query_that_cannot_be_read_is_refused_on_a_page(user):
    for query in ("client_id=%zz", "a=%zz&client_id=%FF", "client_id=[x]", "=&&=", "client_id"):
        refused(user.open(f"/oauth/authorize?{query}"))
    assert user.open(f"/oauth/authorize?{'a=&' * 1500}").status_code == 400


ASKED_WRONGLY = [
    ({"scope": "basic nonsense"}, "invalid_scope"),
    ({"scope": "BASIC"}, "invalid_scope"),
    ({"scope": "*"}, "invalid_scope"),
    ({"response_type": "nonsense"}, "unsupported_response_type"),
    ({"response_type": None}, "invalid_request"),
    ({"response_type": "id_token"}, "unsupported_response_type"),
    ({"response_type": "code token"}, "unauthorized_client"),
    ({"code_challenge": "short", "code_challenge_method": "S256"}, "invalid_request"),
    ({"code_challenge": "x" * 500, "code_challenge_method": "S256"}, "invalid_request"),
    ({"code_challenge": challenge("x"), "code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge": challenge("x"), "code_challenge_method": "S512"}, "invalid_request"),
    ({"code_challenge": challenge("x"), "code_challenge_method": None}, "invalid_request"),
]


@pytest.mark.parametrize(("changes", "error"), ASKED_WRONGLY)
def test_an_app_that_asks_wrongly_is_told_so(user, server, changes, error):
    back = answer(server.ask(user, **changes))
    assert back["error"] == error
    assert back["state"] == STATE
    assert "code" not in back


@pytest.mark.parametrize(("changes", "error"), ASKED_WRONGLY)
def test_nobody_is_sent_on_without_having_logged_in(server, changes, error):
    response = server.ask(Browser(), **changes)
    refused(response)
    assert error in response.text


def test_a_public_client_must_use_pkce(user, phone):
    for changes in ({"code_challenge": None, "code_challenge_method": None}, {"code_challenge": None}):
        assert answer(phone.ask(user, **changes))["error"] == "invalid_request"
    for changes in ({"code_challenge_method": "plain"}, {"code_challenge_method": None}):
        assert answer(phone.ask(user, **changes))["error"] == "invalid_request"


def test_fields_added_to_the_form_do_not_count(user, server):
    page = server.ask(user)
    more = {
        "redirect_uri": "https://evil.example/",
        "code_challenge": "",
        "scope": "likes",
        "state": "other",
        "user": "1",
    }
    assert answer(user.submit(page, "Deny", **more))["state"] == STATE
    back = answer(user.submit(page, "Allow", **more))
    assert back["state"] == STATE
    token = tokens.viewer_of(server.exchange(back["code"]).json()["access_token"])
    assert (token.user_id, token.scopes) == (user.person.id, {"basic"})


def test_parameters_of_other_protocols_do_no_harm(user, server):
    code = server.allowed(user, nonce="x" * 1000, claims="{", resource="x" * 1000, prompt="consent", ui_locales="en")[
        "code"
    ]
    assert server.exchange(code, resource="nonsense").status_code == 200


def test_a_form_sent_after_the_session_ended_asks_for_a_login(person, server):
    browser = Browser(person())
    page = server.ask(browser)
    del browser.session.cookies["sessionid"]
    response = browser.submit(page, "Allow")
    assert urlsplit(response.url).path == "/accounts/login/"
    assert "Allow" in browser.log_in(response).text


def test_names_are_text(user, developer):
    client = Client(developer, name="<b>Bold</b> & {{ name }}")
    client.token_of(user)
    for page in (client.ask(user), user.open("/accounts/manage_access/"), developer.open(client.path)):
        assert "<b>" not in page.text
        assert "&lt;b&gt;Bold&lt;/b&gt; &amp; {{ name }}" in page.text


# The implicit flow.


def test_the_implicit_flow_answers_in_the_fragment(user, script):
    page = script.ask(user, response_type="token", scope="likes", code_challenge=None)
    back = answer(user.submit(page, "Allow"), where="fragment")
    assert back["state"] == STATE
    assert "code" not in back
    assert "refresh_token" not in back
    assert tokens.viewer_of(back["access_token"]).scopes == {"basic", "likes"}
    assert works(back["access_token"])


def test_the_implicit_flows_refusals_are_in_the_fragment_too(user, script):
    back = answer(user.submit(script.ask(user, response_type="token"), "Deny"), where="fragment")
    assert (back["error"], back["state"]) == ("access_denied", STATE)
    back = answer(script.ask(user, response_type="token", scope="nonsense"), where="fragment")
    assert (back["error"], back["state"]) == ("invalid_scope", STATE)


def test_a_client_with_the_implicit_flow_has_the_code_flow_too(user, script):
    assert works(script.token_of(user))


def test_without_having_asked_for_it_a_client_has_no_implicit_flow(user, server, phone):
    for client in (server, phone):
        back = answer(client.ask(user, response_type="token"), where="fragment")
        assert back["error"] == "unauthorized_client"
        assert "access_token" not in back


# Codes for tokens.


@pytest.mark.parametrize(
    ("change", "error_type"),
    [
        ({"client_secret": "wrong"}, "OAuthParameterException"),
        ({"client_secret": ""}, "OAuthParameterException"),
        ({"client_secret": None}, "OAuthParameterException"),
        ({"client_id": "nobody"}, "OAuthParameterException"),
        ({"client_id": "phone", "client_secret": ""}, "OAuthParameterException"),
        ({"client_id": "a\0b"}, "OAuthParameterException"),
        ({"client_id": None}, "APIInvalidParametersError"),
        ({"redirect_uri": "https://app.example/other"}, "APIInvalidParametersError"),
        ({"redirect_uri": f"{CALLBACK}/"}, "APIInvalidParametersError"),
        ({"code": "wrong"}, "OAuthAccessTokenException"),
        ({"code": "a\0b"}, "OAuthAccessTokenException"),
        ({"code": "x" * 5000}, "OAuthAccessTokenException"),
        ({"code": ""}, "APIInvalidParametersError"),
        ({"code": None}, "APIInvalidParametersError"),
        ({"code_verifier": "never.challenged.never.challenged.never.challenged"}, "OAuthAccessTokenException"),
        ({"grant_type": "client_credentials"}, "APIInvalidParametersError"),
        ({"grant_type": "refresh_token"}, "APIInvalidParametersError"),
        ({"grant_type": "implicit"}, "APIInvalidParametersError"),
        ({"grant_type": None}, "APIInvalidParametersError"),
    ],
)
def test_a_code_is_no_token_if_anything_is_wrong(user, server, change, error_type):
    code = server.allowed(user)["code"]
    count = AccessToken.objects.filter(application__client_id=server.id).count()
    assert error_of(server.exchange(**({"code": code} | change))) == error_type
    assert AccessToken.objects.filter(application__client_id=server.id).count() == count
    assert server.exchange(code).status_code == 200


def _seconds_ago(seconds: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)


def test_a_code_works_once(user, server):
    code = server.allowed(user)["code"]
    assert server.exchange(code).status_code == 200
    assert error_of(server.exchange(code)) == "OAuthAccessTokenException"


def test_a_code_sent_many_times_at_once_makes_one_token(user, developer):
    client = Client(developer)
    code = client.allowed(user)["code"]
    with ThreadPoolExecutor(8) as pool:
        statuses = [response.status_code for response in pool.map(client.exchange, [code] * 8)]
    assert sorted(statuses) == [200] + [400] * 7
    assert AccessToken.objects.filter(application__client_id=client.id).count() == 1


def test_a_code_expires(user, server):
    code = server.allowed(user)["code"]
    grant = Grant.objects.get(code=code)
    assert grant.expires <= datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=10)
    Grant.objects.filter(code=code).update(expires=_seconds_ago(1))
    assert error_of(server.exchange(code)) == "OAuthAccessTokenException"


def test_expired_codes_are_cleared_each_day(user, developer):
    client = Client(developer)
    for _ in range(3):
        client.allowed(user)
        Grant.objects.filter(application__client_id=client.id).update(expires=_seconds_ago(1))
    code = client.allowed(user)["code"]
    assert all_periods()["accounts.clear_expired"] == datetime.timedelta(days=1)
    clear_expired()
    assert grants(client) == 1
    assert client.exchange(code).status_code == 200


def test_a_code_is_for_the_client_that_it_was_made_for(user, developer, server, phone):
    code = server.allowed(user)["code"]
    assert error_of(Client(developer).exchange(code)) == "OAuthAccessTokenException"
    assert error_of(phone.exchange(code)) == "OAuthAccessTokenException"
    assert server.exchange(code).status_code == 200


@pytest.mark.parametrize("verifier", [None, "", "wrong" * 10, "é" * 50])
def test_a_public_clients_code_needs_its_verifier(user, phone, verifier):
    code = phone.allowed(user)["code"]
    assert error_of(phone.exchange(code, code_verifier=verifier))
    assert error_of(phone.exchange(code, code_verifier=challenge(phone.verifier)))  # seen by who saw the URL
    assert phone.exchange(code).status_code == 200


def test_a_confidential_client_that_uses_pkce_is_held_to_it(user, server):
    asked = {"code_challenge": challenge("x" * 43), "code_challenge_method": "S256"}
    code = server.allowed(user, **asked)["code"]
    assert error_of(server.exchange(code))
    assert error_of(server.exchange(code, code_verifier="y" * 43)) == "OAuthAccessTokenException"
    assert server.exchange(code, code_verifier="x" * 43).status_code == 200


def test_a_public_clients_secret_is_not_asked_for(user, phone):
    assert phone.exchange(phone.allowed(user)["code"], client_secret="None").status_code == 200


def test_a_form_without_a_content_type_is_read(user, server):
    """python-instagram sends none."""
    form = {"client_id": server.id, "client_secret": server.secret, "grant_type": "authorization_code"}
    form |= {"redirect_uri": CALLBACK, "code": server.allowed(user)["code"]}
    response = requests.post(f"{SITE}/oauth/access_token", data=urlencode(form).encode(), timeout=20)
    assert "Content-Type" not in response.request.headers
    assert response.json()["user"]["id"] == str(user.person.id)


def test_a_client_may_say_who_it_is_with_http_basic(user, server):
    form = {"grant_type": "authorization_code", "redirect_uri": CALLBACK, "code": server.allowed(user)["code"]}
    url = f"{SITE}/oauth/access_token"
    assert error_of(requests.post(url, data=form, auth=(server.id, "wrong"), timeout=20)) == "OAuthParameterException"
    for authorization in ("Basic !", "Bearer x", "Basic"):
        refusal = requests.post(url, data=form, headers={"Authorization": authorization}, timeout=20)
        assert error_of(refusal) == "OAuthParameterException"
    assert requests.post(url, data=form, auth=(server.id, server.secret), timeout=20).status_code == 200


def test_a_password_is_no_token_for_other_apps(user, server):
    form = {"client_id": server.id, "client_secret": server.secret, "grant_type": "password"}
    form |= {"username": user.person.username, "password": PASSWORD}
    response = requests.post(f"{SITE}/oauth/access_token", data=form, timeout=20)
    assert error_of(response) == "OAuthParameterException"


def test_there_is_nothing_to_refresh(person, server):
    browser = Browser(person())
    server.token_of(browser)
    form = {"client_id": "phone", "grant_type": "password"}
    form |= {"username": browser.person.username, "password": PASSWORD}
    assert requests.post(f"{SITE}/oauth/access_token", data=form, timeout=20).status_code == 200
    assert not RefreshToken.objects.filter(user=browser.person.id).exists()


def test_scopes_are_enforced(person, user, server):
    reader, follower, other = Person.__new__(Person), Person.__new__(Person), person()
    reader.token = server.token_of(user)
    follower.token = server.token_of(user, scope="relationships")
    assert reader.get("users/self")["id"] == follower.get("users/self")["id"] == str(user.person.id)
    with pytest.raises(Refused) as refusal:
        reader.follow(other)
    assert refusal.value.meta["error_type"] == "OAuthPermissionsException"
    assert follower.follow(other)["outgoing_status"] == "follows"


@pytest.mark.parametrize(
    ("scope", "granted"),
    [
        (None, {"basic"}),
        ("", {"basic"}),
        ("basic", {"basic"}),
        ("likes likes", {"basic", "likes"}),
        (" likes  comments ", {"basic", "likes", "comments"}),
        (" ".join(SCOPES), set(SCOPES)),
    ],
)
def test_every_token_has_the_scope_basic(user, server, scope, granted):
    assert tokens.viewer_of(server.token_of(user, scope=scope)).scopes == granted


def test_a_token_can_be_revoked_by_its_client_alone(user, developer, server):
    token, other = server.token_of(user), Client(developer)
    url = f"{SITE}/oauth/revoke_token"
    requests.post(url, data={"client_id": other.id, "client_secret": other.secret, "token": token}, timeout=20)
    requests.post(url, data={"client_id": server.id, "client_secret": "wrong", "token": token}, timeout=20)
    assert works(token)
    requests.post(url, data={"client_id": server.id, "client_secret": server.secret, "token": token}, timeout=20)
    assert not works(token)


# A user's apps.


def test_an_app_that_is_removed_is_out_at_once(person, developer):
    browser, other = Browser(person()), Browser(person())
    client, kept = Client(developer), Client(developer)
    removed = [client.token_of(browser), client.token_of(browser, scope="likes")]
    stay = [client.token_of(other), kept.token_of(browser), browser.person.token]
    assert all(map(works, removed + stay))  # now they are in the cache
    code, others_code = client.allowed(browser)["code"], client.allowed(other)["code"]
    page = browser.open("/accounts/manage_access/")
    assert client.name in page.text
    assert SCOPES["likes"] in page.text
    page = browser.submit(page, f"Remove {client.name}")
    assert client.name not in page.text
    assert kept.name in page.text
    assert not any(map(works, removed))
    assert all(map(works, stay))
    assert error_of(client.exchange(code)) == "OAuthAccessTokenException"
    assert client.exchange(others_code).status_code == 200


def test_removing_the_phone_app_logs_the_phones_out(person):
    browser = Browser(person())
    page = browser.submit(browser.open("/accounts/manage_access/"), "Remove Instagram for phones")
    assert "No app can use the account" in page.text
    assert not works(browser.person.token)
    assert browser.is_logged_in()


@pytest.mark.parametrize("client_id", ["", "nobody", "a\0b"])
def test_removing_what_is_not_there_changes_nothing(person, client_id):
    browser = Browser(person())
    page = browser.open("/accounts/manage_access/")
    assert browser.submit(page, "Remove Instagram for phones", client_id=client_id).status_code == 200
    assert works(browser.person.token)


# A developer's clients.


def test_registering_listing_and_editing_a_client(person):
    browser = Browser(person())
    client = Client(browser, name="First name")
    assert len(client.secret) == 40
    listed = browser.open("/developer/clients/")
    assert "First name" in listed.text
    assert client.id in listed.text
    page = browser.open(client.path)
    fields = Forms(page.text).forms[0]["fields"]
    assert (fields["name"], fields["redirect_uris"]) == ("First name", CALLBACK)
    assert "implicit" not in fields
    new = "https://app.example/new"
    page = browser.submit(page, "Save", name="Second name", redirect_uris=f" {new}\r\n\r\n{CALLBACK} ", implicit="on")
    fields = Forms(page.text).forms[0]["fields"]
    assert (fields["name"], fields["implicit"]) == ("Second name", "on")
    assert fields["redirect_uris"].split() == [new, CALLBACK]
    assert "Allow Second name" in client.ask(browser, redirect_uri=new).text
    page = browser.submit(page, "Save", drop="implicit", redirect_uris=new)
    assert "implicit" not in Forms(page.text).forms[0]["fields"]
    refused(client.ask(browser))  # its redirect URI is none any more


def test_a_code_for_a_redirect_uri_that_was_taken_out_since_is_the_users_to_lose(person, developer):
    """A user who sees the consent page while the developer takes the redirect URI out is sent nowhere."""
    client, browser = Client(developer), Browser(person())
    consent = client.ask(browser)
    developer.submit(developer.open(client.path), "Save", redirect_uris="https://app.example/new")
    refused(browser.submit(consent, "Allow"))


@pytest.mark.parametrize(
    "uri",
    [
        "http://app.example/callback",
        "https://app.example/callback#fragment",
        "https://app.example@evil.example/",
        "https://user:password@app.example/",
        "https://app.example\\evil",
        "https://app.example/<script>",
        "https://exa;mple/",
        "https://*.example/",
        "https:app.example",
        "https:///callback",
        "https://",
        "javascript:alert(1)",
        "javascript://app.example/%0aalert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "ftp://app.example/",
        "app:/callback",
        "com.example.app:callback",
        "/callback",
        "app.example",
        f"https://app.example/{'x' * 500}",
        f"https://{'a' * 60}!",
        "\n".join(f"https://app.example/{n}" for n in range(11)),
        f"{CALLBACK} https://evil.example/#x",
        " ",
    ],
)
def test_a_redirect_uri_that_is_none_is_not_registered(developer, uri):
    count = Application.objects.filter(user=developer.person.id).count()
    page = developer.submit(
        developer.open("/developer/clients/register/"), "Register", name="Bad", redirect_uris=uri, public="0"
    )
    assert page.status_code == 200
    assert 'class="error"' in page.text
    assert Forms(page.text).forms[0]["fields"]["redirect_uris"].strip() == uri.strip()
    assert Application.objects.filter(user=developer.person.id).count() == count


@pytest.mark.parametrize(
    "uri",
    [
        "https://app.example",
        "https://app.example/",
        "https://app.example:8443/a/b;c?d=e&f=%C3%A9",
        "https://xn--bcher-kva.example/",
        "http://localhost:5000/cb",
        "http://127.0.0.1/cb",
        "http://[::1]:8123/cb",
    ],
)
def test_good_redirect_uris(developer, user, uri):
    client = Client(developer, uri)
    response = user.submit(client.ask(user), "Allow")
    assert response.headers["Location"].startswith(uri)
    assert client.exchange(parse_qs(urlsplit(response.headers["Location"]).query)["code"][0]).status_code == 200


@pytest.mark.parametrize("name", ["", " ", "x" * 61, "a\0b"])
def test_a_name_that_is_none_is_not_registered(developer, name):
    form = developer.open("/developer/clients/register/")
    page = developer.submit(form, "Register", name=name, redirect_uris=CALLBACK)
    assert page.status_code == 200
    assert 'class="error"' in page.text


def test_a_public_client_has_no_secret_to_show_and_none_to_guess(developer, phone):
    page = developer.open(phone.path)
    stored = Application.objects.get(client_id=phone.id).client_secret
    assert len(stored) == 40
    assert stored not in page.text
    assert 'id="client_secret"' not in page.text
    assert "PKCE" in page.text


def test_a_new_secret_replaces_the_old_one_at_once(developer, user):
    client = Client(developer)
    token = client.token_of(user)
    page = developer.submit(developer.open(f"{client.path}secret/"), "Make a new secret")
    new = shown(page, "client_secret")
    assert new != client.secret
    code = client.allowed(user)["code"]
    assert error_of(client.exchange(code)) == "OAuthParameterException"
    client.secret = new
    assert client.exchange(code).status_code == 200
    assert works(token)


def test_a_client_that_is_deleted_is_out_at_once(developer, user):
    client = Client(developer)
    token = client.token_of(user)
    assert works(token)
    code = client.allowed(user)["code"]
    page = developer.submit(developer.open(f"{client.path}delete/"), "Delete")
    assert urlsplit(page.url).path == "/developer/clients/"
    assert client.id not in page.text
    assert not works(token)
    assert error_of(client.exchange(code)) == "OAuthParameterException"
    refused(client.ask(user))
    assert developer.open(client.path).status_code == 404


def test_another_developers_client_is_as_good_as_none(user, developer):
    client = Client(developer)
    assert client.id not in user.open("/developer/clients/").text
    csrf = Forms(user.open("/developer/clients/register/").text).forms[0]["fields"]
    fields = csrf | {"name": "Taken over", "redirect_uris": "https://evil.example/"}
    for what in ("", "secret/", "delete/"):
        for page in (
            user.open(f"{client.path}{what}"),
            user.request("POST", f"{client.path}{what}", data=fields),
            user.open(f"/developer/clients/nobody/{what}"),
            user.open(f"/developer/clients/phone/{what}"),
        ):
            assert page.status_code == 404
            assert "There is no such page" in page.text
            assert client.secret not in page.text
    page = developer.open(client.path)
    assert client.name in page.text
    assert CALLBACK in page.text
    assert shown(page, "client_secret") == client.secret
