"""Walks by `next_url` while new items arrive: what was there at the first page comes once, and in its order."""

import inspect
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_origin

import pytest
import requests
from django.conf import settings

from accounts import paging
from tests.accounts.test_oauth import Browser, Client
from tests.instagram.routes import filled, routes
from tests.instagram.test_clients import generate_sig
from tests.notifications.developer import geography_at
from tests.support import Person, get, settled

PAGE = 2


class World:
    """An owner with photos and people around; in the middle of all lists is what the viewer may not see."""

    def __init__(self) -> None:
        self.viewer, self.owner, self.hidden = Person(), Person(), Person()
        self.viewer.post("accounts/edit", is_private="true")  # so that people ask to follow
        self.viewer.follow(self.owner)
        self.here = {"latitude": f"{random.uniform(-80, 80):.6f}", "longitude": f"{random.uniform(-179, 179):.6f}"}
        self.tag, self.name = f"t{secrets.token_hex(6)}", secrets.token_hex(6)
        photos = [self.publish(one) for one in (*[self.owner] * 3, self.hidden, *[self.owner] * 3)]
        people = [Person(), Person(), self.hidden, Person(), Person(), Person()]
        settled(self.owner, self.hidden)
        for media in photos:
            self.viewer.post(f"media/{media['id']}/likes")
        self.media = photos[0]["id"]
        for one in people:
            self.meet(one)
        self.hidden.block(self.viewer)
        self.hidden.post("accounts/edit", is_private="true")
        settled(self.owner, self.viewer, *people)
        self.geography = geography_at(**self.here)
        self.place = self.owner.get(f"media/{self.media}")["location"]["id"]
        developer = Browser(Person())
        self.app = Client(developer)
        developer.submit(developer.open(self.app.path), "Save", must_sign="on")
        self.app_token = self.app.token_of(Browser(self.viewer), scope="basic relationships")

    def publish(self, one: Person) -> dict:
        return one.publish(caption=f"#{self.tag}", location_name=self.name, **self.here)

    def meet(self, one: Person) -> None:
        """Somebody becomes the last in all lists of people."""
        one.follow(self.owner)
        self.owner.follow(one)
        one.follow(self.viewer)
        one.post(f"media/{self.media}/likes")
        one.post(f"media/{self.media}/comments", text="hello")
        settled(one, self.owner)

    def photo_arrives(self) -> None:
        media = self.publish(self.owner)
        settled(self.owner)
        self.viewer.post(f"media/{media['id']}/likes")

    def somebody_comes(self) -> None:
        self.meet(Person())


@pytest.fixture(scope="module")
def world():
    return World()


@dataclass(frozen=True)
class Listing:
    path: str
    cursor: str  # the parameter that asks for the next page
    grow: Callable[[World], None]
    public: bool = True  # whether a client_id is enough
    newest_first: bool = True


LISTS = [
    Listing("v1/users/self/feed", "max_id", World.photo_arrives, public=False),
    Listing("v1/users/self/media/liked", "max_like_id", World.photo_arrives, public=False),
    Listing("v1/users/self/activity", "cursor", World.somebody_comes, public=False),
    Listing("v1/users/self/requested-by", "cursor", World.somebody_comes, public=False),
    Listing("v1/users/{user_id}/media/recent", "max_id", World.photo_arrives),
    Listing("v1/tags/{name}/media/recent", "max_tag_id", World.photo_arrives),
    Listing("v1/locations/{location_id}/media/recent", "max_id", World.photo_arrives),
    Listing("v1/geographies/{geography_id}/media/recent", "max_id", World.photo_arrives),
    Listing("v1/users/{user_id}/follows", "cursor", World.somebody_comes),
    Listing("v1/users/{user_id}/followed-by", "cursor", World.somebody_comes),
    Listing("v1/media/{media_id}/likes", "cursor", World.somebody_comes),
    Listing("v1/media/{media_id}/comments", "cursor", World.somebody_comes, newest_first=False),
]
WAYS = ["token", "bearer", "client_id", "signed"]


def first_page(world: World, listing: Listing, way: str, **params) -> tuple[str, dict, dict]:
    """How to ask for a list: (path, query, headers)."""
    endpoint = filled(
        listing.path.removeprefix("v1/"),
        user_id=world.owner.id,
        media_id=world.media,
        location_id=world.place,
        geography_id=world.geography,
        name=world.tag,
    )
    if way == "bearer":
        return endpoint, params, {"Authorization": f"Bearer {world.viewer.token}"}
    if way == "signed":
        params |= {"access_token": world.app_token}
        return endpoint, params | {"sig": generate_sig(endpoint, params, world.app.secret)}, {}
    return endpoint, params | ({"access_token": world.viewer.token} if way == "token" else {"client_id": "phone"}), {}


def walked(world: World, listing: Listing, way: str, **params) -> list[list[str]]:
    """The IDs on each page; after the first page, something new arrives."""
    path, query, headers = first_page(world, listing, way, count=PAGE, **params)
    page = get(f"/v1{path}", params=query, headers=headers).json()
    pages = [[one["id"] for one in page["data"]]]
    listing.grow(world)
    while page["pagination"].get("next_url"):
        assert page["pagination"][f"next_{listing.cursor}"]
        assert page["pagination"]["next_url"].startswith(f"{settings.SITE_URL}/v1{path}?")
        page = requests.get(page["pagination"]["next_url"], headers=headers, timeout=20).json()
        assert page["meta"]["code"] == 200
        pages.append([one["id"] for one in page["data"]])
    assert f"next_{listing.cursor}" not in page["pagination"]
    return pages


