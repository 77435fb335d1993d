"""The picture of the whole:  python3 docs/architecture.py > docs/images/architecture.svg

Each box is named once, with its place; arrows name boxes. Colours follow the reader's light or dark theme.
"""

from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1270, 970
RADIUS = 12  # of an arrow's bends

STYLE = """
    svg { --page: #ffffff; --ink: #1f2933; --soft: #52606d; --line: #7b8794; --host: #f5f7fa; --edge: #cbd2d9;
          --app: #dbeafe; --data: #dcfce7; --job: #fef3c7; --outside: #ede9fe; --watch: #ffe4e6; }
    @media (prefers-color-scheme: dark) {
        svg { --page: #0d1117; --ink: #e6edf3; --soft: #9fb0c0; --line: #8b98a5; --host: #161b22; --edge: #3d4652;
              --app: #17345c; --data: #14402a; --job: #4a3a10; --outside: #352a5e; --watch: #561f2b; }
    }
    text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; text-anchor: middle; fill: var(--ink) }
    .title { font-size: 16px; font-weight: 600 }
    .more, .label { font-size: 12.5px; fill: var(--soft) }
    .label { paint-order: stroke; stroke: var(--page); stroke-width: 5px }
    .on-host { stroke: var(--host) }
    .caption { font-size: 13px; fill: var(--soft); text-anchor: start; letter-spacing: .04em }
    .box { stroke: var(--edge); stroke-width: 1.5 }
    .arrow { fill: none; stroke: var(--line); stroke-width: 1.8; marker-end: url(#head) }
    .seldom { stroke-dasharray: 5 5 }
"""


@dataclass(frozen=True)
class Box:
    x: int  # of its middle
    y: int
    kind: str
    title: str
    more: str
    copies: int = 1
    width: int = 184
    height: int = 58

    def side(self, name: str, shift: int = 0) -> tuple[int, int]:
        """A point on its border: "left", "right", "top" or "bottom", so far off that side's middle."""
        dx, dy = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}[name]
        x, y = self.x + dx * self.width // 2, self.y + dy * self.height // 2
        return (x + shift, y) if dy else (x, y + shift)


BOXES = {
    "phones": Box(430, 66, "outside", "phones and browsers", "JSON API, pages", width=220),
    "cdn": Box(790, 66, "outside", "CDN", "CloudFront · here nginx"),
    "s3": Box(790, 182, "outside", "S3", "photos · here SeaweedFS"),
    "balancer": Box(430, 182, "outside", "load balancer", "ELB · here HAProxy", width=220),
    "nginx": Box(430, 302, "app", "nginx ×3", "limits, buffers, request IDs", 3, 220),
    "gunicorn": Box(430, 412, "app", "gunicorn", "Django, no state of its own", 3, 220),
    "pgbouncer": Box(142, 548, "data", "pgbouncer", "pools transactions"),
    "redis": Box(358, 548, "data", "Redis, Sentinel", "feeds · photo→user map", 2),
    "memcached": Box(574, 548, "data", "Memcached", "users, photos, tokens", 3),
    "gearmand": Box(790, 548, "job", "gearmand ×2", "what can wait", 2),
    "postgres": Box(142, 668, "data", "Postgres ×2", "directory · shards · outbox", 2, 196),
    "replicas": Box(142, 794, "data", "a replica each", "takes over: fab failover", 2),
    "backups": Box(358, 794, "data", "pgBackRest", "backups and WAL, to S3"),
    "relay": Box(574, 668, "job", "relay", "no job is forgotten"),
    "workers": Box(790, 668, "job", "workers", "renditions, fan-out, pushes", 3),
    "pyapns": Box(790, 794, "job", "pyapns", "XML-RPC in, HTTP/2 out"),
    "apns": Box(790, 914, "outside", "APNs", "to the phones"),
    "pingdom": Box(1110, 66, "watch", "Pingdom", "asks from outside, each minute", width=230),
    "sentry": Box(1110, 302, "watch", "Sentry", "errors · here Bugsink", width=230),
    "munin": Box(1110, 442, "watch", "Munin", "numbers of all hosts, graphs", width=230),
    "pagerduty": Box(1110, 612, "watch", "PagerDuty", "one incident, not a hundred mails", width=230),
    "engineer": Box(1110, 752, "outside", "who is on call", "a runbook for each alert: docs/", width=230),
}


def box(one: Box) -> str:
    left, top = one.x - one.width // 2, one.y - one.height // 2
    shape = f'<rect class="box" width="{one.width}" height="{one.height}" rx="9" fill="var(--{one.kind})"'
    copies = "".join(f'{shape} x="{left + 5 * n}" y="{top - 5 * n}"/>' for n in reversed(range(one.copies)))
    return (
        f'{copies}<text class="title" x="{one.x}" y="{one.y - 4}">{escape(one.title)}</text>'
        f'<text class="more" x="{one.x}" y="{one.y + 16}">{escape(one.more)}</text>'
    )


