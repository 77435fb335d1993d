"""Who is primary, where `fab provision` has to know: the inventory only says which two hosts a physical server has.

Whoever the pgbouncers lead to. Where none knows the server yet, and for a new Postgres, the data on the two hosts says.
Of Redis, the Sentinels say it.
"""

import re
from collections import Counter
from dataclasses import replace

from deploy.hosts import CommandFailed, Host, Inventory, try_each
from deploy.local.layout import Failed
from deploy.roles.place import STATE, ip

FOUND = """
    if [ ! -e {data} ]; then echo nothing; elif [ -e {data}/standby.signal ]; then echo replica; else echo primary; fi
"""


def primaries_first(host: Host, inventory: Inventory) -> Inventory:
    """The inventory with the primary of each pair first, as far as what is still to be made on this host depends on it.

    Raises Failed where that is not known for sure.
    """
    hosts = {one.name: one for one in inventory.hosts}
    pairs = {server: [hosts[name] for name in names] for server, names in inventory.postgres.items()}
    if "pgbouncer" in host.roles:
        pairs |= for_pgbouncer(host, inventory, pairs)
    if "postgres" in host.roles:
        (server,) = [server for server, pair in pairs.items() if host in pair]
        pairs[server] = for_postgres(host, server, pairs[server])
    postgres = {server: [one.name for one in pair] for server, pair in pairs.items()}
    return replace(inventory, postgres=postgres, redis=masters_first(host, inventory))


def masters_first(host: Host, inventory: Inventory) -> dict[str, list[str]]:
    """The inventory's `redis`; where this host has to do with it, first whom most Sentinels call the master."""
    if not {"redis_shardmap", "redis_feeds", "sentinel"} & host.roles.keys():
        return inventory.redis
    known, _ = try_each(inventory.of("sentinel"), monitored)
    hosts = {one.name: one for one in inventory.hosts}
    ordered = {}
    for name, pair in inventory.redis.items():
        votes = Counter(masters.get(name) for masters in known.values())
        ordered[name] = sorted(pair, key=lambda one, votes=votes: votes[ip(hosts[one])], reverse=True)
        first, *others = (hosts[one] for one in ordered[name])
        if first is host and not has_run(host, name) and (known := [one for one in others if has_run(one, name)]):
            raise Failed(
                f"{host.name} would be the master of {name}, and is empty: {known[0].name} would copy that. First let "
                f'the Sentinels make {known[0].name} the master (docs/failover.md, "Redis")'
            )
    return ordered


def has_run(host: Host, name: str) -> bool:
    """Whether a Redis has been there. Raises CommandFailed where that cannot be asked."""
    return as_root(host, f"test -e {STATE}/redis_{name} && echo yes || echo no").strip() == "yes"


def for_postgres(host: Host, server: str, pair: list[Host]) -> list[Host]:
    """A host without data becomes the replica of the other one, if that has some: never a second, empty primary."""
    others = [other for other in pair if other is not host]
    if not others or found(host) != "nothing":
        return pair
    (other,) = others
    try:
        there = found(other)
    except CommandFailed as error:
        raise Failed(
            f"{error}\n{host.name} has no data yet, and nobody knows whether {other.name} is the primary of server "
            f'{server}. If all its data is lost, too, take it out of the inventory: where {server} = ["{host.name}"], '
            "a new, empty one is made (docs/provisioning.md)"
        ) from None
    if there == "replica":
        raise Failed(
            f"{other.name} is a replica, and {host.name}, its primary, has no data any more: "
            f"first `fab failover --server {server} --host-is-off` (docs/failover.md)"
        )
    if there == "nothing" and host is not pair[0]:
        raise Failed(f"{other.name}, which is to be the first primary of server {server}, comes before {host.name}")
    return [other, host] if there == "primary" else pair


def for_pgbouncer(host: Host, inventory: Inventory, pairs: dict[str, list[Host]]) -> dict[str, list[Host]]:
    """Of the servers that this pgbouncer does not know yet."""
    own = leads(host)
    unknown = {server: pair for server, pair in pairs.items() if server not in own}
    others, _ = try_each([one for one in inventory.of("pgbouncer") if unknown and one is not host], leads)
    known = {}
    for server, pair in unknown.items():
        led_to = [one for one in pair if one.address in {lead.get(server) for lead in others.values()}]
        if len(led_to) > 1:
            raise Failed(f"some pgbouncers lead to {pair[0].name}, some to {pair[1].name}: first end that failover")
        known[server] = sorted(pair, key=led_to.__contains__, reverse=True) if led_to else by_data(server, pair)
    return known


def by_data(server: str, pair: list[Host]) -> list[Host]:
    """The primary first: who has data that is no replica's, or else who cannot be asked."""
    there, _ = try_each(pair, found)
    if list(there.values()).count("primary") > 1:
        raise Failed(f"server {server}: both {pair[0].name} and {pair[1].name} have the data of a primary")
    return sorted(pair, key=lambda one: ["primary", "", "replica", "nothing"].index(there.get(one, "")))


def leads(host: Host) -> dict[str, str]:
    """Server → address of its primary, as this pgbouncer's file has it. Raises CommandFailed."""
    text = as_root(host, f"cat {host.roles['pgbouncer']['ini']} 2>/dev/null || true")
    return dict(re.findall(r"^shards_(\w+) = host=(\S+)", text, re.MULTILINE))


def found(host: Host) -> str:
    """Whether a host has "nothing", or the data of a "replica" or "primary". Raises CommandFailed."""
    return as_root(host, FOUND.format(data=host.roles["postgres"]["data"])).strip()


def monitored(host: Host) -> dict[str, str]:
    """ "shardmap", "feeds" → address of its master, as this Sentinel wrote it down. Raises CommandFailed."""
    text = as_root(host, f"cat {STATE}/sentinel/sentinel.conf 2>/dev/null || true")
    return dict(re.findall(r"^sentinel monitor (\w+) (\S+) ", text, re.MULTILINE))


def as_root(host: Host, command: str) -> str:
    return replace(host, user="root", directory="/").run(command)