def whole(world: World, listing: Listing, way: str) -> list[dict]:
    path, query, headers = first_page(world, listing, way, count=100)
    return get(f"/v1{path}", params=query, headers=headers).json()["data"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("listing", LISTS, ids=lambda listing: listing.path)
def test_nothing_is_repeated_or_skipped(world, listing, way):
    if way == "client_id" and not listing.public:
        path, query, _ = first_page(world, listing, way)
        assert get(f"/v1{path}", params=query).status_code == 400
        return
    there = [one["id"] for one in whole(world, listing, way)]
    pages = walked(world, listing, way)
    assert len(pages) >= len(there) / PAGE > 2
    if "activity" not in listing.path:  # whose pages may lack some
        assert all(len(page) == PAGE for page in pages[:-1])
    if not listing.newest_first:  # the pages are, but not what is on each of them
        pages = [page[::-1] for page in pages]
        there.reverse()
    assert [one for page in pages for one in page] == there


BETWEEN = [
    ("v1/users/{user_id}/media/recent", ("max_id", "min_id", "max_timestamp", "min_timestamp")),
    ("v1/locations/{location_id}/media/recent", ("max_id", "min_id", "max_timestamp", "min_timestamp")),
    ("v1/users/self/feed", ("max_id", "min_id")),
]


@pytest.mark.parametrize(("path", "bound"), [(path, bound) for path, bounds in BETWEEN for bound in bounds])
def test_bounds_hold_on_every_page(world, path, bound):
    (listing,) = [one for one in LISTS if one.path == path]
    there = whole(world, listing, "token")
    edge = there[1] if bound.startswith("max") else there[-2]

    def value(media: dict) -> int:
        return int(media["created_time"] if "timestamp" in bound else media["id"].split("_")[0])

    inside = {
        "max_id": lambda media: value(media) < value(edge),
        "min_id": lambda media: value(media) > value(edge),
        "max_timestamp": lambda media: value(media) <= value(edge),
        "min_timestamp": lambda media: value(media) >= value(edge),
    }[bound]
    expected = [media["id"] for media in there if inside(media)]
    pages = walked(world, listing, "token", **{bound: value(edge)})
    assert [one for page in pages for one in page] == expected
    assert len(pages) > 1


def test_a_tag_is_asked_for_what_is_new_by_min_tag_id(world):
    (listing,) = [one for one in LISTS if one.cursor == "max_tag_id"]
    path, query, _ = first_page(world, listing, "token", count=PAGE)
    newest = get(f"/v1{path}", params=query).json()
    bound = {"min_tag_id": newest["pagination"]["min_tag_id"]}
    nothing = get(f"/v1{path}", params=query | bound).json()
    assert (nothing["data"], nothing["pagination"]) == ([], {})
    for _ in range(PAGE + 1):
        world.photo_arrives()
    page = get(f"/v1{path}", params=query | bound).json()
    rest = requests.get(page["pagination"]["next_url"], timeout=20).json()
    arrived = [media["id"] for media in page["data"] + rest["data"]]
    assert arrived[-1] not in [media["id"] for media in newest["data"]]
    assert arrived == [media["id"] for media in whole(world, listing, "token")][: PAGE + 1]
    assert "next_url" not in rest["pagination"]


def test_a_page_is_full_though_much_is_hidden(world):
    """A client may take an empty page for the last one."""
    name = secrets.token_hex(8)
    photos = []
    for one in (world.owner, *[world.hidden] * 3, world.owner):
        photos.append(one.publish(caption=f"#{name}", **world.here))
        settled(one)  # tagged one after the other
    seen, url = [], f"{settings.SITE_URL}/v1/tags/{name}/media/recent?client_id=phone&count=1"
    while url:
        page = requests.get(url, timeout=20).json()
        seen.append([media["id"] for media in page["data"]])
        url = page["pagination"].get("next_url")
    assert seen == [[photos[4]["id"]], [photos[0]["id"]]]


def test_where_very_much_is_hidden_a_page_is_short_and_not_the_last(monkeypatch):
    rows = [(n, 1 if n > 3 else 2, n) for n in range(30, 0, -1)]  # the newest 27 are of somebody hidden
    monkeypatch.setattr(paging, "LARGER_STEP", 4)

    def rows_below(position: int, count: int) -> list[tuple]:
        return [row for row in rows if row[-1] < position][:count]

    def seen(asked: list[tuple]) -> dict[int, int]:
        return {n: n for n, owner_id, _ in asked if owner_id == 2}

    pages, below = [], 31
    while below is not None:
        found, _, below = paging.full_page(rows_below, seen, below, 2)
        pages.append(found)
    assert pages == [[], [3, 2], [1]]


def test_no_list_is_left_out():
    """All endpoints that return a page and where the next one begins."""
    gets = {one.path: one.endpoints["GET"][1] for one in routes() if "GET" in one.endpoints}
    paged = {path for path, get in gets.items() if get_origin(inspect.signature(get).return_annotation) is tuple}
    assert paged == {one.path for one in LISTS}
