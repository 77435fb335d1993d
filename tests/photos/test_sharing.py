"""Accounts at other services, as they are linked by the phone and in the pages; and what dies while it shares."""

import re
from html import unescape
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from django.conf import settings
from django.db.models import QuerySet
from django.db.models.functions import Now
from requests_oauthlib import OAuth1

from accounts.errors import InvalidParameters
from photos import networks, sharing
from photos.models import Share, ShareAccount
from shardmap.shards import current_database, on_shard
from tests.accounts.test_oauth import Browser, Client
from tests.photos.social import SERVICES, Account, ended, share_of, shared
from tests.support import PASSWORD, Person, Refused, ctl, eventually, get, new_username, photo_id, settled
from workers.models import OutboxJob

TWITTER = {"service": "twitter", "username": "bird", "token": "12-abcDEF", "secret": "s3cr3t"}
FACEBOOK = {"service": "facebook", "username": "Some Body", "token": "EAAC123"}


def link_in_browser(browser: Browser, service: str, button: str, username: str = "") -> requests.Response:
    """Goes from /shares/ to the service, and presses a button in its page; returns what we say then."""
    back = at_service(browser, service, button, username)
    return browser.open(back)


def begin(browser: Browser, service: str) -> requests.Response:
    """Presses the button on /shares/."""
    page = browser.open("/shares/")
    (button,) = re.findall(f"Link an(?:other)? account at {networks.NETWORKS[service].title}", page.text)
    return browser.submit(page, button)


def at_service(browser: Browser, service: str, button: str, username: str = "") -> str:
    """Where the service sends the browser to, after that button."""
    login = unescape(re.search('http-equiv="refresh" content="0; url=(.+?)"', begin(browser, service).text)[1])
    assert login.startswith((f"{settings.TWITTER_URL}/", f"{settings.FACEBOOK_LOGIN_URL}/"))
    form = {name: values[0] for name, values in parse_qs(urlsplit(login).query).items()} | {"username": username}
    if button == "Deny":
        form["deny"] = "yes"
    sent = requests.post(login, data=form, allow_redirects=False, timeout=10)
    return sent.headers["Location"]


def rows(one: Person) -> list[ShareAccount]:
    with on_shard(one.id):
        return list(ShareAccount.objects.filter(user_id=one.id))


def test_accounts_are_linked_listed_and_unlinked(person):
    one, other = person(), person()
    assert one.get("shares/accounts") == []
    linked = Account(one, "twitter", "bird", linked=False).link()
    assert linked == {"service": "twitter", "username": "bird", "status": "linked"}
    facebook = Account(one, "facebook")
    assert [account["service"] for account in one.get("shares/accounts")] == ["facebook", "twitter"]
    assert other.get("shares/accounts") == []
    facebook.unlink()
    assert one.get("shares/accounts") == [linked]
    again = one.call("DELETE", "shares/accounts", form={"service": "facebook"})
    assert again.json()["meta"]["error_type"] == "APINotFoundError"


def test_a_second_account_at_a_service_takes_the_first_one_s_place(person):
    one = person()
    one.post("shares/accounts", **TWITTER)
    one.post("shares/accounts", **TWITTER | {"username": "owl", "token": "13-x"})
    (account,) = rows(one)
    assert account.username == "owl"
    assert sharing.credentials_of(account) == {"token": "13-x", "secret": "s3cr3t"}


def test_what_opens_an_account_is_stored_encrypted_and_keys_can_be_changed(person, monkeypatch):
    one = person()
    one.post("shares/accounts", **TWITTER)
    (account,) = rows(one)
    assert TWITTER["token"] not in account.credentials
    monkeypatch.setattr(settings, "CREDENTIALS_KEYS", ["a new key", *settings.CREDENTIALS_KEYS])
    assert sharing.credentials_of(account)["token"] == TWITTER["token"]
    sharing.link(one.id, **FACEBOOK, secret=None)
    monkeypatch.setattr(settings, "CREDENTIALS_KEYS", ["a new key"])
    assert [sharing.credentials_of(row)["token"] for row in rows(one) if row.service == "facebook"] == ["EAAC123"]
    sharing.unlink(one.id, "facebook")  # the workers do not have that key


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (TWITTER | {"service": "myspace"}, "service"),
        (TWITTER | {"secret": ""}, "secret"),
        (FACEBOOK | {"secret": "x"}, "secret"),
        (TWITTER | {"token": "a b"}, "token"),
        (TWITTER | {"token": "x" * 1001}, "token"),
        (TWITTER | {"username": "x" * 101}, "username"),
    ],
)
def test_a_bad_account_names_what_is_wrong(person, form, named):
    one = person()
    with pytest.raises(Refused) as refused:
        one.post("shares/accounts", **form)
    assert refused.value.meta["error_type"] == "APIInvalidParametersError"
    assert refused.value.meta["error_message"].startswith(named)
    assert one.get("shares/accounts") == []


