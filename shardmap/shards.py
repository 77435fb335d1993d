"""Logical shards: which one a user lives in, where it is, and how to address it.

A logical shard is a Postgres schema (`shard0042`) on one of a few physical databases. Sharded models name their
table with `sharded_table("photos_photo")`, which is `"logical"."photos_photo"`; inside `with on_shard(user_id):`
the router picks the connection and the backend swaps `"logical"` for the schema's name. That keeps the plain ORM,
and needs no session state, which pgbouncer's transaction pooling would mix up between clients.

See docs/sharding.md.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from itertools import count
from typing import TypeVar

from django.conf import settings
from django.db import OperationalError, transaction

PLACEHOLDER = '"logical"'
PUBLIC = '"public"'

SECONDS_OF_A_SWITCH = 3  # in which a mover has told the directory, unless it died

Result = TypeVar("Result")

# The logical shard that the code is on; and in a transaction, the database on which that began.
_current: ContextVar[tuple[int | None, str | None]] = ContextVar("logical_shard", default=(None, None))


class ShardMoved(OperationalError):
    """A logical shard is not where this process thought it was."""

    def __init__(self, shard: int) -> None:
        super().__init__(f"logical shard {shard} is not where it was")
        self.shard = shard


class OutsideShard(RuntimeError):
    """A sharded table was used without saying which shard is meant."""


def sharded_table(name: str) -> str:
    """The db_table of a model that lives in every logical shard."""
    return f'{PLACEHOLDER}."{name}"'


def physical_table(name: str) -> str:
    """The db_table of a model that each physical database has once, and the directory too.

    It can take part in the transactions of all logical shards there.
    """
    return f'{PUBLIC}."{name}"'


def is_sharded(model) -> bool:
    return model._meta.db_table.startswith(PLACEHOLDER)


def is_physical(model) -> bool:
    return model._meta.db_table.startswith(PUBLIC)


def shard_of(user_id: int) -> int:
    """The logical shard (0 … LOGICAL_SHARDS-1) where all that the user owns lives."""
    return user_id % settings.LOGICAL_SHARDS


def schema_name(shard: int) -> str:
    return f"shard{shard:04d}"


def current_shard() -> int:
    """The logical shard that the code around us is on."""
    shard, _ = _current.get()
    if shard is None:
        raise OutsideShard("a sharded table was used outside `with on_shard(user_id):`, so no shard is known")
    return shard


def current_database() -> str:
    """The alias of that shard's database; in a transaction always the one where it began, even if the shard moves."""
    _, pinned = _current.get()
    return pinned or database_of(current_shard())


def current_shard_or_none() -> int | None:
    return _current.get()[0]


@contextmanager
def on_logical_shard(shard: int | None) -> Iterator[None]:
    """Queries on sharded models inside go to this logical shard."""
    around, pinned = _current.get()
    token = _current.set((shard, pinned if shard == around else None))
    try:
        yield
    finally:
        _current.reset(token)


def on_shard(user_id: int):
    """Queries on sharded models inside go to the shard where this user's things live."""
    return on_logical_shard(shard_of(user_id))


@contextmanager
def shard_transaction(user_id: int) -> Iterator[None]:
    """`on_shard` with a transaction on the physical database that holds the shard."""
    with logical_shard_transaction(shard_of(user_id)):
        yield


@contextmanager
def logical_shard_transaction(shard: int) -> Iterator[None]:
    """`on_logical_shard` with a transaction on the physical database that holds the shard."""
    with on_logical_shard(shard):
        alias = current_database()
        token = _current.set((shard, alias))
        try:
            with transaction.atomic(using=alias):
                yield
        finally:
            _current.reset(token)


@cache
def placement() -> dict[int, str]:
    """Logical shard → database alias, as the directory says. Read once a process; `cache_clear()` makes it re-read."""
    from shardmap.models import LogicalShard

    return dict(LogicalShard.objects.values_list("shard", "database"))


def database_of(shard: int) -> str:
    """The alias of the physical database that holds a logical shard. Raises OutsideShard when it is not placed yet."""
    alias = placement().get(shard)
    if alias is None:
        # Perhaps it was created after this process first looked.
        placement.cache_clear()
        alias = placement().get(shard)
    if alias is None:
        raise OutsideShard(f"logical shard {shard} has no place yet: run `manage.py migrate_shards`")
    return alias


def following_moves(call: Callable[[], Result]) -> Result:
    """Does what may be done twice, and does it again where the shard is now if it turns out to have moved."""
    deadline = time.monotonic() + SECONDS_OF_A_SWITCH
    for attempt in count():
        try:
            return call()
        except ShardMoved as error:
            placement.cache_clear()
            if attempt and not _is_moving(error.shard):
                raise error.__cause__ or error from None  # it has not moved: something else is not there
            if attempt and time.monotonic() > deadline:
                raise
            if attempt:
                time.sleep(0.02)  # between two lines of the mover


def _is_moving(shard: int) -> bool:
    from shardmap.models import ShardMove

    return ShardMove.objects.filter(shard=shard).exists()
