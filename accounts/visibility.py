"""Who may see what; decided here and nowhere else.

Nobody sees anything of somebody with whom there is a block, in either direction. What a private account has
published is for its owner and its followers; its name and its counts are for all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from accounts.cached import BLOCKS, EDGES, USERS
from accounts.errors import NotAllowed
from shardmap import cache

REFUSAL = "you cannot view this resource"


def sight_of(viewer_id: int | None) -> tuple[tuple[Any, Iterable[int]], ...]:
    """What `cache.fetch` has to bring along so that `Sight` can be made: `users, *sight = fetch(…, *sight_of(…))`.

    `viewer_id` is None for a client that asks for nobody.
    """
    ids = [] if viewer_id is None else [viewer_id]
    return (EDGES, ids), (BLOCKS, ids)


def known(viewer_id: int | None, user_ids: Iterable[int]) -> dict[int, dict]:
    """Those of these users of whom the viewer may know, by ID, as values of kind USERS."""
    users, *sight = cache.fetch((USERS, user_ids), *sight_of(viewer_id))
    viewer = Sight.of(viewer_id, *sight)
    return {user_id: user for user_id, user in users.items() if viewer.knows(user)}


@dataclass(frozen=True)
class Sight:
    """What one viewer may see; nobody (`viewer_id` None) sees what is public."""

    viewer_id: int | None
    followees: frozenset[int]
    hidden: frozenset[int]

    @classmethod
    def of(cls, viewer_id: int | None, edges: dict[int, dict], blocks: dict[int, dict]) -> "Sight":
        """From the last two answers of a `fetch` with `sight_of`."""
        if viewer_id is None:
            return NOBODY
        return cls(viewer_id, edges[viewer_id]["follows"], blocks[viewer_id]["hidden"])

    def knows(self, user: dict) -> bool:
        """Whether the viewer may see that this user (a value of kind USERS) exists."""
        return user["id"] not in self.hidden

    def sees(self, owner: dict) -> bool:
        """Whether the viewer may see what this user has published."""
        if owner["id"] == self.viewer_id:
            return True
        return self.knows(owner) and (not owner["is_private"] or owner["id"] in self.followees)

    def has_in_feed(self, owner_id: int) -> bool:
        """Whether what this user publishes belongs into the viewer's feed."""
        return owner_id == self.viewer_id or (owner_id in self.followees and owner_id not in self.hidden)

    def require_known(self, user: dict) -> None:
        """Raises NotAllowed unless `knows`."""
        if not self.knows(user):
            raise NotAllowed(REFUSAL)

    def require_seen(self, owner: dict) -> None:
        """Raises NotAllowed unless `sees`."""
        if not self.sees(owner):
            raise NotAllowed(REFUSAL)


NOBODY = Sight(None, frozenset(), frozenset())
