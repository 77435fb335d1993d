import pytest
import requests
from django.conf import settings
from oauth2_provider.models import AccessToken, Application

from accounts.models import Block, BlockedBy, User
from photos.models import Liked
from shardmap import photo_map
from shardmap.shards import on_shard
from tests.accounts.test_oauth import Browser, Client
from tests.photos.seen import exists
from tests.support import PASSWORD, Person, Refused, eventually, photo_id, settled


def delete_account(one: Person, password: str = PASSWORD) -> requests.Response:
    return one.call("DELETE", "accounts", form={"password": password})


def refusal(one: Person, path: str) -> str:
    with pytest.raises(Refused) as refused:
        one.get(path)
    return refused.value.meta["error_type"]


@pytest.fixture
def world(person):
    """Somebody who leaves, and a friend; each has a photo that the other likes and has commented on."""
    leaver, friend = person(), person()
    leaver.follow(friend)
    friend.follow(leaver)
    settled(leaver, friend)
    of_leaver, of_friend = leaver.take(caption=f"#a{leaver.username}"), friend.take(caption=f"@{leaver.username}")
    for one, media in ((leaver, of_friend), (friend, of_leaver)):
        one.post(f"media/{media['id']}/likes")
        one.post(f"media/{media['id']}/comments", text="hello")
    settled(leaver, friend)
    return leaver, friend, of_leaver, of_friend


def test_who_leaves_is_gone_for_readers_at_once(world):
    leaver, friend, of_leaver, of_friend = world
    assert of_leaver["id"] in friend.feed()
    assert delete_account(leaver).status_code == 200
    assert refusal(leaver, "users/self") == "OAuthAccessTokenException"
    for path in (f"users/{leaver.id}", f"users/{leaver.id}/media/recent", f"users/{leaver.id}/followed-by"):
        assert refusal(friend, path) == "APINotFoundError"
    for path in ("", "/likes", "/comments"):
        assert refusal(friend, f"media/{of_leaver['id']}{path}") == "APINotFoundError"
    assert friend.feed() == [of_friend["id"]]
    assert friend.get("users/search", q=leaver.username) == []
    for path in ("users/self/follows", "users/self/followed-by", "users/self/media/liked", "users/self/activity"):
        assert friend.get(path) == []
    assert friend.get(f"tags/a{leaver.username}/media/recent") == []
    for path in ("likes", "comments"):
        assert friend.get(f"media/{of_friend['id']}/{path}") == []


def test_what_somebody_leaves_is_removed_soon(world):
    leaver, friend, of_leaver, of_friend = world
    row = photo_id(of_leaver["id"])
    delete_account(leaver)
    settled(leaver, friend)
    assert friend.counts() == {"media": 1, "follows": 0, "followed_by": 0}
    left = friend.get(f"media/{of_friend['id']}")
    assert (left["likes"]["count"], left["comments"]["count"]) == (0, 0)
    assert photo_map.owner_of(row) is None
    name = of_leaver["images"]["thumbnail"]["url"].rpartition("/")[2].partition("_")[0]
    assert not exists(settings.S3_PHOTOS_BUCKET, name)
    with on_shard(leaver.id):
        assert not Liked.objects.filter(user_id=leaver.id).exists()


def test_nothing_personal_stays_and_the_name_is_free(world, person):
    leaver, friend, *_ = world
    delete_account(leaver)
    left = User.objects.get(id=leaver.id)
    assert leaver.username not in f"{left.username} {left.email} {left.full_name} {left.password}"
    again = person(leaver.username)
    assert again.id != leaver.id
    assert friend.get(f"users/{again.id}")["username"] == leaver.username
    assert again.feed() == []


def test_blocks_go_in_both_directions(person):
    leaver, blocked, blocker = person(), person(), person()
    leaver.block(blocked)
    blocker.block(leaver)
    settled(leaver, blocked, blocker)
    delete_account(leaver)
    settled(leaver, blocked, blocker)
    with on_shard(blocked.id):
        assert not BlockedBy.objects.filter(blocked_id=blocked.id).exists()
    with on_shard(blocker.id):
        assert not Block.objects.filter(blocker_id=blocker.id).exists()


def test_sessions_and_own_clients_end_and_so_do_their_tokens():
    leaver = Person()
    browser, user = Browser(leaver), Browser(Person())
    client = Client(browser)
    token = client.token_of(user)
    assert browser.is_logged_in()
    delete_account(leaver)
    assert not browser.is_logged_in()
    settled(leaver)
    eventually(lambda: not Application.objects.filter(client_id=client.id).exists())
    assert not AccessToken.objects.filter(token=token).exists()


@pytest.mark.parametrize("password", ["wrong", "x" * 200, ""])
def test_it_takes_the_password(person, password):
    one = person()
    answer = delete_account(one, password)
    assert answer.json()["meta"]["error_type"] == "APIInvalidParametersError"
    assert "password" in answer.json()["meta"]["error_message"]
    assert one.counts()["media"] == 0


def test_no_app_but_the_phone_may_delete_an_account():
    one = Person()
    one.token = Client(Browser(Person())).token_of(Browser(one))
    assert delete_account(one).json()["meta"]["error_type"] == "OAuthParameterException"
    assert one.counts()["media"] == 0


def test_it_is_done_in_steps(world, monkeypatch):
    leaver, friend, *_ = world
    for _ in range(2):
        leaver.take()
    for limit in ("accounts.graph.OTHERS_A_JOB", "photos.services.PHOTOS_A_JOB", "photos.likes.LIKES_A_JOB"):
        monkeypatch.setattr(limit, 1)
    from accounts import graph
    from photos import services

    assert services.delete_some_of(leaver.id)
    settled(leaver)
    assert leaver.counts()["media"] == 2
    assert graph.leave(leaver.id, 0) == friend.id
    assert graph.leave(leaver.id, friend.id) is None
    settled(leaver, friend)
    assert friend.counts()["follows"] == 0
