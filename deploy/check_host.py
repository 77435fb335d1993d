"""Asks a gunicorn how it is, on its own host: `fab` sends this file there, so it must run on Debian's bare Python.

check_host.py HOST PORT                    prints release, seconds of uptime, and what /readyz complains about
check_host.py HOST PORT RELEASE COMPLAINTS waits until it runs that release and complains about no more than that
"""

import http.client
import json
import sys
import time


def ask(host, port):
    """(release, uptime, complaints); raises OSError or HTTPException when there is no answer."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    connection.request("GET", "/healthz")
    alive = connection.getresponse()
    alive.read()
    if alive.status != 200:  # refuses connections while it starts, but does not answer so
        sys.exit(f"/healthz answers {alive.status}")
    connection.request("GET", "/readyz")
    ready = connection.getresponse()
    lines = ready.read().decode(errors="replace").splitlines()
    # A 200 is well, whatever its lines say: that is for the app to decide.
    complaints = [] if ready.status == 200 else [line for line in lines if not line.endswith(": ok")]
    if ready.status not in (200, 503):
        complaints = [f"/readyz answers {ready.status}"]
    return alive.getheader("X-Release", "?"), alive.getheader("X-Uptime", "0"), complaints


def wait(host, port, wanted, known, seconds):
    deadline = time.monotonic() + seconds
    while True:
        try:
            release, _, complaints = ask(host, port)
            new = [complaint for complaint in complaints if complaint.split(":")[0] not in known]
            if release == wanted and not new:
                return
            wrong = "; ".join(new) if release == wanted else f"it runs {release}"
        except (OSError, http.client.HTTPException) as error:
            wrong = f"{type(error).__name__}: {error}"
        if time.monotonic() > deadline:
            sys.exit(f"not well after {seconds} s: {wrong}")
        time.sleep(0.05)


if __name__ == "__main__":
    address = sys.argv[1], int(sys.argv[2])
    if len(sys.argv) > 3:
        wait(*address, sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5]))
    else:
        try:
            print(json.dumps(ask(*address)))
        except (OSError, http.client.HTTPException) as error:
            sys.exit(f"gunicorn does not answer: {type(error).__name__}")
