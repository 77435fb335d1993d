"""Walks by `next_url` while new items arrive: what was there at the first page comes once, and in its order."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import requests
from django.conf import settings

from tests.accounts.test_oauth import Browser, Client
from tests.instagram.test_clients import generate_sig
from tests.support import Person, get, settled

PAGE = 2


class World:
    """An owner with photos and people around; in the middle of all lists is what the viewer may not see."""

    def __init__(self) -> None:
        self.viewer, self.owner, self.hidden = Person(), Person(), Person()
        self.viewer.follow(self.owner)
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
        self.place = self.owner.get(f"media/{self.media}")["location"]["id"]
        developer = Browser(Person())
        self.app = Client(developer)
        developer.submit(developer.open(self.app.path), "Save", must_sign="on")
        self.app_token = self.app.token_of(Browser(self.viewer))

    def publish(self, one: Person) -> dict:
        return one.publish(caption=f"#{self.tag}", location_name=self.name, latitude="12.5", longitude="-3.25")

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
    newest_first: bool = True
    public: bool = True  # whether a client_id is enough


LISTS = [
    Listing("users/self/feed", "max_id", World.photo_arrives, public=False),
    Listing("users/self/media/liked", "max_like_id", World.photo_arrives, public=False),
    Listing("users/self/activity", "cursor", World.somebody_comes, public=False),
    Listing("users/{owner}/media/recent", "max_id", World.photo_arrives),
    Listing("tags/{tag}/media/recent", "max_tag_id", World.photo_arrives),
    Listing("locations/{place}/media/recent", "max_id", World.photo_arrives),
    Listing("users/{owner}/follows", "cursor", World.somebody_comes),
    Listing("users/{owner}/followed-by", "cursor", World.somebody_comes),
    Listing("media/{media}/likes", "cursor", World.somebody_comes),
    Listing("media/{media}/comments", "cursor", World.somebody_comes, newest_first=False),
]
WAYS = ["token", "bearer", "client_id", "signed"]


def first_page(world: World, listing: Listing, way: str, **params) -> tuple[str, dict, dict]:
    """How to ask for a list: (path, query, headers)."""
    endpoint = "/" + listing.path.format(
        owner=world.owner.id, tag=world.tag, place=world.place, media=world.media
    )  # fmt: skip
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
    if not listing.newest_first:  # the pages are, but not what is on each of them
        pages = [page[::-1] for page in pages]
        there.reverse()
    assert [one for page in pages for one in page] == there


BETWEEN = [
    ("users/{owner}/media/recent", ("max_id", "min_id", "max_timestamp", "min_timestamp")),
    ("locations/{place}/media/recent", ("max_id", "min_id", "max_timestamp", "min_timestamp")),
    ("users/self/feed", ("max_id", "min_id")),
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


def test_the_next_page_of_a_page_that_is_all_hidden(world):
    """An empty page is not the last one."""
    tag = secrets.token_hex(8)
    photos = [one.publish(caption=f"#{tag}") for one in (world.owner, world.hidden, world.hidden, world.owner)]
    settled(world.owner, world.hidden)
    seen, url = [], f"{settings.SITE_URL}/v1/tags/{tag}/media/recent?client_id=phone&count=1"
    while url:
        page = requests.get(url, timeout=20).json()
        seen += [media["id"] for media in page["data"]]
        url = page["pagination"].get("next_url")
    assert seen == [photos[3]["id"], photos[0]["id"]]
