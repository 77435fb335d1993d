"""Photos on their way to Twitter and Facebook: what is posted, and what each of their answers leads to."""

import datetime
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests
from django.conf import settings
from django.utils import timezone

from photos import networks, shares
from photos.models import Share, ShareAccount
from shardmap.shards import on_shard
from tests.notifications.test_push import got, phone
from tests.photos.social import SERVICES, Account, ended, share_of, shared
from tests.support import PASSWORD, Person, Refused, eventually, outbox, photo_id, settled
from workers.models import OutboxJob

pytestmark = pytest.mark.parametrize("service", SERVICES)


def test_caption_and_permalink_are_posted_when_the_photo_is_ready(person, service):
    one = person()
    account = Account(one, service)
    media, share = shared(one, service)
    (post,) = account.posts()
    assert share["status"] == "shared"
    assert share["post_id"].endswith(post["id"])
    assert post["link"] == media["link"]
    assert post["text"].startswith("At the sea")
    assert requests.get(post["link"], timeout=10).status_code == 200


def test_a_photo_is_shared_later_and_once(person, service):
    one = person()
    account, media = Account(one, service), one.take(caption="")
    for caption in ("At the sea", "At the lake"):
        one.post(f"media/{media['id']}", caption=caption)
        one.post(f"media/{media['id']}/shares", **{"share_to[]": [service]})
        settled(one)
    assert (len(account.posts()), account.post_requests()) == (1, 1)
    assert share_of(one, media, service)["status"] == "shared"


def test_a_job_that_comes_twice_even_at_once_posts_once(person, service):
    one = person()
    account = Account(one, service)
    media, _ = shared(one, service)
    key = {"photo_id": photo_id(media["id"]), "service": service}
    shares.share(one.id, **key)
    other = one.take(caption="Another one")
    with on_shard(one.id):
        Share.objects.create(photo_id=photo_id(other["id"]), service=service)

    def run(_: int) -> None:
        with suppress(shares.Taken):
            shares.share(one.id, photo_id(other["id"]), service)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert [post["link"] for post in account.posts()] == [media["link"], other["link"]]
    assert account.post_requests() == 2


def test_an_expired_link_is_marked_and_its_user_told(person, service):
    one = person()
    account, token = Account(one, service), phone(one)
    account.will_answer("expired")
    media, share = shared(one, service)
    title = networks.NETWORKS[service].title
    assert (share["status"], account.status()) == ("failed", "broken")
    assert share["message"] == f"{title} lets us in no longer. Please link your account again."
    _, again = shared(one, service)  # which does not even ask
    assert (again["status"], account.post_requests()) == ("failed", 1)
    settled(one)
    (payload,) = got(token)
    assert payload["aps"]["alert"]["body"].startswith(f"{title} lets us in no longer.")
    account.link()
    assert account.status() == "linked"
    one.post(f"media/{media['id']}/shares", **{"share_to[]": [service]})
    settled(one)
    assert share_of(one, media, service)["status"] == "shared"


def test_in_quiet_hours_its_user_is_told_later(person, service):
    one = person()
    account, token = Account(one, service), phone(one)
    around = [f"{timezone.now() + datetime.timedelta(hours=hours):%H:%M}" for hours in (-1, 1)]
    one.post("push/settings", quiet_from=around[0], quiet_to=around[1])
    account.will_answer("expired")
    shared(one, service)
    (later,) = [row for row in outbox() if row.job == "notifications.link_broken" and row.args["user_id"] == one.id]
    assert (got(token), later.due_at > timezone.now() + datetime.timedelta(minutes=50)) == ([], True)
    one.post("push/settings", quiet_from="00:00", quiet_to="00:00")
    OutboxJob.objects.using(later._state.db).filter(id=later.id).update(due_at=timezone.now())
    assert eventually(lambda: got(token))


def test_a_revoked_token_is_an_expired_one(person, service):
    one = person()
    account, token = Account(one, service, linked=False), phone(one)
    account.link(token="1-revoked")  # which is looked at once
    _, share = shared(one, service)
    assert (share["status"], account.status()) == ("failed", "broken")
    assert len(got(token)) == 1


