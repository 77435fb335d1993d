"""Which app servers the edges send requests to: a file that nginx includes in its upstream (deploy/nginx/edge.conf)."""

import shlex
from collections.abc import Collection

from deploy.hosts import Host, Inventory, each
from deploy.upstreams import server_lines

# Reloads nginx, and returns when none of the old workers takes requests any more: those that are busy finish them.
RELOAD = r"""
master=$(cat {pid_file})
old=$(grep -l "^PPid:[[:space:]]*$master$" /proc/[0-9]*/status 2>/dev/null | cut -d/ -f3)
{reload} || exit 1
for worker in $old; do
    for try in $(seq 100); do
        [ -e /proc/$worker ] && ! grep -q "shutting down" /proc/$worker/cmdline || continue 2
        sleep 0.05
    done
    echo "nginx' worker $worker does not shut down" >&2
    exit 1
done
"""


def app_servers(inventory: Inventory, out: Collection[Host] = ()) -> str:
    """The lines of nginx' upstream: every app server, those that are `out` marked so."""

    def address(host: Host) -> str:
        return f"{host.address}:{host.roles['app']['listen']}"

    return server_lines(map(address, inventory.of("app")), out=[address(host) for host in out])


def take_out(inventory: Inventory, out: Collection[Host]) -> None:
    """Requests go to all app servers but these from now on, at every edge. Who was out before is in again.

    Raises Exit when an edge did not do it.
    """
    text = app_servers(inventory, out)

    def tell(edge: Host) -> None:
        role = edge.roles["edge"]
        file = shlex.quote(role["app_servers"])
        edge.run(
            f"printf %s {shlex.quote(text)} > {file}.new && mv {file}.new {file}\n"
            + RELOAD.format(pid_file=shlex.quote(role["pid_file"]), reload=role["reload"])
        )

    each(inventory.of("edge"), tell)
