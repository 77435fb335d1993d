import contextlib
import itertools
import secrets

import pytest

from photos import services, tags
from photos.models import Tag, Tagging
from tests.support import Refused, eventually, photo_id, settled


def new_tag(prefix: str = "tag") -> str:
    return f"{prefix}{secrets.token_hex(5)}"


def refused(call, *args, **kwargs) -> dict:
    with pytest.raises(Refused) as error:
        call(*args, **kwargs)
    return error.value.meta


def listed(viewer, name: str, **params) -> list[str]:
    return [media["id"] for media in viewer.get(f"tags/{name}/media/recent", **params)]


def counted(viewer, name: str) -> int:
    return viewer.get(f"tags/{name}")["media_count"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#one and #Two", ["one", "two"]),
        ("#a#b", ["a"]),
        ("mail#not http://x/#frag", ["frag"]),
        ("#café #東京 #под_вечер #2026", ["café", "東京", "под_вечер", "2026"]),
        ("#Straße #STRASSE", ["strasse"]),
        ("# #! ##double", ["double"]),
        ("#tag, #tag. (#tag)", ["tag"]),
        (f"#{'x' * 101}", []),
        ("", []),
    ],
)
def test_what_is_a_tag(text, found):
    assert list(tags.tags_in(text)) == found


def test_a_photo_is_listed_under_its_tags_and_counted(person):
    one, viewer, name = person(), person(), new_tag()
    media = one.take(caption=f"Look #{name.upper()} #{name}")
    settled(one)
    assert media["tags"] == [name]
    assert listed(viewer, name) == listed(viewer, name.upper()) == [media["id"]]
    assert counted(viewer, name) == 1


def test_tags_of_the_owners_comments_count_and_those_of_others_do_not(person):
    one, other, mine, theirs = person(), person(), new_tag(), new_tag()
    media = one.take()
    said = one.post(f"media/{media['id']}/comments", text=f"forgot #{mine}")
    other.post(f"media/{media['id']}/comments", text=f"nice #{theirs}")
    settled(one, other)
    assert listed(other, mine) == [media["id"]]
    assert one.get(f"media/{media['id']}")["tags"] == [mine]
    assert refused(other.get, f"tags/{theirs}")["error_type"] == "APINotFoundError"
    one.delete(f"media/{media['id']}/comments/{said['id']}")
    settled(one)
    assert (listed(other, mine), counted(other, mine)) == ([], 0)


def test_an_edited_caption_changes_the_tags(person):
    one, before, after = person(), new_tag(), new_tag()
    media = one.take(caption=f"#{before}")
    settled(one)
    edited = one.post(f"media/{media['id']}", caption=f"better #{after}")
    assert edited["caption"]["text"] == f"better #{after}"
    settled(one)
    assert (listed(one, before), counted(one, before)) == ([], 0)
    assert (listed(one, after), counted(one, after)) == ([media["id"]], 1)
    assert one.get(f"media/{media['id']}")["tags"] == [after]
    assert one.post(f"media/{media['id']}")["caption"] is None


def test_only_its_owner_edits_a_caption(person):
    one, other = person(), person()
    media = one.take(caption="mine")
    assert refused(other.post, f"media/{media['id']}", caption="yours")["error_type"] == "APINotAllowedError"
    assert one.get(f"media/{media['id']}")["caption"]["text"] == "mine"


def test_a_deleted_photo_is_under_no_tag(person):
    one, name = person(), new_tag()
    media = one.take(caption=f"#{name}")
    settled(one)
    one.delete(f"media/{media['id']}")
    settled(one)
    assert (listed(one, name), counted(one, name)) == ([], 0)


def test_photos_of_a_tag_come_latest_first_in_pages(person):
    one, name = person(), new_tag()
    taken = []
    for _ in range(4):
        taken.append(one.take(caption=f"#{name}")["id"])
        settled(one)
    first = one.call("GET", f"tags/{name}/media/recent", params={"count": 3}).json()
    assert [media["id"] for media in first["data"]] == taken[:0:-1]
    cursor = first["pagination"]["next_max_tag_id"]
    assert listed(one, name, max_tag_id=cursor) == [taken[0]]
    assert listed(one, name, min_tag_id=cursor) == taken[:1:-1]


def test_a_private_photo_is_under_its_tags_for_followers_alone(person):
    one, follower, stranger, name = person(), person(), person(), new_tag()
    follower.follow(one)
    settled(one, follower)
    one.post("accounts/edit", is_private="true")
    media = one.take(caption=f"#{name}")
    settled(one)
    assert listed(follower, name) == listed(one, name) == [media["id"]]
    assert listed(stranger, name) == []


def test_search_finds_by_prefix_the_tag_itself_first_then_the_most_used(person):
    one, prefix = person(), new_tag("find_")
    for name, photos in ((prefix, 1), (f"{prefix}few", 1), (f"{prefix}many", 2)):
        for _ in range(photos):
            one.publish(caption=f"#{name}")
    settled(one)
    eventually(lambda: len(one.get("tags/search", q=prefix)) == 3)  # by jobs that name tags, and no user
    found = one.get("tags/search", q=prefix.upper())
    assert [(tag["name"], tag["media_count"]) for tag in found] == [
        (prefix, 1),
        (f"{prefix}many", 2),
        (f"{prefix}few", 1),
    ]
    assert len(one.get("tags/search", q=prefix, count=2)) == 2


@pytest.mark.parametrize("q", ["%", "a b", "#", "é%"])
def test_a_search_for_what_cannot_be_a_tag_finds_nothing(person, q):
    assert person().get("tags/search", q=q) == []


@pytest.mark.parametrize("name", ["unheard_of_" + "x" * 10, "a b", "%"])
def test_an_unknown_tag(person, name):
    assert refused(person().get, f"tags/{name}")["error_type"] == "APINotFoundError"
    assert listed(person(), name) == []


def test_a_shortcode_is_the_id_in_base_64(person):
    one = person()
    media = one.take()
    code = media["link"].rstrip("/").rpartition("/")[2]
    assert one.get(f"media/shortcode/{code}")["id"] == media["id"]


@pytest.mark.parametrize("code", ["A", "_", "zzzzzzzzzzz", "zzzzzzzzzzzz", "a b", "é"])
def test_shortcodes_of_nothing(person, code):
    assert refused(person().get, f"media/shortcode/{code}")["error_type"] == "APINotFoundError"


STEPS = ["_note", "_list", "_unlist", "_wanted"]


@pytest.mark.parametrize(("step", "call"), list(itertools.product(STEPS, range(3))))
def test_a_crash_at_any_step_of_tagging_is_made_good_by_the_next_try(person, monkeypatch, no_workers, step, call):
    one, gone, kept, new = person(), new_tag(), new_tag(), new_tag()
    media = one.publish(caption=f"#{gone} #{kept}")
    photo = photo_id(media["id"])
    services.process(one.id, photo)
    tags.retag(one.id, photo)
    one.post(f"media/{media['id']}", caption=f"#{kept} #{new}")
    original, calls = getattr(tags, step), itertools.count()

    def crash(*args, **kwargs):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(tags, step, crash)
        with contextlib.suppress(KeyboardInterrupt):
            tags.retag(one.id, photo)
    tags.retag(one.id, photo)
    for name, count in ((gone, 0), (kept, 1), (new, 1)):
        with tags._on_shard_of(name):
            assert Tagging.objects.filter(name=name).count() == count
            assert sum(Tag.objects.filter(name=name).values_list("media_count", flat=True)) == count