def arrow(*points: tuple[int, int], seldom: bool = False) -> str:
    """A line with round bends through these points."""
    path = f"M{points[0][0]},{points[0][1]}"
    for before, here, after in zip(points, points[1:], points[2:], strict=False):
        path += f" L{_towards(here, before)} Q{here[0]},{here[1]} {_towards(here, after)}"
    path += f" L{points[-1][0]},{points[-1][1]}"
    return f'<path class="arrow{" seldom" if seldom else ""}" d="{path}"/>'


def _towards(here: tuple[int, int], there: tuple[int, int]) -> str:
    """The point RADIUS away from `here`."""
    dx, dy = there[0] - here[0], there[1] - here[1]
    length = max(1.0, (dx * dx + dy * dy) ** 0.5)
    step = min(RADIUS, length / 2) / length
    return f"{here[0] + dx * step:.1f},{here[1] + dy * step:.1f}"


def label(x: int, y: int, text: str, on_host: bool = True) -> str:
    return f'<text class="label{" on-host" if on_host else ""}" x="{x}" y="{y}">{escape(text)}</text>'


def picture() -> str:
    b = BOXES
    fan = b["gunicorn"].y + 76  # the height at which the app's ways to its data part
    right = b["workers"].side("right")[0] + 40
    panel = '<rect x="30" y="240" width="890" height="610" rx="16" fill="var(--host)" stroke="var(--edge)"/>'
    parts = [
        panel,
        '<text class="caption" x="52" y="268">OUR HOSTS</text>',
        arrow(b["phones"].side("bottom"), b["balancer"].side("top")),
        arrow(b["balancer"].side("bottom"), (430, b["nginx"].side("top")[1] - 10)),
        arrow(b["nginx"].side("bottom"), (430, b["gunicorn"].side("top")[1] - 10)),
        arrow(b["phones"].side("right", 14), (628, 80), (628, 182), b["s3"].side("left")),
        arrow(b["s3"].side("top"), b["cdn"].side("bottom")),
        arrow(b["cdn"].side("left", -10), b["phones"].side("right", -10)),
        *(
            arrow(b["gunicorn"].side("bottom"), (430, fan), (b[to].x, fan), (b[to].x, b[to].side("top")[1] - top))
            for to, top in (("pgbouncer", 0), ("redis", 5), ("memcached", 10), ("gearmand", 5))
        ),
        arrow(b["gunicorn"].side("right", 8), (790, 420), b["s3"].side("bottom"), seldom=True),
        arrow(b["pgbouncer"].side("bottom"), (142, b["postgres"].side("top")[1] - 5)),
        arrow(b["postgres"].side("bottom"), (142, b["replicas"].side("top")[1] - 5)),
        arrow(b["postgres"].side("right", 12), (358, 680), b["backups"].side("top")),
        arrow(b["postgres"].side("right", -8), b["relay"].side("left", -8)),
        arrow(b["relay"].side("top"), (574, 612), (756, 612), (756, b["gearmand"].side("bottom")[1])),
        arrow(b["gearmand"].side("bottom"), (790, b["workers"].side("top")[1] - 10)),
        arrow(b["workers"].side("bottom"), b["pyapns"].side("top")),
        arrow(b["pyapns"].side("bottom"), b["apns"].side("top")),
        arrow(b["workers"].side("right"), (right - 16, 668), (right - 16, 182), b["s3"].side("right")),
        arrow(b["pingdom"].side("left"), (950, 66), (950, 124), (500, 124), (500, b["balancer"].side("top")[1])),
        arrow((920, 302), b["sentry"].side("left")),
        arrow((920, 442), b["munin"].side("left")),
        arrow(b["munin"].side("bottom"), b["pagerduty"].side("top")),
        arrow(b["sentry"].side("right"), (1246, 302), (1246, 604), b["pagerduty"].side("right", -8)),
        arrow(b["pingdom"].side("right"), (1258, 66), (1258, 620), b["pagerduty"].side("right", 8)),
        arrow(b["pagerduty"].side("bottom"), b["engineer"].side("top")),
        *map(box, b.values()),
        label(402, 128, "API", False),
        label(628, 140, "presigned upload", False),
        label(620, 52, "pixels", False),
        label(668, 438, "is the upload there?"),
        label(357, 650, "outbox"),
        label(142, 734, "streams, synchronously"),
        label(870, 614, "renditions"),
        label(1110, 532, "critical", False),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
        "<title>From the phones to Postgres, and who watches</title>\n"
        f"<style>{STYLE}</style>\n"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L10,5 L0,10 z" fill="var(--line)"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="var(--page)"/>\n' + "\n".join(parts) + "\n</svg>"
    )


if __name__ == "__main__":
    print(picture())
