"""edge: nginx."""

import ssl
from pathlib import Path

from deploy.hosts import Inventory
from deploy.local.layout import Failed
from deploy.roles.place import ETC, STATE, File, Part, Place, Service, template, unit_files
from deploy.rotation import app_servers


def edge(place: Place) -> Part:
    data = place.host.roles["edge"]
    secured = tls(place)
    conf = template(
        "nginx/edge.conf",
        listen=place.ip,
        port=place.port("edge"),
        worker_processes=place.cores,
        data=f"{STATE}/nginx_edge",
        access_log="/var/log/instagram/nginx_edge.access.log",
        app_servers=data["app_servers"],
        maintenance=data["maintenance"],
        balancer=data["balancer"],
        munin=f"{STATE}/munin/html",
        tls=f'include "{secured[0].path}";' if secured else "",  # else it ends at the load balancer
        # Of one address, which may be a carrier's with a city behind it.
        requests_a_second=500,
        requests_of_a_burst=2_000,
        requests_at_once=500,
    )
    files = [
        *unit_files("instagram-nginx"),
        File(f"{ETC}/nginx_edge.conf", conf),
        *secured,
        # After the first time, `fab deploy` knows better where the app is.
        File(data["app_servers"], first_slots(place.inventory), owner="deploy", only_if_missing=True),
    ]
    rotation = File(
        "/etc/logrotate.d/instagram",
        "/var/log/instagram/*.log {\n"
        "    su www-data www-data\n    daily\n    rotate 14\n    compress\n    delaycompress\n"
        "    missingok\n    notifempty\n    sharedscripts\n"
        "    postrotate\n        systemctl kill --kill-who=main --signal=USR1 instagram-nginx\n    endscript\n}\n",
    )
    service = Service("instagram-nginx", files, "reload", place.port("edge"))
    return Part(["nginx"], [service], [rotation])


def first_slots(inventory: Inventory) -> str:
    return app_servers({host: host.roles["app"]["slots"][0] for host in inventory.of("app")})


def tls(place: Place) -> list[File]:
    """What nginx listens on the port of TLS with; nothing, where the operator has no certificate for it."""
    named = [place.secrets.get(name, "") for name in ("TLS_CERTIFICATE_FILE", "TLS_KEY_FILE")]
    if not any(named):
        return []
    certificate, key = (Path(name).expanduser() for name in named)
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise Failed(f"TLS_CERTIFICATE_FILE and TLS_KEY_FILE are not a certificate and its key: {error}") from None
    copies = [f"{ETC}/tls.pem", f"{ETC}/tls.key"]
    values = {"listen": place.ip, "port": place.host.roles["edge"]["tls"], "certificate": copies[0], "key": copies[1]}
    return [
        File(f"{ETC}/nginx_tls.conf", template("nginx/tls.conf", **values)),
        *(File(copy, one.read_text(), "www-data", 0o600) for copy, one in zip(copies, (certificate, key), strict=True)),
    ]
