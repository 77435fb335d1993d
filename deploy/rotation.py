"""Where the edges send requests, and whether anywhere: `fab maintenance`."""

import shlex
from collections.abc import Iterable, Mapping

from fabric import task
from invoke import Context, Exit

from deploy import hosts
from deploy.hosts import Host, each
from deploy.upstreams import server_lines

# A firewall may know one of two ports only. What is `.pending`, nginx has perhaps not read: its reload failed.
LEAD = """
[ ! -e {file}.pending ] && printf %s {text} | cmp -s - {file} && exit
for server in {servers}; do
    timeout 3 bash -c ": <> /dev/tcp/$server" || {{ echo "$server cannot be reached from here" >&2; exit 1; }}
done
touch {file}.pending && printf %s {text} > {file}.new && mv {file}.new {file} || exit 1
"""
# Reloads nginx, and returns when none of the old workers takes requests any more: those that are busy finish them.
RELOAD = r"""
master=$({master}) || exit 1
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


@task(help={"switch": "on or off"})
def maintenance(context: Context, switch: str, inventory: str = "") -> None:
    """Answers all requests with 503, or ends that. Health checks of the load balancer pass all the same."""
    commands = {"on": "touch {}", "off": "rm -f {}"}
    if switch not in commands:
        raise Exit("fab maintenance on, or off?")
    edges = hosts.load(context, inventory).of("edge")
    each(edges, lambda edge: edge.run(commands[switch].format(shlex.quote(edge.roles["edge"]["maintenance"]))))
    print(f"maintenance is {switch} at {', '.join(edge.name for edge in edges)}")


def app_servers(serving: Mapping[Host, int]) -> str:
    """The lines of nginx' upstream: app host → the port where it serves."""
    return server_lines(f"{host.address}:{port}" for host, port in serving.items())


def lead(edges: Iterable[Host], serving: Mapping[Host, int]) -> None:
    """From now on, requests go to these app hosts, at these ports, from these edges.

    Raises Exit when an edge did not do it, or cannot reach one of them.
    """
    text = app_servers(serving)

    def tell(edge: Host) -> None:
        role = edge.roles["edge"]
        command = LEAD.format(
            text=shlex.quote(text),
            file=shlex.quote(role["app_servers"]),
            servers=" ".join(f"{host.address}/{port}" for host, port in serving.items()),
        )
        reload = RELOAD.format(master=role["master"], reload=role["reload"])
        edge.run(f"{command}{reload}rm {shlex.quote(role['app_servers'])}.pending")

    each(edges, tell)
