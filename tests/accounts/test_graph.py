import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from accounts import graph
from accounts.counts import add_to_counts
from accounts.models import Block, BlockedBy, Counts, Edge, Follow, Follower
from shardmap.shards import on_shard, shard_transaction
from tests.support import Refused, settled
from workers.outbox import enqueue


def edges(follower, followee) -> tuple:
    """Both rows of an edge: (active, version) at the follower's, (active, version) at the followee's."""
    with on_shard(follower.id):
        near = Follow.objects.filter(follower_id=follower.id, followee_id=followee.id).first()
    with on_shard(followee.id):
        far = Follower.objects.filter(follower_id=follower.id, followee_id=followee.id).first()
    return tuple(row and (row.status == Edge.FOLLOWS, row.version) for row in (near, far))


def counted(one) -> tuple[int, int]:
    """(follows, followed_by), from the shard."""
    with on_shard(one.id):
        row = Counts.objects.filter(user_id=one.id).first()
    return (row.follows, row.followed_by) if row else (0, 0)


def test_following_writes_both_edges_and_both_counts(person):
    one, other = person(), person()
    assert one.follow(other)["outgoing_status"] == "follows"
    settled(one, other)
    assert edges(one, other) == ((True, 1), (True, 1))
    assert (one.counts()["follows"], one.counts()["followed_by"]) == (1, 0)
    assert (other.counts()["follows"], other.counts()["followed_by"]) == (0, 1)
    assert other.get(f"users/{one.id}/relationship")["incoming_status"] == "followed_by"


def test_following_twice_and_unfollowing_twice_count_once(person):
    one, other = person(), person()
    one.follow(other)
    one.follow(other)
    settled(one, other)
    assert (counted(one), counted(other)) == ((1, 0), (0, 1))
    one.unfollow(other)
    assert one.unfollow(other)["outgoing_status"] == "none"
    settled(one, other)
    assert (counted(one), counted(other)) == ((0, 0), (0, 0))


def test_unfollowing_somebody_never_followed_changes_nothing(person):
    one, other = person(), person()
    one.unfollow(other)
    assert edges(one, other) == (None, None)
    assert counted(one) == (0, 0)


def test_following_oneself_is_refused(person):
    one = person()
    with pytest.raises(Refused) as refused:
        one.follow(one)
    assert refused.value.meta["error_type"] == "APIInvalidParametersError"
    assert "yourself" in refused.value.meta["error_message"]


def test_following_a_user_who_does_not_exist_is_refused(person):
    with pytest.raises(Refused) as refused:
        person().post("users/999999999/relationship", action="follow")
    assert refused.value.meta["error_type"] == "APINotFoundError"


@pytest.mark.parametrize("action", ["", "like", "FOLLOW"])
def test_an_unknown_action_is_named(person, action):
    with pytest.raises(Refused) as refused:
        person().post(f"users/{person().id}/relationship", action=action)
    assert "action" in refused.value.meta["error_message"]


def test_nobody_follows_more_than_the_most_allowed(person, monkeypatch):
    one, other, third = person(), person(), person()
    monkeypatch.setattr(graph, "MAX_FOLLOWS", 1)
    graph.follow(one.id, other.id)
    graph.follow(one.id, other.id)  # again: allowed
    with pytest.raises(graph.NotAllowed):
        graph.follow(one.id, third.id)


def test_unfollow_ends_at_the_last_word_too(person):
    one, other = person(), person()
    for _ in range(3):
        one.follow(other)
        one.unfollow(other)
    settled(one, other)
    assert edges(one, other) == ((False, 6), (False, 6))
    assert (counted(one), counted(other)) == ((0, 0), (0, 0))


def at_once(*calls) -> None:
    """Runs the calls in threads of their own, which begin together."""
    start = threading.Barrier(len(calls))

    def run(call) -> None:
        start.wait(10)
        call()

    with ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(run, call) for call in calls]:
            done.result(60)


def test_follows_and_unfollows_from_many_connections_leave_counts_equal_to_the_rows(person):
    one, other = person(), person()

    def tap(n: int) -> None:
        for _ in range(5):
            (one.follow if n % 2 else one.unfollow)(other)

    at_once(*(partial(tap, n) for n in range(8)))
    settled(one, other)
    near, far = edges(one, other)
    assert near == far
    following = int(near[0])
    assert (counted(one), counted(other)) == ((following, 0), (0, following))
    assert one.counts()["follows"] == other.counts()["followed_by"] == following


@pytest.mark.parametrize("last", ["block", "unblock"])
def test_blocks_and_follows_from_many_connections_leave_counts_equal_to_the_rows(person, last):
    one, other = person(), person()

    def answer(blocker, blocked, *actions: str) -> None:
        for action in actions * 4:
            response = blocker.call("POST", f"users/{blocked.id}/relationship", form={"action": action})
            assert response.status_code in (200, 400)  # refused while there is a block

    at_once(
        *[partial(answer, one, other, "follow", "unfollow")] * 3,
        *[partial(answer, other, one, "follow")] * 2,
        *[partial(answer, other, one, "block", "unblock")] * 2,
    )
    answer(other, one, last)
    settled(one, other)
    rows = [edges(one, other), edges(other, one)]
    assert all(near == far for near, far in rows)
    there, back = (int(bool(near and near[0])) for near, _ in rows)
    assert (counted(one), counted(other)) == ((there, back), (back, there))
    assert (one.counts()["follows"], other.counts()["follows"]) == (there, back)
    with on_shard(other.id):
        blocked = Block.objects.filter(blocker_id=other.id).count()
    with on_shard(one.id):
        assert BlockedBy.objects.filter(blocked_id=one.id).count() == blocked == (last == "block")
    assert not (blocked and (there or back))


