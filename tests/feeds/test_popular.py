import pytest
from django.conf import settings

from feeds import popular
from shardmap.redis_client import redis_client
from tests.support import photo_id, settled

pytestmark = pytest.mark.alone


def found(viewer) -> list[str]:
    return [media["id"] for media in viewer.get("media/popular", count=100)]


def like(one, media: dict) -> None:
    one.post(f"media/{media['id']}/likes")


@pytest.fixture
def fans(person):
    return [person() for _ in range(3)]


def test_what_more_people_like_stands_higher(person, fans):
    one = person()
    little, much, nothing = (one.take() for _ in range(3))
    for fan in fans:
        like(fan, much)
    like(fans[0], little)
    settled(one, *fans)
    page = found(person())
    assert page.index(much["id"]) < page.index(little["id"])
    assert nothing["id"] not in page


def test_a_like_taken_back_takes_the_photo_off(person, fans):
    one = person()
    media = one.take()
    like(fans[0], media)
    settled(one, fans[0])
    assert media["id"] in found(one)
    fans[0].delete(f"media/{media['id']}/likes")
    settled(one, fans[0])
    assert media["id"] not in found(one)


def test_who_may_not_see_a_photo_does_not_find_it(person, fans):
    public, private, blocked = person(), person(), person()
    media = public.take()
    hidden = private.take()
    private.post("accounts/edit", is_private="true")
    for liked in (media, hidden):
        like(public if liked is media else private, liked)
    public.block(blocked)
    settled(public, private, blocked)
    assert media["id"] in found(fans[0])
    assert media["id"] not in found(blocked)
    assert hidden["id"] not in found(fans[0])
    public.delete(f"media/{media['id']}")
    assert media["id"] not in found(fans[0])
    settled(public)
    assert redis_client(settings.REDIS_FEEDS_URL).zscore(popular.KEY, media["id"]) is None


def test_the_job_may_run_twice(person, fans):
    one = person()
    media = one.take()
    like(fans[0], media)
    settled(one, fans[0])
    before = found(one)
    for _ in range(2):
        popular.rank(one.id, photo_id(media["id"]))
    assert found(one) == before


def test_without_redis_the_page_is_empty_and_no_error(person, stopped):
    one = person()
    stopped("redis_feeds")
    assert found(one) == []