def test_other_apps_may_not_link_accounts():
    one = Person()
    one.token = Client(Browser(Person())).token_of(Browser(one))
    with pytest.raises(Refused) as refused:
        one.post("shares/accounts", **TWITTER)
    assert refused.value.meta["error_type"] == "OAuthParameterException"


def test_they_go_with_their_user(person):
    one = person()
    one.post("shares/accounts", **TWITTER)
    one.call("DELETE", "accounts", form={"password": PASSWORD})
    settled(one)
    assert rows(one) == []


@pytest.mark.parametrize("service", SERVICES)
def test_an_account_is_linked_in_a_page_and_opened_by_what_came_of_it(person, service):
    one, name = person(), new_username()
    browser = Browser(one)
    title = networks.NETWORKS[service].title
    page = link_in_browser(browser, service, "Allow", name)
    assert (urlsplit(page.url).path, f"<strong>{name}</strong>" in page.text) == ("/shares/", True)
    assert one.get("shares/accounts") == [{"service": service, "username": name, "status": "linked"}]
    _, share = shared(one, service)
    assert share["status"] == "shared"
    account = Account(one, service, name, linked=False)
    account.will_answer("expired")
    shared(one, service)
    page = browser.open("/shares/")
    assert f"{title} lets us in no longer" in page.text
    assert f"<strong>{name}</strong>" not in browser.submit(page, f"Unlink {title}").text
    assert browser.submit(page, f"Unlink {title}").status_code == 200  # once more, from a page that is old
    assert one.get("shares/accounts") == []


@pytest.mark.parametrize("service", SERVICES)
def test_who_says_no_has_linked_nothing(person, service):
    one = person()
    page = link_in_browser(Browser(one), service, "Deny")
    assert (urlsplit(page.url).path, one.get("shares/accounts")) == ("/shares/", [])


@pytest.mark.parametrize("service", SERVICES)
def test_an_answer_is_for_the_browser_that_asked_and_once(person, service):
    one, other = person(), person()
    browser, others = Browser(one), Browser(other)
    back = at_service(others, service, "Allow", new_username())
    assert browser.open(back).status_code == 400
    begin(browser, service)
    assert browser.open(back).status_code == 400
    assert one.get("shares/accounts") == []
    assert others.open(back).status_code == 200
    assert others.open(back).status_code == 400
    assert len(other.get("shares/accounts")) == 1


def test_an_answer_without_what_is_needed_is_a_page(person):
    browser = Browser(person())
    for service, wrong in (("twitter", "oauth_token=é"), ("facebook", "state=é&code=x"), ("facebook", "")):
        begin(browser, service)
        assert browser.open(f"/shares/{service}/callback?{wrong}").status_code == 400
    for service in SERVICES:
        back = at_service(browser, service, "Allow", new_username())
        spoilt = back.replace("oauth_verifier=", "oauth_verifier=x").replace("code=", "code=x")
        assert browser.open(spoilt).status_code == 400


def test_who_is_not_logged_in_logs_in_first_and_other_services_are_no_pages():
    assert get("/shares/", allow_redirects=False).headers["Location"] == "/accounts/login/?next=/shares/"
    assert get("/shares/twitter/callback", allow_redirects=False).status_code == 302
    for path in ("link", "unlink", "callback"):
        assert Browser(Person()).open(f"/shares/myspace/{path}").status_code == 404


@pytest.mark.parametrize("path", ["link", "unlink"])
def test_nothing_begins_or_ends_without_our_form(person, path):
    one = person()
    account, browser = Account(one, "twitter"), Browser(one)
    page = browser.open(f"/shares/twitter/{path}")  # a link that somebody else has made
    assert (urlsplit(page.url).path, account.status()) == ("/shares/", "linked")
    forged = browser.request("POST", f"/shares/twitter/{path}", headers={"Origin": "https://elsewhere.example"})
    assert (forged.status_code, account.status()) == (403, "linked")


def test_links_are_limited(person):
    one = person()
    browser, linked = Browser(one), one.call("POST", "shares/accounts", form=FACEBOOK)
    assert linked.headers["X-Ratelimit-Limit"] == str(settings.RATE_LIMITS["links"])
    page, most = browser.open("/shares/"), settings.RATE_LIMITS["links"]
    codes = [browser.submit(page, "Link another account at Facebook").status_code for _ in range(most + 1)]
    assert codes == [200] * most + [429]


