"""munin: the master on one host, and a node on each."""

import re
import shlex
from pathlib import Path

from deploy.local.programs import DEBIANS_PLUGINS, HOST_PLUGINS, munin_master_lines
from deploy.roles.app import environment, has_release
from deploy.roles.place import (
    ETC,
    STATE,
    File,
    Part,
    Place,
    Service,
    env_text,
    ip,
    template,
    timer,
    unit_as_it_is,
    unit_files,
)

PAGERDUTY_URL = "https://events.pagerduty.com/v2/enqueue"


def munin(place: Place) -> Part:
    """Munin's master: a round each 5 minutes, its pages, and PagerDuty."""
    data, port = f"{STATE}/munin", place.inventory.roles["munin"]["node"]
    settings = {
        "PAGERDUTY_URL": place.secrets.get("PAGERDUTY_URL", PAGERDUTY_URL),
        "PAGERDUTY_ROUTING_KEY": place.secrets.get("PAGERDUTY_ROUTING_KEY", ""),
        "PAGERDUTY_SPOOL": f"{data}/pagerduty",
    }
    pagerduty = f"{ETC}/pagerduty {ETC}/pagerduty.settings"
    nodes = "".join(munin_master_lines(host.name, ip(host), port) for host in place.inventory.hosts)
    pages = template("nginx/munin.conf", port=place.port("munin"), data=f"{STATE}/nginx_munin", munin=f"{data}/html")
    files = [
        # Debian's rounds would be beside ours.
        File("/etc/cron.d/munin", "# Munin's rounds are instagram-munin.timer's.\n"),
        File(f"{ETC}/munin.conf", template("munin/munin.conf", data=data, pagerduty=pagerduty, nodes=nodes)),
        File(
            f"{ETC}/munin-round",
            template("munin/round.sh", data=data, conf=f"{ETC}/munin.conf", pagerduty=pagerduty),
        ),
        File(f"{ETC}/pagerduty", template("alerts/pagerduty"), mode=0o755),
        File(f"{ETC}/pagerduty.settings", env_text(settings), "munin", 0o600),
        File(
            "/etc/logrotate.d/instagram-munin",
            f"{data}/log/*.log {{\n    su munin munin\n    daily\n    rotate 7\n    missingok\n    notifempty\n}}\n",
        ),
        unit_as_it_is("instagram-munin.service"),
    ]
    shown = [*unit_files("instagram-munin-pages"), File(f"{ETC}/nginx_munin.conf", pages)]
    services = [timer("instagram-munin.timer"), Service("instagram-munin-pages", shown, "restart")]
    return Part(["munin", "nginx", "python3"], services, files)


def munin_node(place: Place) -> Part:
    """What tells Munin's master of this host: Debian's munin-node, with the plugins that `plugins` names."""
    port = place.inventory.roles["munin"]["node"]
    masters = "|".join(re.escape(ip(host)) for host in place.inventory.of("munin"))
    conf = template(
        "munin/munin-node.conf",
        listen=place.ip,
        port=port,
        allow=f"^({masters})$",
        host_name=place.host.name,
        user="root",  # some of Debian's plugins need it; the others run as the app's user
        group="root",
        plugin_user="instagram",
        plugin_group="instagram",
    )
    settings = template(
        "munin/plugins.conf",
        python=f"{place.host.directory}/current/.venv/bin/python",
        env_file=f"{ETC}/munin.env",
        app_url=f"http://{place.ip}",
        current=f"env.CURRENT {place.host.directory}/current",
        threads=32,
    )
    files = [
        File(f"{ETC}/munin-node.conf", conf),
        File("/etc/default/munin-node", f"DAEMON_ARGS=--config={ETC}/munin-node.conf\n"),
        File("/etc/munin/plugin-conf.d/instagram", settings),
    ]
    # /etc/instagram/env is not for the user whom the plugins run as.
    env = [File(f"{ETC}/munin.env", env_text(environment(place)), "instagram", 0o600)] if has_release(place) else []
    service = Service("munin-node", files, "restart", port)
    return Part(["iproute2", "munin-node"], [service], env, [plugin_links(place)])


def plugin_links(place: Place) -> tuple[str, str, str]:
    """A step after which /etc/munin/plugins has the host's plugins, its network interface's, and no others."""
    links = "".join(f"{name} {file}\n" for name, file in sorted(plugins(place).items()))
    interface = f'ip -o address show to {place.ip} | awk \'{{print "if_" $2, "{DEBIANS_PLUGINS}/if_"}}\''
    wanted = f"cd /etc/munin/plugins && wanted() {{ printf %s {shlex.quote(links)}; {interface}; }}"
    done = f'{wanted} && [ "$(wanted | sort)" = "$(find . -type l -printf \'%P %l\\n\' | sort)" ]'
    link = "wanted | while read name file; do ln -s $file $name; done"
    # A node that runs has looked for them when it started.
    return "Munin's plugins", done, f"{wanted} && rm -f ./* && {link} && systemctl try-restart munin-node"


def plugins(place: Place) -> dict[str, Path]:
    """Name → file of the plugins here: Debian's of the host, and those of ours that have something to see.

    Ours are in a release. What sees all servers is on one host, or each of its alerts would be many.
    """
    ours, roles = [], place.host.roles.keys()
    if has_release(place):
        ours.append("instagram_app")
        ours += [f"instagram_{name}" for role, name in (("app", "ready"), ("pgbouncer", "pgbouncer")) if role in roles]
    if [place.host] == place.inventory.of("app", "worker")[:1]:
        ours += ["instagram_jobs", "instagram_postgres", "instagram_redis"]
    release = Path(place.host.directory, "current/deploy/munin/plugins")
    return {name: DEBIANS_PLUGINS / name for name in HOST_PLUGINS} | {name: release / name for name in ours}
