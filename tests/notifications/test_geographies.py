"""Circles on the map: photos in them, in pages, for whoever may see them."""

import random

import pytest
import requests

from tests.instagram.test_clients import read
from tests.support import Person, Refused, get, photo_id, settled

METRE = 1 / 111_195  # degrees of latitude


def somewhere() -> tuple[float, float]:
    """A place that no other test has been at."""
    return random.uniform(-70, 70), random.uniform(-179, 179)


def take(one: Person, lat: float, lng: float) -> str:
    media = one.take(latitude=repr(lat), longitude=repr(lng))
    settled(one)
    return media["id"]


def listed(viewer: Person, geography: str, **params) -> list[str]:
    return [media["id"] for media in viewer.get(f"geographies/{geography}/media/recent", **params)]


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


@pytest.fixture
def geography(developer) -> tuple[str, float, float]:
    lat, lng = somewhere()
    made = developer.subscribe("geography", lat=repr(lat), lng=repr(lng), radius="1000")
    return made["object_id"], lat, lng


def test_it_has_the_photos_within_its_radius_latest_first(geography):
    one, (geography_id, lat, lng) = Person(), geography
    media = [take(one, lat + metres * METRE, lng) for metres in (0, 990, 1010)]
    assert listed(one, geography_id) == [media[1], media[0]]
    by_client = read(f"geographies/{geography_id}/media/recent").json()
    assert [photo["id"] for photo in by_client["data"]] == [media[1], media[0]]
    assert by_client["pagination"] == {}


def test_its_photos_come_in_pages(geography):
    one, (geography_id, lat, lng) = Person(), geography
    media = [take(one, lat, lng) for _ in range(5)]
    page = one.call("GET", f"geographies/{geography_id}/media/recent", params={"count": 2}).json()
    take(one, lat, lng)  # meanwhile
    pages = [[photo["id"] for photo in page["data"]]]
    assert page["pagination"]["next_max_id"] == str(photo_id(media[3]))
    while next_url := page["pagination"].get("next_url"):
        page = requests.get(next_url, headers={"Authorization": f"Bearer {one.token}"}, timeout=20).json()
        pages.append([photo["id"] for photo in page["data"]])
    assert pages == [[media[4], media[3]], [media[2], media[1]], [media[0]]]
    assert listed(one, geography_id, min_id=media[1], max_id=media[4]) == [media[3], media[2]]


def test_what_is_hidden_from_the_viewer_is_left_out(geography):
    private, viewer, follower, (geography_id, lat, lng) = Person(), Person(), Person(), geography
    media = take(private, lat, lng)
    follower.follow(private)
    private.post("accounts/edit", is_private="true")
    settled(private, follower)
    assert listed(viewer, geography_id) == []
    assert listed(follower, geography_id) == listed(private, geography_id) == [media]


def test_it_goes_with_its_subscription(developer, geography):
    one, (geography_id, _, _) = Person(), geography
    assert listed(one, geography_id) == []
    developer.unsubscribe(object="geography")
    assert refused(listed, one, geography_id)["error_type"] == "APINotFoundError"


def test_only_geographies_are_geographies(developer):
    one, subscription = Person(), developer.subscribe("user")
    assert refused(listed, one, subscription["id"])["error_type"] == "APINotFoundError"
    assert refused(listed, one, "9" * 18)["error_type"] == "APINotFoundError"
    for bad in ({"count": 0}, {"max_id": "x"}, {"min_id": "x"}):
        assert next(iter(bad)) in refused(listed, one, subscription["id"], **bad)["error_message"]
    assert "geography_id" in refused(listed, one, "here")["error_message"]
    assert get(f"/v1/geographies/{subscription['id']}/media/recent").json()["meta"]["code"] == 400
