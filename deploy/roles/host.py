"""What every host has."""

from deploy.firewall import ruleset
from deploy.roles.place import ETC, File, Part, Place, Service, ip

# What all hosts get. Tokens and signatures are good for minutes: chrony keeps the clock right. Without dbus, `deploy`
# could not ask systemd how a service is.
BASE_PACKAGES = ["ca-certificates", "chrony", "dbus", "logrotate", "nftables", "sudo"]


def base(place: Place) -> Part:
    limit = File(
        "/etc/systemd/journald.conf.d/instagram.conf",
        "# All logs but nginx' access log are in the journal: as many as this, the oldest go first.\n"
        "[Journal]\nSystemMaxUse=2G\n",
    )
    commands = [
        f"/usr/bin/{value.removeprefix('sudo ').format(port=port)}"
        for role in place.host.roles.values()
        for value in role.values()
        if str(value).startswith("sudo system")
        for port in role.get("slots", [""])
    ]
    rights = f"deploy ALL=(root) NOPASSWD: {', '.join(sorted(commands))}\n" if commands else ""
    if {"postgres", "pgbouncer"} & place.host.roles.keys():
        rights += "deploy ALL=(postgres) NOPASSWD: ALL\n"
    files = [
        File(
            "/etc/sudoers.d/instagram",
            f"# What `fab deploy`, `fab failover` and their sisters may do as others, and no more.\n{rights}",
            mode=0o440,
        ),
        File(f"{ETC}/firewall.nft", ruleset(place.host, place.inventory, ip)),
    ]
    return Part(BASE_PACKAGES, [Service("systemd-journald", [limit], "restart")], files)
