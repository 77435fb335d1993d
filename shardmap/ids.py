"""IDs that are sorted by time and tell the shard, made inside Postgres.

    63        22 23         10 9          0
    | 41 bits    | 13 bits    | 10 bits    |
    | ms         | logical    | sequence   |
    | since 2011 | shard      | within ms  |

The layout is Instagram's ("Sharding & IDs at Instagram", 2011). Its `sequence % 1024` repeats an ID as soon as a
shard makes more than 1024 in one millisecond or the clock steps back. Here a sequence is the clock (`id_ticks`): it
counts ticks of 1/1024 ms, and each ID is the next tick. What keeps a tick from coming twice:

- A tick is good only in a millisecond that was opened. Opening is done by one session at a time, always for a later
  millisecond than any that was opened before. `id_opened` remembers that, and only then the clock is moved there.
- Who draws a tick of the current millisecond has an ID, without a lock. All others try for the lock: the clock is
  behind, the millisecond is used up, or the wall clock has stepped back. Whoever has it draws again, and opens the
  present millisecond, or the one after the last: the ID borrows from the time to come. Who does not get it draws once
  more when another millisecond has been opened. They do not queue: a lock that is handed to a session that sleeps is
  held until that is awake, while all others wait (measured with 8 sessions: a quarter of the IDs a second, at times).
- Draws alone must not carry the clock on into a millisecond that nobody has opened. So the last quarter of each is
  not given out: a session draws there twice at most, and to get across takes more sessions than Postgres has
  connections.

A crash, a promoted replica, a restored backup: what the old server gave out last may be missing from `id_opened`, and
the new server's clock may be behind the old one's. `id_ticks` is an unlogged sequence, which Postgres resets to 0 in
all these cases (and not when it was shut down in order), so the first ID afterwards notices. It is SKIP_MS later than
the last one that this server knows of, and than the last transaction that the replica has got.

The lock belongs to a subtransaction that always ends in an error, for then Postgres itself releases it, at once, also
when the statement is cancelled at any point; sequences do not roll back. (A session's lock could be left behind in a
pooled connection; a transaction's would stop all others until COMMIT.)
"""

import datetime

EPOCH_MS = 1314220021721  # 2011-08-24T21:07:01.721Z
SHARD_BITS = 13
SEQUENCE_BITS = 10
MAX_LOGICAL_SHARDS = 1 << SHARD_BITS
MAX_ID = (1 << 63) - 1

TICKS = 1 << SEQUENCE_BITS  # of a millisecond
# More than twice max_connections in deploy/postgres; and no shard makes 768 IDs in a millisecond.
UNUSED_TICKS = TICKS // 4
TRIES = 50  # for the lock, a millisecond each, before it is queued for
# More than a replica is behind, and than Postgres takes to write its log to disk without a COMMIT (0.6 s).
SKIP_MS = 5_000

# Applied by migrations/0004. To change it, move this text there, so that it stays what it was, and add a migration.
# `"logical"` becomes the schema's name here too, even inside the string from which the shard's number is taken; and
# Postgres folds that into a constant. It inlines next_id(), so that reading the clock and drawing the tick cost no
# snapshots, which they would in PL/pgSQL.
NEXT_ID_SQL = f"""
CREATE OR REPLACE FUNCTION "logical".id_of_tick(now_tick bigint, tick bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    -- The lock's class is any number of our own: advisory locks are shared by all of a database.
    lock_class constant int := 1751213924;
    shard constant int := ltrim(trim('"logical"', '"'), 'shard')::int;
    tries int := 0;
    opened bigint;
    drawn_in bigint := 0;
    lost_after timestamptz;
BEGIN
    WHILE tick - now_tick NOT BETWEEN 0 AND {TICKS - UNUSED_TICKS - 1} LOOP
        tries := tries + 1;
        BEGIN
            IF tries = {TRIES} THEN
                PERFORM pg_advisory_xact_lock(lock_class, shard);
            END IF;
            IF pg_try_advisory_xact_lock(lock_class, shard) THEN
                opened := pg_sequence_last_value('"logical".id_opened');
                tick := nextval('"logical".id_ticks');
                IF tick < now_tick OR tick - opened NOT BETWEEN 0 AND {TICKS - UNUSED_TICKS - 1} THEN
                    IF tick < opened THEN  -- Postgres has reset the clock
                        lost_after := pg_last_xact_replay_timestamp();
                        opened := {SKIP_MS * TICKS} + greatest(opened,
                            floor(date_part('epoch', lost_after) * 1000 - {EPOCH_MS})::bigint << {SEQUENCE_BITS});
                    END IF;
                    tick := greatest(now_tick, opened + {TICKS});
                    PERFORM setval('"logical".id_opened', tick);
                    PERFORM setval('"logical".id_ticks', tick);
                END IF;
                RAISE SQLSTATE 'UNLCK';
            END IF;
        EXCEPTION WHEN SQLSTATE 'UNLCK' THEN
            EXIT;
        END;
        -- Somebody else has the lock, and will have opened a millisecond in a moment.
        opened := pg_sequence_last_value('"logical".id_opened');
        IF opened >= now_tick AND opened > drawn_in THEN
            drawn_in := opened;
            tick := nextval('"logical".id_ticks');
            EXIT WHEN tick - opened BETWEEN 0 AND {TICKS - UNUSED_TICKS - 1};
        ELSE
            PERFORM pg_sleep(0.001);
        END IF;
    END LOOP;
    RETURN ((tick >> {SEQUENCE_BITS}) << {SHARD_BITS + SEQUENCE_BITS}) | (shard::bigint << {SEQUENCE_BITS})
           | (tick & {TICKS - 1});
END $$;
CREATE OR REPLACE FUNCTION "logical".next_id() RETURNS bigint LANGUAGE sql AS $$
    SELECT "logical".id_of_tick(
        floor(date_part('epoch', clock_timestamp()) * 1000 - {EPOCH_MS})::bigint << {SEQUENCE_BITS},
        nextval('"logical".id_ticks'))
$$;
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
