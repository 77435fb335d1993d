import random

import pytest
import requests

from tests.support import Refused, new_username, settled


def make_private(one, private: bool = True) -> None:
    one.post("accounts/edit", is_private=str(private).lower())


def ids(people: list[dict]) -> list[int]:
    return [int(one["id"]) for one in people]


def answer_to(one, other, action: str) -> dict:
    return one.post(f"users/{other.id}/relationship", action=action)


@pytest.fixture
def private(person):
    one = person()
    make_private(one)
    return one


def test_following_a_private_account_is_a_request_that_counts_nothing(private, person):
    asking = person()
    assert asking.follow(private)["outgoing_status"] == "requested"
    settled(asking, private)
    assert private.get(f"users/{asking.id}/relationship")["incoming_status"] == "requested_by"
    assert ids(private.get("users/self/requested-by")) == [asking.id]
    assert asking.counts()["follows"] == private.counts()["followed_by"] == 0
    assert asking.follow(private)["outgoing_status"] == "requested"


def test_an_approved_request_is_a_follow_with_its_photos(private, person):
    asking = person()
    media = private.take()
    asking.follow(private)
    settled(asking, private)
    assert asking.feed() == []
    assert answer_to(private, asking, "approve")["incoming_status"] == "followed_by"
    settled(asking, private)
    assert asking.feed() == [media["id"]]
    assert asking.counts()["follows"] == private.counts()["followed_by"] == 1
    assert private.get("users/self/requested-by") == []
    assert ids(private.get("users/self/followed-by")) == [asking.id]


def test_an_ignored_request_is_gone_and_can_be_made_again(private, person):
    asking = person()
    asking.follow(private)
    settled(asking, private)
    answer_to(private, asking, "ignore")
    settled(asking, private)
    assert private.get("users/self/requested-by") == []
    assert asking.get(f"users/{private.id}/relationship")["outgoing_status"] == "none"
    assert asking.follow(private)["outgoing_status"] == "requested"


def test_a_request_can_be_withdrawn(private, person):
    asking = person()
    asking.follow(private)
    asking.unfollow(private)
    settled(asking, private)
    assert private.get("users/self/requested-by") == []
    with pytest.raises(Refused) as refused:
        answer_to(private, asking, "approve")
    assert refused.value.meta["error_type"] == "APINotFoundError"


def test_ignoring_does_not_end_a_follow(private, person):
    follower = person()
    follower.follow(private)
    answer_to(private, follower, "approve")
    answer_to(private, follower, "ignore")
    settled(private, follower)
    assert follower.get(f"users/{private.id}/relationship")["outgoing_status"] == "follows"


def test_followers_stay_when_an_account_becomes_private_and_requests_are_let_in_when_it_becomes_public(person):
    one, follower, asking = person(), person(), person()
    follower.follow(one)
    settled(one, follower)
    make_private(one)
    asking.follow(one)
    settled(one, asking)
    assert one.counts()["followed_by"] == 1
    make_private(one, False)
    settled(one, asking)
    assert one.counts()["followed_by"] == 2
    assert asking.get(f"users/{one.id}/relationship")["outgoing_status"] == "follows"


SEEN, REFUSED = 200, "APINotAllowedError"
OF_A_PUBLIC_ACCOUNT = {
    #                    owner  follower  requester  stranger  blocked   blocker
    "users/{owner}": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
    "users/{owner}/relationship": (SEEN, SEEN, SEEN, SEEN, REFUSED, SEEN),
    "users/{owner}/media/recent": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
    "users/{owner}/follows": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
    "users/{owner}/followed-by": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
    "media/{media}": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
    "media/shortcode/{code}": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
    "media/{media}/likes": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
    "media/{media}/comments": (SEEN, SEEN, SEEN, SEEN, REFUSED, REFUSED),
}
PUBLISHED = [path for path in OF_A_PUBLIC_ACCOUNT if path not in ("users/{owner}", "users/{owner}/relationship")]
# Lists of photos of all people: is the owner's among them?
LISTS = ["tags/{tag}/media/recent", "media/search?lat={lat}&lng={lng}", "locations/{location}/media/recent"]
OF_A_PRIVATE_ACCOUNT = OF_A_PUBLIC_ACCOUNT | dict.fromkeys(PUBLISHED, (SEEN, SEEN, *[REFUSED] * 4))
VIEWERS = ("owner", "follower", "requester", "stranger", "blocked", "blocker")


