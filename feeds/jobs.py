"""What keeps the feeds up to date."""

from feeds import activity, home, popular, services
from photos import likes
from workers.mirror import mirror
from workers.registry import job

job("feeds.fan_out", queue="urgent")(services.fan_out)
job("feeds.push_chunk")(services.push_chunk)
job("feeds.remove_chunk")(services.remove_chunk)
job("feeds.said")(activity.said)


@job("feeds.remove_photo", queue="urgent")
def remove_photo(owner_id: int, photo_id: int) -> None:
    services.remove_photo(owner_id, photo_id)
    popular.rank(owner_id, photo_id)
    activity.forget_photo(owner_id, photo_id)


@job("feeds.liked")
def liked(user_id: int, owner_id: int, photo_id: int) -> None:
    """Brings the popular page and the owner's activity up to what the photo's shard says."""

    def read() -> tuple[int, bool]:
        state = likes.state_of(user_id, photo_id, owner_id)
        return popular.rounded(state.likes), state.is_liked

    def write(state: tuple[int, bool]) -> None:
        count, is_liked = state
        popular.put(owner_id, photo_id, count)
        activity.set_like(user_id, owner_id, photo_id, is_liked)

    mirror(read, write)


@job("feeds.follow_changed", queue="urgent")
def follow_changed(follower_id: int, followee_id: int) -> None:
    services.follow_changed(follower_id, followee_id)
    activity.edge_changed(follower_id, followee_id)


@job("feeds.erase")
def erase(user_id: int) -> None:
    home.drop(user_id)
    activity.erase(user_id)