def test_a_duplicate_counts_as_shared(person, service):
    one = person()
    account = Account(one, service)
    account.will_answer("duplicate")
    _, share = shared(one, service)
    assert (share["status"], share["post_id"]) == ("shared", "")


def row_of(one: Person, media: dict, service: str, **fields) -> Share | None:
    with on_shard(one.id):
        return Share.objects.filter(photo_id=photo_id(media["id"]), service=service, **fields).first()


def test_a_rate_limit_puts_it_off_until_the_service_says(person, service):
    one = person()
    account = Account(one, service)
    account.will_answer("limit")
    media = one.publish(**{"share_to[]": [service]})
    put_off = eventually(lambda: row_of(one, media, service, status="waiting", held_until__gt=timezone.now()))
    assert account.posts() == []
    assert put_off.held_until < timezone.now() + datetime.timedelta(seconds=6)
    assert ended(one, media, service)["status"] == "shared"
    assert timezone.now() > put_off.held_until
    assert (len(account.posts()), account.post_requests()) == (1, 2)


@pytest.mark.parametrize("limit", ["daily limit", "throttled"])
def test_a_rate_limit_is_one_whatever_it_is_called(person, service, limit):
    one = person()
    account, media = Account(one, service), one.take()
    account.will_answer(limit)
    one.post(f"media/{media['id']}/shares", **{"share_to[]": [service]})
    assert eventually(lambda: row_of(one, media, service, status="waiting", held_until__gt=timezone.now()))
    assert (account.posts(), account.post_requests()) == ([], 1)


@pytest.mark.parametrize("status", ["waiting", "posting"])
def test_what_is_put_off_has_a_job_of_its_own_and_others_leave_it(person, service, status):
    one = person()
    account, media = Account(one, service), one.take()
    later = timezone.now() + datetime.timedelta(minutes=10)
    with on_shard(one.id):
        Share.objects.create(photo_id=photo_id(media["id"]), service=service, status=status, held_until=later)
    shares.share(one.id, photo_id(media["id"]), service)
    assert row_of(one, media, service).held_until == later
    assert account.post_requests() == 0


def test_a_rate_limit_that_does_not_end_for_a_day_is_the_end(person, service):
    one = person()
    account, media = Account(one, service), one.take()
    account.will_answer("limit")
    with on_shard(one.id):
        yesterday = timezone.now() - datetime.timedelta(days=1)
        Share.objects.create(photo_id=photo_id(media["id"]), service=service, wished_at=yesterday)
    shares.share(one.id, photo_id(media["id"]), service)
    assert share_of(one, media, service)["message"] == "The service took nothing from us for a day."
    assert account.posts() == []


def test_a_long_caption_fits(person, service):
    one = person()
    account = Account(one, service)
    media = one.publish(caption="word " * 400, **{"share_to[]": [service]})
    settled(one)
    (post,) = account.posts()
    if service == "twitter":
        assert len(post["text"]) == 140
        assert post["text"].endswith(f"… {media['link']}")
    else:
        assert post["text"].strip() == ("word " * 400).strip()


def test_what_the_service_refuses_fails_with_its_words(person, service):
    one = person()
    account = Account(one, service)
    account.will_answer("refuse")
    _, share = shared(one, service)
    words = {"twitter": "Your account is suspended", "facebook": "Permissions error"}[service]
    assert share["status"] == "failed"
    assert words in share["message"]
    assert account.status() == "linked"


def test_an_error_of_the_service_is_tried_again(person, service):
    one = person()
    account = Account(one, service)
    account.will_answer("error", "error")
    _, share = shared(one, service)
    assert (share["status"], len(account.posts()), account.post_requests()) == ("shared", 1, 3)


def test_an_answer_that_is_lost_is_no_second_post_even_with_another_caption(person, service):
    one = person()
    account = Account(one, service)
    account.will_answer("lost")
    account.will_answer("error", "odd", to="find")
    media = one.publish(caption="At the sea", **{"share_to[]": [service]})
    (posted,) = eventually(account.posts)
    one.post(f"media/{media['id']}", caption="At the lake")
    share = ended(one, media, service, 60)  # three tries fail
    assert share["post_id"].endswith(posted["id"])
    assert (account.posts(), account.post_requests()) == ([posted], 1)