@pytest.fixture(scope="module", params=[False, True], ids=["public", "private"])
def world(request):
    """An owner with a photo, and one viewer of each kind; whether the account is private."""
    from tests.support import Person

    people = {kind: Person() for kind in VIEWERS}
    owner = people["owner"]
    people["follower"].follow(owner)
    settled(owner, people["follower"])
    media = owner.take(
        caption=f"#{new_username()}",
        latitude=f"{random.uniform(-80, 80):.6f}",
        longitude=f"{random.uniform(-179, 179):.6f}",
        location_name=new_username(),
    )
    people["follower"].post(f"media/{media['id']}/likes")
    people["follower"].post(f"media/{media['id']}/comments", text="nice")
    if request.param:
        make_private(owner)
        people["requester"].follow(owner)
    owner.block(people["blocked"])
    people["blocker"].block(owner)
    settled(*people.values())
    return people, media, OF_A_PRIVATE_ACCOUNT if request.param else OF_A_PUBLIC_ACCOUNT


@pytest.mark.parametrize("path", OF_A_PUBLIC_ACCOUNT)
@pytest.mark.parametrize("kind", VIEWERS)
def test_who_sees_what(world, path, kind):
    people, media, expected = world
    code = media["link"].rstrip("/").rpartition("/")[2]
    response = people[kind].call("GET", path.format(owner=people["owner"].id, media=media["id"], code=code))
    wanted = expected[path][VIEWERS.index(kind)]
    assert (SEEN if response.status_code == SEEN else response.json()["meta"]["error_type"]) == wanted


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("kind", VIEWERS)
def test_who_finds_what(world, path, kind):
    people, media, expected = world
    place = media["location"]
    path = path.format(tag=media["tags"][0], lat=place["latitude"], lng=place["longitude"], location=place["id"])
    found = [one["id"] for one in people[kind].get(path)] == [media["id"]]
    assert found == (expected["media/{media}"][VIEWERS.index(kind)] == SEEN)


@pytest.mark.parametrize("action", ["likes", "comments"])
@pytest.mark.parametrize("kind", VIEWERS)
def test_who_may_respond(world, action, kind):
    people, media, expected = world
    response = people[kind].call("POST", f"media/{media['id']}/{action}", form={"text": "hello"})
    wanted = expected["media/{media}"][VIEWERS.index(kind)]
    assert (SEEN if response.status_code == SEEN else response.json()["meta"]["error_type"]) == wanted


@pytest.mark.parametrize("kind", VIEWERS)
def test_who_finds_whom(world, kind):
    people, _, _ = world
    owner = people["owner"]
    found = ids(people[kind].get("users/search", q=owner.username)) == [owner.id]
    assert found == (kind not in ("blocked", "blocker"))


def test_people_lists_come_latest_first_in_pages_that_neither_repeat_nor_skip(person):
    one, followers = person(), [person() for _ in range(5)]
    for follower in followers:
        follower.follow(one)
        settled(one, follower)
    response = one.call("GET", "users/self/followed-by", params={"count": 2}).json()
    seen = ids(response["data"])
    late = person()
    late.follow(one)  # while somebody pages
    settled(one, late)
    while response["pagination"]:
        headers = {"Authorization": f"Bearer {one.token}"}
        response = requests.get(response["pagination"]["next_url"], headers=headers, timeout=10).json()
        seen += ids(response["data"])
    assert seen == [follower.id for follower in followers[::-1]]
    assert ids(followers[0].get(f"users/{followers[0].id}/follows")) == [one.id]


def test_a_blocked_user_is_not_in_the_lists_of_others(person):
    one, viewer, blocker = person(), person(), person()
    for follower in (viewer, blocker):
        follower.follow(one)
    blocker.block(viewer)
    settled(one, viewer, blocker)
    assert ids(viewer.get(f"users/{one.id}/followed-by")) == [viewer.id]
    assert set(ids(one.get("users/self/followed-by"))) == {viewer.id, blocker.id}


def test_a_profile_can_be_edited(person):
    one = person()
    edited = one.post("accounts/edit", full_name="New Name", bio="é 🌅", website="https://example.com/a")
    assert (edited["full_name"], edited["bio"], edited["website"]) == ("New Name", "é 🌅", "https://example.com/a")
    assert person().get(f"users/{one.id}")["full_name"] == "New Name"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"bio": "x" * 151}, "bio"),
        ({"website": "javascript:alert(1)"}, "website"),
        ({"website": "https://a b"}, "website"),
        ({"full_name": "x" * 65}, "full_name"),
        ({"is_private": "perhaps"}, "is_private"),
        ({}, "full_name"),
    ],
)
def test_a_bad_edit_names_what_is_wrong(person, change, named):
    with pytest.raises(Refused) as refused:
        person().post("accounts/edit", **change)
    assert refused.value.meta["error_type"] == "APIInvalidParametersError"
    assert named in refused.value.meta["error_message"]
