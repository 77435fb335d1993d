import pytest
import requests

from tests.support import Refused, settled


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
