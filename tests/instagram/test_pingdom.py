"""What Pingdom reads from outside."""

from xml.etree import ElementTree

import pytest

from tests.support import ctl, eventually, get


def check() -> dict[str, str]:
    response = get("/pingdom.xml")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/xml")
    root = ElementTree.fromstring(response.content)  # noqa: S314 (our own)
    assert root.tag == "pingdom_http_custom_check"
    return {child.tag: child.text for child in root}


def test_all_is_well_and_how_long_it_took():
    answer = eventually(lambda: (answer := check())["status"] == "OK" and answer)  # of what an earlier test ended, too
    whole, fraction = answer["response_time"].split(".")
    assert 0 < float(answer["response_time"]) < 10_000
    assert len(fraction) == 3
    assert len(whole) <= 8


@pytest.mark.parametrize(
    ("server", "named"),
    [("redis_feeds", "redis feeds"), ("postgres_b", "postgres b"), ("memcached_2", "2")],
)
def test_the_status_names_what_is_away(stopped, server, named):
    stopped(server)
    eventually(lambda: named in check()["status"])  # what it says may be a second old
    ctl("start", server)
    eventually(lambda: check()["status"] == "OK", 30)
