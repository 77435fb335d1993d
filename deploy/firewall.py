"""Which role may talk to which, as rules for nftables (docs/provisioning.md)."""

from collections.abc import Callable

from deploy.hosts import Host, Inventory

# Role → who connects to it. What is not here, nobody but the host itself does.
CLIENTS = {
    "app": ("edge",),
    "pgbouncer": ("app", "worker"),
    "postgres": ("pgbouncer", "postgres", "app"),  # replicas; and of the app hosts, the one that runs migrations
    "redis_shardmap": ("app", "worker", "redis_shardmap", "sentinel"),  # each other's replicas
    "redis_feeds": ("app", "worker", "redis_feeds", "sentinel"),
    "sentinel": ("app", "worker", "sentinel"),
    "memcached": ("app", "worker"),
    "gearman": ("app", "worker"),
}

TABLE = """# Who may connect to this host. `fab provision` writes it, you load it: docs/provisioning.md, "Firewall".
table inet instagram
delete table inet instagram
table inet instagram {{
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif lo accept
        # Path MTU discovery, neighbours, and ping.
        meta l4proto {{ icmp, ipv6-icmp }} accept
        # Keys only, and the operator's own firewall outside may be narrower.
        tcp dport {ssh} accept
{rules}    }}
}}
"""


def ruleset(host: Host, inventory: Inventory, ip: Callable[[Host], str]) -> str:
    """The rules of one host: each of its ports, open to the hosts that need it."""
    lines = []
    for role, data in host.roles.items():
        if role == "edge":
            lines.append(f"tcp dport {{ {data['listen']}, {data['tls']} }} accept")
            continue
        ports = data.get("slots") or [data.get("listen", data.get("port"))]
        clients = sorted({ip(client) for client in inventory.of(*CLIENTS.get(role, ()))})
        if clients:
            lines.append(f"tcp dport {{ {', '.join(map(str, ports))} }} ip saddr {{ {', '.join(clients)} }} accept")
    if masters := sorted(ip(master) for master in inventory.of("munin")):
        node = inventory.roles["munin"]["node"]
        lines.append(f"tcp dport {node} ip saddr {{ {', '.join(masters)} }} accept")
    return TABLE.format(ssh=host.port, rules="".join(f"        {line}\n" for line in lines))