def test_a_service_without_our_keys_is_not_offered(person, monkeypatch):
    one = person()
    monkeypatch.setattr(settings, "TWITTER_KEY", "")
    with pytest.raises(InvalidParameters, match="service: twitter is not offered here"):
        sharing.link(one.id, **TWITTER)
    assert list(networks.offered()) == ["facebook"]


def test_a_secret_that_is_not_the_token_s_breaks_the_link(person):
    one = person()
    account = Account(one, "twitter", linked=False)
    account.link(secret="wrong")
    assert account.status() == "broken"


def test_the_double_checks_signatures_and_takes_each_once():
    """Else the other tests would say little."""
    url = f"{settings.TWITTER_URL}/oauth/request_token"
    codes = []
    for secret in (settings.TWITTER_SECRET, "wrong"):
        auth = OAuth1(settings.TWITTER_KEY, secret, callback_uri=settings.SITE_URL)
        signed = requests.Request("POST", url, auth=auth).prepare()
        codes += [requests.Session().send(signed, timeout=10).status_code for _ in range(2)]
    assert codes == [200, 401, 401, 401]


def test_without_a_word_of_when_a_rate_limit_ends_it_is_a_quarter_of_an_hour_and_never_days():
    assert networks._busy({}).seconds == 900
    assert networks._busy({"Retry-After": "999999"}).seconds == 3600
    assert networks._busy({"Retry-After": "0"}).seconds == 1


def test_a_secret_that_is_wrong_for_a_while_breaks_no_link(person):
    """It may be ours, or a clock: then all links would be gone."""
    one = person()
    account = Account(one, "twitter")
    account.will_answer("signature", "signature")
    _, share = shared(one, "twitter")
    assert (share["status"], account.status(), account.post_requests()) == ("shared", "linked", 3)


def share_jobs(media: dict) -> QuerySet[OutboxJob]:
    """The jobs that share a photo; on its shard."""
    return OutboxJob.objects.using(current_database()).filter(job="photos.share", args__photo_id=photo_id(media["id"]))


def half_a_minute_passes(one: Person, media: dict) -> None:
    """For a share that is held so long that the service has its time."""
    with on_shard(one.id):
        held = Share.objects.filter(photo_id=photo_id(media["id"]), held_until__gt=Now())
        assert held.update(held_until=Now()) == 1
        assert share_jobs(media).update(due_at=Now(), held_until=Now()) == 1


def test_a_service_that_does_not_answer_in_time_has_time_to_post_before_it_is_looked_at(person):
    people = [person() for _ in SERVICES]
    accounts = [Account(*pair) for pair in zip(people, SERVICES, strict=True)]
    media = []
    for account, answer in zip(accounts, ("slow", "hang"), strict=True):
        account.will_answer(answer)
        media.append(account.person.publish(caption="At the sea", **{"share_to[]": [account.service]}))
    for account, one in zip(accounts, media, strict=True):
        eventually(account.post_requests)
        account.person.post(f"media/{one['id']}", caption="At the lake")
        with on_shard(account.person.id):
            eventually(lambda one=one: share_jobs(one).exclude(last_error="").exists(), 20, "our patience has ended")
        eventually(account.posts, 30)
        half_a_minute_passes(account.person, one)
        assert ended(account.person, one, account.service, 60)["status"] == "shared"
        assert (len(account.posts()), account.post_requests()) == (1, 1)


def test_a_worker_that_is_killed_after_the_post_leaves_one_post(person):
    one = person()
    account = Account(one, "twitter")
    account.will_answer("hang")
    media = one.publish(**{"share_to[]": ["twitter"]})
    eventually(account.posts)
    assert share_of(one, media, "twitter")["status"] == "posting"
    ctl("kill", "worker")
    one.post(f"media/{media['id']}", caption="At the lake")
    half_a_minute_passes(one, media)
    assert ended(one, media, "twitter", 90)["status"] == "shared"
    assert (len(account.posts()), account.post_requests()) == (1, 1)


def test_while_the_services_are_away_pages_say_so_and_photos_wait(person, stopped):
    one = person()
    account, browser = Account(one, "facebook"), Browser(one)
    stopped("social")
    assert begin(browser, "twitter").status_code == 503
    media = one.publish(**{"share_to[]": ["facebook"]})
    eventually(lambda: share_of(one, media, "facebook")["status"] == "posting")
    ctl("start", "social")
    assert ended(one, media, "facebook", 40)["status"] == "shared"
    assert (len(account.posts()), account.post_requests()) == (1, 1)
