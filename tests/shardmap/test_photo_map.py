import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from redis.connection import Connection

from bench import shardmap as bench
from photos.models import Photo
from shardmap import photo_map
from shardmap.redis_client import Unavailable, redis_client
from shardmap.shards import on_shard
from tests.support import ctl, eventually, photo_id


def redis():
    return redis_client(settings.REDIS_SHARDMAP_URL)


@pytest.fixture
def photos():
    """Rows of three photos, of users in three shards: {photo: owner}."""
    made = {}
    for owner in (900_001, 900_002, 900_011):
        with on_shard(owner):
            photo = Photo.objects.create(owner_id=owner, upload_id=f"map{owner}")
        made[photo.id] = owner
    yield made
    for photo, owner in made.items():
        with on_shard(owner):
            Photo.objects.filter(id=photo).delete()


def test_what_was_remembered_is_known_without_asking_the_shards(photos, monkeypatch):
    for photo, owner in photos.items():
        photo_map.remember(photo, owner)
    monkeypatch.setattr(photo_map, "_source", None)  # asking the shards would raise
    assert photo_map.owners_of(photos) == photos
    for photo, owner in photos.items():
        assert photo_map.owner_of(photo) == owner


def test_many_are_read_in_one_round_trip(photos, monkeypatch):
    for photo, owner in photos.items():
        photo_map.remember(photo, owner)
    sent = []
    send = Connection.send_packed_command

    def counting(connection, command, *options):
        sent.append(command)
        return send(connection, command, *options)

    monkeypatch.setattr(Connection, "send_packed_command", counting)
    assert photo_map.owners_of(photos) == photos
    assert len(sent) == 1


def test_a_photo_that_redis_does_not_know_is_found_in_its_shard_and_then_known(photos, monkeypatch):
    assert photo_map.owners_of(photos) == photos
    monkeypatch.setattr(photo_map, "_source", None)
    assert photo_map.owners_of(photos) == photos


def test_a_forgotten_photo_is_not_known(photos):
    photo, owner = next(iter(photos.items()))
    photo_map.remember(photo, owner)
    with on_shard(owner):
        Photo.objects.filter(id=photo).delete()
    photo_map.forget(photo)
    assert photo_map.owner_of(photo) is None


@pytest.mark.parametrize("photo", [0, -1, 1, 2**63, 2**63 - 1, 8191 << 10])
def test_an_id_that_was_never_made_has_no_owner(photo):
    assert photo_map.owner_of(photo) is None


def test_a_photo_cannot_be_given_to_a_user_of_another_shard(photos):
    photo, owner = next(iter(photos.items()))
    with pytest.raises(ValueError, match="shard"):
        photo_map.remember(photo, owner + 1)


def test_an_emptied_map_is_rebuilt_with_the_same_content(person, photos):
    taken = person().publish()
    redis().flushdb()
    assert photo_map.rebuild(lambda shard, total: None) >= len(photos) + 1

    def noted() -> list[bytes | None]:  # of others' photos, the stack may note or forget some meanwhile
        return [redis().hget(key, field) for _, key, field in photo_map._addresses(photos)]

    rebuilt = noted()
    assert None not in rebuilt
    for photo, owner in photos.items():
        photo_map.remember(photo, owner)
    # Noting them once more changes nothing: the rebuild had written the same.
    assert noted() == rebuilt
    assert photo_map.owner_of(photo_id(taken["id"])) == int(taken["user"]["id"])