@pytest.mark.parametrize("private", [True, False])
def test_requests_while_an_account_goes_private_and_public_end_as_it_is_at_last(person, private):
    owner, asking = person(), [person() for _ in range(6)]

    def toggle() -> None:
        for now in (True, False) * 3:
            owner.post("accounts/edit", is_private=str(now).lower())

    def tap(one) -> None:
        for _ in range(3):
            one.follow(owner)
            one.unfollow(owner)
        one.follow(owner)

    at_once(toggle, toggle, *(partial(tap, one) for one in asking))
    owner.post("accounts/edit", is_private=str(private).lower())
    settled(owner, *asking)
    with on_shard(owner.id):
        followers = Follower.objects.filter(followee_id=owner.id)
        following = set(followers.filter(status=Edge.FOLLOWS).values_list("follower_id", flat=True))
        requested = set(followers.filter(status=Edge.REQUESTED).values_list("follower_id", flat=True))
    assert following | requested == {one.id for one in asking}
    assert private or not requested
    assert counted(owner) == (0, len(following))
    for one in asking:
        near, far = edges(one, owner)
        assert near == far == (one.id in following, near[1])
        assert counted(one) == (int(one.id in following), 0)


def test_blocking_ends_both_follows_and_hides_the_blocker(person):
    blocker, blocked = person(), person()
    blocker.follow(blocked)
    blocked.follow(blocker)
    settled(blocker, blocked)
    media = blocker.take()
    assert blocker.block(blocked)["incoming_status"] == "blocked_by_you"
    for path in (f"users/{blocker.id}", f"users/{blocker.id}/media/recent", f"media/{media['id']}"):
        with pytest.raises(Refused) as refused:
            blocked.get(path)
        assert refused.value.meta["error_type"] == "APINotAllowedError"
    with pytest.raises(Refused):
        blocked.follow(blocker)
    settled(blocker, blocked)
    assert counted(blocker) == counted(blocked) == (0, 0)
    assert edges(blocked, blocker) == ((False, 2), (False, 2))


def test_unblocking_shows_the_blocker_again_but_restores_no_follow(person):
    blocker, blocked = person(), person()
    blocked.follow(blocker)
    blocker.block(blocked)
    blocker.post(f"users/{blocked.id}/relationship", action="unblock")
    assert blocked.get(f"users/{blocker.id}")["id"] == str(blocker.id)
    assert blocked.get(f"users/{blocker.id}/relationship")["outgoing_status"] == "none"
    blocked.follow(blocker)
    settled(blocker, blocked)
    assert counted(blocker) == (0, 1)


def test_a_follow_that_commits_after_the_block_is_ended_by_its_job(person):
    blocker, blocked = person(), person()
    blocker.block(blocked)
    settled(blocker, blocked)
    with shard_transaction(blocked.id):  # as a request that had looked for blocks just before
        Follow.objects.create(follower_id=blocked.id, followee_id=blocker.id, status=Edge.FOLLOWS, version=1)
        add_to_counts(blocked.id, follows=+1)
        enqueue("accounts.mirror_follow", follower_id=blocked.id, followee_id=blocker.id)
    settled(blocker, blocked)
    assert edges(blocked, blocker) == ((False, 2), (False, 2))
    assert counted(blocker) == counted(blocked) == (0, 0)


@pytest.mark.parametrize(
    "order", [*itertools.permutations([0, 1, 2]), (2, 2, 2), (0, 0, 2, 2), (2, 1, 0, 2, 1, 0)], ids=str
)
def test_follow_unfollow_follow_ends_at_the_last_word_in_whatever_order_the_jobs_come(
    person, monkeypatch, order, no_workers
):
    one, other = person(), person()
    # What each of the three jobs finds at the follower's when it looks there.
    graph.follow(one.id, other.id)
    graph.unfollow(one.id, other.id)
    graph.follow(one.id, other.id)
    seen = [(Edge.FOLLOWS, 1), (Edge.NONE, 2), (Edge.FOLLOWS, 3)]
    truth = Follow.objects.get
    for index in order:
        status, version = seen[index]
        row = Follow(follower_id=one.id, followee_id=other.id, status=status, version=version)
        monkeypatch.setattr(Follow.objects, "get", lambda row=row, **key: row)
        graph.mirror_follow(one.id, other.id)
    monkeypatch.setattr(Follow.objects, "get", truth)
    assert edges(one, other) == ((True, 3), (True, 3))
    assert (counted(one), counted(other)) == ((1, 0), (0, 1))