def test_what_was_posted_before_it_failed_is_found_when_it_is_shared_again(person, service):
    one = person()
    account = Account(one, service)
    account.will_answer("lost")
    account.will_answer("expired", to="find")
    media, share = shared(one, service)
    assert (share["status"], len(account.posts())) == ("failed", 1)
    one.post(f"media/{media['id']}", caption="At the lake")
    account.link()
    one.post(f"media/{media['id']}/shares", **{"share_to[]": [service]})
    settled(one)
    assert share_of(one, media, service)["status"] == "shared"
    assert (len(account.posts()), account.post_requests()) == (1, 1)


def test_credentials_that_no_key_decrypts_are_a_broken_link(person, service):
    one = person()
    account, media = Account(one, service), one.take()
    with on_shard(one.id):
        ShareAccount.objects.filter(user_id=one.id).update(credentials="of a key that is gone")
    one.post(f"media/{media['id']}/shares", **{"share_to[]": [service]})
    settled(one)
    assert (share_of(one, media, service)["status"], account.status()) == ("failed", "broken")


def test_a_photo_that_is_none_or_gone_is_not_shared(person, service):
    one = person()
    account = Account(one, service)
    media = one.publish(b"no photo", **{"share_to[]": [service]})
    settled(one)
    assert share_of(one, media, service)["message"] == "The photo was rejected."
    with pytest.raises(Refused, match="media_id: the photo was rejected"):
        one.post(f"media/{media['id']}/shares", **{"share_to[]": [service]})
    gone = one.take()
    one.delete(f"media/{gone['id']}")
    with pytest.raises(Refused, match="there is no media"):
        one.post(f"media/{gone['id']}/shares", **{"share_to[]": [service]})
    assert account.posts() == []


def test_what_was_shared_is_forgotten_with_the_photo_and_the_user(person, service):
    one = person()
    account = Account(one, service)
    media, _ = shared(one, service)
    other, _ = shared(one, service)
    one.delete(f"media/{media['id']}")
    settled(one)

    def rows() -> list[int]:
        both = [photo_id(media["id"]), photo_id(other["id"])]
        with on_shard(one.id):
            return list(Share.objects.filter(photo_id__in=both).values_list("photo_id", flat=True))

    assert rows() == [photo_id(other["id"])]
    one.call("DELETE", "accounts", form={"password": PASSWORD})
    settled(one)
    assert (rows(), len(account.posts())) == ([], 2)


def test_only_its_owner_shares_a_photo_and_reads_how_that_went(person, service):
    one, other = person(), person()
    Account(other, service)
    media = one.take()
    for method in ("GET", "POST"):
        answer = other.call(method, f"media/{media['id']}/shares", form={"share_to[]": [service]})
        assert answer.json()["meta"]["error_message"] == "only its owner may share a photo"


def test_a_service_that_is_not_linked_is_named(person, service):
    one = person()
    media, upload_id = one.take(), one.upload(b"x")
    calls = {f"media/{media['id']}/shares": {}, "media": {"upload_id": upload_id}}
    for path, form in calls.items():
        with pytest.raises(Refused, match=f"share_to: you have linked no account at {service}"):
            one.post(path, **form, **{"share_to[]": [service]})
    with pytest.raises(Refused, match="share_to: Input should be 'twitter' or 'facebook'"):
        one.post(f"media/{media['id']}/shares", **{"share_to[]": [service, "myspace"]})
    with pytest.raises(Refused, match="'share_to': has a character that is not text"):
        one.post(f"media/{media['id']}/shares", **{"share_to[]": ["\0", service]})
    assert one.get(f"media/{media['id']}/shares") == []


def test_it_is_a_list_in_json_too(person, service):
    one = person()
    Account(one, service)
    media = one.take()
    url = f"{settings.SITE_URL}/v1/media/{media['id']}/shares"
    headers = {"Authorization": f"Bearer {one.token}"}
    answer = requests.post(url, json={"share_to": [service, service]}, headers=headers, timeout=10).json()
    assert [share["service"] for share in answer["data"]] == [service]