def test_a_rebuild_that_is_stopped_says_so_and_harms_nothing(photos, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    for photo, owner in photos.items():
        photo_map.remember(photo, owner)
    monkeypatch.setattr("shardmap.management.commands.shardmap.draw", interrupted)
    with pytest.raises(CommandError, match="stopped"):
        call_command("shardmap", "rebuild")
    monkeypatch.setattr(photo_map, "_source", None)  # asking the shards would raise
    assert photo_map.owners_of(photos) == photos


def test_ids_that_look_alike_have_fields_of_their_own():
    milliseconds = [0, 1, 12345, 1 << 26, *(int.from_bytes(digits) >> 10 for digits in (b"12345", b"00000"))]
    sequences = [0, 1, 512, 1023, *(int.from_bytes(digits) & 1023 for digits in (b"12345", b"00000"))]
    ids = {ms << 23 | 7 << 10 | sequence for ms in milliseconds for sequence in sequences}
    assert len({address[1:] for address in photo_map._addresses(ids)}) == len(ids)


def test_an_entry_takes_at_most_11_bytes(monkeypatch):
    monkeypatch.setattr(bench, "OTHERS", 1000)
    monkeypatch.setattr(bench, "LOOKUPS", 10)
    monkeypatch.setattr(bench, "REBUILT", 1000)
    result = bench.run(300_000)
    assert 8 < result["ours, bytes an entry"] <= 11


def test_windows_of_another_width_are_never_taken_for_one_another(photos, monkeypatch):
    addresses = set()
    for bits in (24, 25, 26, 27):
        monkeypatch.setattr(settings, "MAP_WINDOWS", [(0, bits)])
        addresses |= {address[1] for address in photo_map._addresses(photos)}
    assert len(addresses) == 4 * len(photos)


def test_narrower_windows_from_some_time_on(monkeypatch):
    begin = 450_000_000_000
    ids = [(begin + ms) << 23 | 7 << 10 for ms in range(-3 * 10**9, 3 * 10**9, 10**6 + 1)]
    monkeypatch.setattr(settings, "MAP_WINDOWS", [(begin, 25), (0, 27)])
    addresses = list(photo_map._addresses(ids))
    assert len({address[1:] for address in addresses}) == len(ids)
    before, after = ({key for photo, key, _ in addresses if (photo >> 23 < begin) == early} for early in (True, False))
    assert not before & after
    assert len(after) == pytest.approx(4 * len(before), rel=0.2)


def shown(output: str) -> dict[str, float]:
    """The table that `shardmap status` begins with."""
    rows = [line.rsplit(maxsplit=1) for line in output.splitlines() if not line.startswith(("node", "Hashes"))]
    return {name.strip(): float(value.replace(",", "")) for name, value in rows}


def test_the_status_says_how_full_the_hashes_are(photos, capsys):
    for photo, owner in photos.items():
        photo_map.remember(photo, owner)
    call_command("shardmap", "status")
    status = shown(capsys.readouterr().out)
    assert status["photos"] >= len(photos)
    assert status["hashes too full to be packed"] == 0


def test_a_window_that_is_too_full_still_works_and_the_status_tells(monkeypatch, capsys):
    monkeypatch.setattr(settings, "REDIS_SHARDMAP_URL", settings.REDIS_SHARDMAP_URL.rpartition("/")[0] + "/14")
    sizes = {1: photo_map.PACKED + 1, 2: photo_map.PACKED, 3: 10}  # window → photos
    owners = {window << 50 | n << 23: 8 * n for window, size in sizes.items() for n in range(size)}
    try:
        photo_map._write(owners)
        assert photo_map.owners_of(owners) == owners
        call_command("shardmap", "status")
    finally:
        redis().flushdb()
    output = capsys.readouterr().out
    status = shown(output)
    assert "Hashes fill up" in output
    assert status["hashes"] == 3
    assert status["hashes more than half full"] == 2
    assert status["hashes too full to be packed"] == 1
    assert status["photos"] == len(owners)


def test_the_map_answers_from_the_shards_while_redis_is_dead_and_from_redis_afterwards(photos, stopped):
    stopped("redis_shardmap")
    assert photo_map.owners_of(photos) == photos
    photo, owner = next(iter(photos.items()))
    photo_map.remember(photo, owner)  # noted nowhere, and no error
    with pytest.raises(Unavailable):
        photo_map.forget(photo)
    ctl("start", "redis_shardmap")
    eventually(lambda: photo_map.owners_of(photos) == photos)
