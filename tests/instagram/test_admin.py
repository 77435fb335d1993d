"""The admin: staff see what the outboxes hold, and let parked jobs try again. Nobody else sees it."""

import re

import pytest
import requests
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import transaction
from django.db.models.functions import Now

from shardmap.shards import shard_transaction
from tests.support import PASSWORD, Person, get, new_username
from workers import outbox
from workers.models import OutboxJob

LIST = "/admin/workers/outboxjob/"


class Browser(requests.Session):
    def log_in(self, person: Person) -> requests.Response:
        page = self.get(f"{settings.SITE_URL}/admin/", timeout=20)
        form = {"username": person.username, "password": PASSWORD, "csrfmiddlewaretoken": token_in(page)}
        return self.post(page.url, data=form, headers={"Referer": page.url}, timeout=20)

    def see(self, path: str) -> requests.Response:
        return self.get(settings.SITE_URL + path, timeout=20)


def token_in(page: requests.Response) -> str:
    return re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)[1]


@pytest.fixture
def browser():
    """Of somebody who is staff and has logged in."""
    one = Person()
    call_command("staff", one.username)
    browser = Browser()
    assert "Instagram: operations" in browser.log_in(one).text
    browser.person = one
    return browser


@pytest.fixture
def name():
    """A job that no worker knows: parked in the directory, and on a shard server."""
    name = f"tests.{new_username()}"
    with transaction.atomic():
        outbox.enqueue(name, number=1)
    with shard_transaction(4):
        outbox.enqueue(name, number=2)
    for database in ("default", "a", "b"):
        rows(name, database).update(parked_at=Now(), attempts=20, last_error="Traceback\nNoLuck: <none>")
    yield name
    for database in ("default", "a", "b"):
        rows(name, database).delete()


def rows(name: str, database: str):
    return OutboxJob.objects.using(database).filter(job=name)


def test_who_is_not_logged_in_is_sent_to_the_login():
    for path in ("/admin/", LIST):
        answer = get(path)
        assert answer.history
        assert answer.url.startswith(f"{settings.SITE_URL}/accounts/login")


def test_who_is_not_staff_is_refused(name):
    browser = Browser()
    assert browser.log_in(Person()).status_code == 403
    assert browser.see(LIST).status_code == 403
    assert name not in browser.see(LIST).text


def test_who_was_staff_is_refused(browser):
    call_command("staff", browser.person.username, "--remove")
    assert browser.see(LIST).status_code == 403
    with pytest.raises(CommandError, match="no user"):
        call_command("staff", new_username())


def test_the_list_shows_each_databases_jobs(browser, name):
    page = browser.see(f"{LIST}?job={name}")
    (row,) = rows(name, "default")
    assert page.status_code == 200
    assert f"default:{row.id}" in page.text
    assert "NoLuck: &lt;none&gt;" in page.text
    assert "parked (1)" in page.text
    database = next(database for database in ("a", "b") if rows(name, database))
    (row,) = rows(name, database)
    page = browser.see(f"{LIST}?job={name}&database={database}&state=parked")
    assert f"{database}:{row.id}" in page.text
    assert f"{database}:{row.id}" not in browser.see(f"{LIST}?job={name}&database={database}&state=waiting").text


def test_replay(browser, name):
    database = next(database for database in ("a", "b") if rows(name, database))
    path = f"{LIST}?job={name}&database={database}"
    page = browser.see(path)
    form = {
        "csrfmiddlewaretoken": token_in(page),
        "action": "replay",
        "index": "0",
        "_selected_action": [row.id for row in rows(name, database)],
    }
    url = settings.SITE_URL + path
    forged = browser.post(url, data=form | {"csrfmiddlewaretoken": "x" * 64}, headers={"Referer": url}, timeout=20)
    assert forged.status_code == 403
    assert rows(name, database).get().parked_at
    answer = browser.post(url, data=form, headers={"Referer": url}, timeout=20)
    assert "1 will be tried again" in answer.text
    assert (rows(name, database).get().parked_at, rows(name, database).get().attempts) == (None, 0)
    assert rows(name, "default").get().parked_at


def test_it_can_only_look_and_replay(browser, name):
    (row,) = rows(name, "default")
    assert browser.see(f"{LIST}add/").status_code == 403
    assert browser.see(f"{LIST}{row.id}/delete/").status_code == 403
    assert browser.see("/admin/password_change/").status_code == 404


def test_its_style_is_there_and_its_pages_are_not_kept(browser):
    page = browser.see(LIST)
    style = re.search(r'href="(/static/admin/css/base.css)"', page.text)[1]
    assert get(style).headers["Content-Type"].startswith("text/css")
    assert get("/static/admin/").status_code == 404
    assert get("/static/admin/../../sites.py").status_code == 404
    assert "no-store" in page.headers["Cache-Control"]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_the_api_has_no_middleware():
    assert settings.MIDDLEWARE == []
    assert "Set-Cookie" not in get("/v1/users/self").headers
