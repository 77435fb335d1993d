"""What Pingdom is to ask (deploy/pingdom/checks.toml) is true of a site that is well, and false of one that is not."""

import tomllib
from xml.etree import ElementTree

import pytest
import requests
from django.conf import settings

from tests.support import eventually

CHECKS = tomllib.loads((settings.BASE_DIR / "deploy/pingdom/checks.toml").read_text())["check"]
SITES = {"site": settings.SITE_URL, "cdn": settings.CDN_URL}


def is_up(check: dict) -> bool:
    """What Pingdom would say."""
    response = requests.get(SITES[check["site"]] + check["url"], timeout=30)
    if check["type"] == "httpcustom":
        return ElementTree.fromstring(response.content).findtext("status") == "OK"  # noqa: S314 (our own)
    return response.status_code == 200 and check.get("shouldcontain", "") in response.text


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check["name"])
def test_a_check_is_up(check):
    assert is_up(check)
    assert check["resolution"] in (1, 5, 15, 30, 60)  # what Pingdom takes
    assert check["tell"] in ("pagerduty", "mail")


@pytest.mark.parametrize(
    ("server", "down"),
    [
        ("postgres_b", {"all that the API needs"}),
        ("nginx_cdn", {"photos are shown"}),
        ("haproxy", {"the site answers", "all that the API needs", "the login page", "the developers' pages"}),
    ],
)
def test_what_is_away_is_seen_by_the_checks_that_need_it(stopped, server, down):
    stopped(server)
    # The app remembers for a second that all was well.
    eventually(lambda: {check["name"] for check in CHECKS if not seen_up(check)} == down, 20, f"only {down} are down")


def seen_up(check: dict) -> bool:
    try:
        return is_up(check)
    except requests.ConnectionError:
        return False
