"""The app servers in nginx' upstreams (deploy/nginx/edge.conf): a file of a line each, which a deploy writes anew."""

from collections.abc import Iterable

# A server that failed three times within 5 s is left alone for 5 s; then one request tries it. Less often could be
# chance, and each try at a machine that is gone without a word costs a request the time-out of a connect, 1 s.
PATIENCE = "max_fails=3 fail_timeout=5s"
# When all seem dead, they are asked anyway: after a restart of all of them, the site is back with the first of them.
LAST_RESORT = "max_fails=0 backup"


def server_lines(addresses: Iterable[str]) -> str:
    """A server for each `host:port`."""
    return "".join(f"server {address} {when};\n" for address in addresses for when in (PATIENCE, LAST_RESORT))
