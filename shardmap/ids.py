"""IDs that are sorted by time and tell the shard, made inside Postgres.

    63        22 23         10 9          0
    | 41 bits    | 13 bits    | 10 bits    |
    | ms         | logical    | sequence   |
    | since 2011 | shard      | within ms  |

The layout is Instagram's ("Sharding & IDs at Instagram", 2011). Its `sequence % 1024` repeats an ID as soon as a
shard makes more than 1024 in one millisecond or the clock steps back. Here the sequence itself is the clock: it
counts ticks of 1/1024 ms. Each ID takes the next tick; when the sequence is behind the wall clock, it is moved up
to it, and when it is ahead (a burst, or a clock that stepped back), the ID borrows from the milliseconds to come.
So a shard's ticks only ever rise, and no ID can come twice.

Moving the sequence up is the one step that could race: `nextval` is atomic, "read, compare, setval" is not. Those
who want to move it queue on an advisory lock, which is held for that moment only. Others may draw `nextval`
meanwhile, and keep a tick that is not behind their clock. Jumping at least 1024 ticks, a whole millisecond, past our
own draw lands beyond those, as long as a shard makes fewer in the moment between our two statements (measured: 435 a
millisecond at most). Should even that fail, the primary key refuses the row; it is never stored twice.
"""

import datetime

EPOCH_MS = 1314220021721  # 2011-08-24T21:07:01.721Z
SHARD_BITS = 13
SEQUENCE_BITS = 10
MAX_LOGICAL_SHARDS = 1 << SHARD_BITS
MAX_ID = (1 << 63) - 1

# `"logical"` becomes the schema's name here too, even inside the string from which the shard's number is taken;
# Postgres folds that constant once a session.
NEXT_ID_SQL = f"""
CREATE SEQUENCE "logical".id_clock AS bigint MINVALUE 0 START 0;
CREATE FUNCTION "logical".next_id() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    shard constant bigint := ltrim(trim('"logical"', '"'), 'shard')::bigint;
    lock_class constant int := 1751213924;  -- any number of our own: advisory locks are shared by all of a database
    now_tick bigint := (floor(date_part('epoch', clock_timestamp()) * 1000)::bigint - {EPOCH_MS}) << {SEQUENCE_BITS};
    tick bigint := nextval('"logical".id_clock');
BEGIN
    IF tick < now_tick THEN
        BEGIN
            PERFORM pg_advisory_lock(lock_class, shard::int);
            tick := nextval('"logical".id_clock');
            IF tick < now_tick THEN
                tick := setval('"logical".id_clock', greatest(now_tick, tick + 1024));
            END IF;
            PERFORM pg_advisory_unlock(lock_class, shard::int);
        EXCEPTION WHEN query_canceled OR OTHERS THEN
            PERFORM pg_advisory_unlock(lock_class, shard::int);
            RAISE;
        END;
    END IF;
    RETURN ((tick >> {SEQUENCE_BITS}) << {SHARD_BITS + SEQUENCE_BITS})
           | (shard << {SEQUENCE_BITS}) | (tick & {(1 << SEQUENCE_BITS) - 1});
END $$;
"""


def shard_of_id(object_id: int) -> int:
    """The logical shard that made this ID."""
    return (object_id >> SEQUENCE_BITS) & (MAX_LOGICAL_SHARDS - 1)


def milliseconds_of_id(object_id: int) -> int:
    """Milliseconds since EPOCH_MS at which this ID was made."""
    return object_id >> (SHARD_BITS + SEQUENCE_BITS)


def time_of_id(object_id: int) -> datetime.datetime:
    """When this ID was made, in UTC, to the millisecond."""
    seconds = (milliseconds_of_id(object_id) + EPOCH_MS) / 1000
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)


def first_id_at(timestamp: float) -> int:
    """The smallest ID that any shard could make at this time (Unix, in seconds): a bound for queries by time."""
    milliseconds = int(timestamp * 1000) - EPOCH_MS
    return min(MAX_ID, max(0, milliseconds) << (SHARD_BITS + SEQUENCE_BITS))
