import random
import secrets
import threading

import pytest

from photos import places
from photos.models import PlacedPhoto
from tests.support import Refused, photo_id, settled

METRE = 1 / 111_195  # degrees of latitude


def somewhere() -> tuple[float, float]:
    """A place that no other test has been at."""
    return random.uniform(-70, 70), random.uniform(-179, 179)


def new_name() -> str:
    return f"Café {secrets.token_hex(5)}"


def found(viewer, path: str, **params) -> list[str]:
    return [item["id"] for item in viewer.get(path, **params)]


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


def at(one, latitude: float, longitude: float, **params) -> dict:
    media = one.take(latitude=repr(latitude), longitude=repr(longitude), **params)
    settled(one)
    return media


def test_photos_are_found_by_distance_latest_first(person):
    one, viewer, (lat, lng) = person(), person(), somewhere()
    here, near, far = (at(one, lat + metres * METRE, lng) for metres in (0, 900, 1100))
    for distance, expected in ((500, [here]), (1000, [near, here]), (2000, [far, near, here])):
        assert found(viewer, "media/search", lat=lat, lng=lng, distance=distance) == [one["id"] for one in expected]
    created = int(here["created_time"])
    assert found(viewer, "media/search", lat=lat, lng=lng, max_timestamp=created - 1) == []
    assert found(viewer, "media/search", lat=lat, lng=lng, min_timestamp=created) == [near["id"], here["id"]]


@pytest.mark.parametrize(("lat", "lng"), [(89.9999, 0), (-89.9999, 100), (10, 179.99999), (0, 0)])
def test_poles_and_the_date_line_are_no_edges(person, lat, lng):
    one = person()
    media = at(one, lat, lng)
    across = {"lat": lat, "lng": -lng if lng > 179 else lng}
    assert media["id"] in found(one, "media/search", count=100, **across)


def test_a_place_is_made_from_what_a_client_says_and_found_again(person):
    one, other, (lat, lng), name = person(), person(), somewhere(), new_name()
    media = at(one, lat, lng, location_name=name)
    location = media["location"]
    assert (location["name"], location["latitude"], location["longitude"]) == (name, lat, lng)
    again = at(other, lat + 50 * METRE, lng, location_name=f"  {name.upper()} ")
    assert again["location"]["id"] == location["id"]
    elsewhere = at(other, lat + 300 * METRE, lng, location_name=name)
    assert elsewhere["location"]["id"] != location["id"]
    assert other.get(f"locations/{location['id']}") == location
    assert found(one, "locations/search", lat=lat, lng=lng, distance=1000) == [
        location["id"],
        elsewhere["location"]["id"],
    ]
    assert found(one, f"locations/{location['id']}/media/recent") == [again["id"], media["id"]]


def test_a_photo_can_be_published_at_a_known_place(person):
    one, (lat, lng) = person(), somewhere()
    location = at(one, lat, lng, location_name=new_name())["location"]
    media = one.take(location_id=location["id"])
    assert media["location"] == location
    settled(one)
    assert media["id"] in found(one, "media/search", lat=lat, lng=lng)


def test_a_place_of_foursquare_is_known_by_its_id(person):
    one, (lat, lng), code = person(), somewhere(), secrets.token_hex(12)
    media = at(one, lat, lng, location_name=new_name(), foursquare_v2_id=code)
    assert found(one, "locations/search", foursquare_v2_id=code) == [media["location"]["id"]]
    moved = at(one, lat + 0.5, lng, location_name="Another name", foursquare_v2_id=code)
    assert moved["location"]["id"] == media["location"]["id"]
    assert found(one, "locations/search", foursquare_v2_id="0" * 24) == []


def test_two_phones_at_one_new_place_make_one_place():
    (lat, lng), name, made = somewhere(), new_name(), []
    threads = [
        threading.Thread(target=lambda: made.append(places.find_or_make(name, lat, lng, None))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6
    assert len(set(made)) == 1


def test_photos_of_a_place_come_in_pages(person):
    one, (lat, lng), name = person(), somewhere(), new_name()
    taken = [at(one, lat, lng, location_name=name) for _ in range(3)]
    path = f"locations/{taken[0]['location']['id']}/media/recent"
    first = one.call("GET", path, params={"count": 2}).json()
    assert [media["id"] for media in first["data"]] == [taken[2]["id"], taken[1]["id"]]
    assert found(one, path, max_id=first["pagination"]["next_max_id"]) == [taken[0]["id"]]
    assert found(one, path, min_id=taken[1]["id"]) == [taken[2]["id"]]


def test_private_and_deleted_photos_are_at_no_place_for_strangers(person):
    one, stranger, (lat, lng) = person(), person(), somewhere()
    kept, gone = at(one, lat, lng), at(one, lat, lng)
    one.delete(f"media/{gone['id']}")
    settled(one)
    assert found(stranger, "media/search", lat=lat, lng=lng) == [kept["id"]]
    assert not PlacedPhoto.objects.filter(photo_id=photo_id(gone["id"])).exists()
    one.post("accounts/edit", is_private="true")
    assert found(stranger, "media/search", lat=lat, lng=lng) == []
    assert found(one, "media/search", lat=lat, lng=lng) == [kept["id"]]


@pytest.mark.parametrize(
    ("path", "params", "named"),
    [
        ("media/search", {"lat": 1}, "lng"),
        ("media/search", {"lat": 91, "lng": 1}, "lat"),
        ("media/search", {"lat": 1, "lng": 1, "distance": 5001}, "distance"),
        ("media/search", {"lat": 1, "lng": 1, "min_timestamp": "yesterday"}, "min_timestamp"),
        ("locations/search", {}, "lat"),
        ("locations/search", {"foursquare_v2_id": "' OR 1=1"}, "foursquare_v2_id"),
        ("locations/abc", {}, "location_id"),
    ],
)
def test_bad_parameters_are_named(person, path, params, named):
    meta = refused(person().get, path, **params)
    assert meta["error_type"] == "APIInvalidParametersError"
    assert named in meta["error_message"]


def test_a_place_that_does_not_exist(person):
    one = person()
    for path in ("locations/999999999", "locations/999999999/media/recent"):
        assert refused(one.get, path)["error_type"] == "APINotFoundError"
    meta = refused(one.publish, location_id=999999999)
    assert meta["error_type"] == "APINotFoundError"
    assert "location_name" in refused(one.publish, location_name="Nowhere")["error_message"]
