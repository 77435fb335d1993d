"""A photo's permalink as browsers, sites that embed it, and strangers see it."""

import json
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
import requests
from django.conf import settings

from photos.schemas import shortcode
from tests.photos.seen import pixels
from tests.support import Person, eventually, get, photo_id, settled

SITE = settings.SITE_URL
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}
HOSTILE = """"><script>alert(1)</script>' & <img src=x onerror=alert(2)> {{ 7 }} #a&#x27;b #tag<b>\u202e"""


class Page(HTMLParser):
    """What a browser makes of a page: its elements in their order, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, **attrs: str) -> list[dict]:
        return [its for name, its in self.elements if name == tag and attrs.items() <= its.items()]

    def meta(self) -> dict[str, str]:
        return {its.get("property") or its.get("name"): its["content"] for its in self.all("meta") if "content" in its}


def path_of(media: dict) -> str:
    return urlsplit(media["link"]).path


def open_page(media: dict) -> Page:
    response = get(path_of(media))
    assert response.status_code == 200
    return Page(response.text)


def embed(media: dict, **params) -> requests.Response:
    return get("/oembed", params={"url": media["link"]} | params)


@pytest.fixture(scope="module")
def one():
    return Person()


@pytest.fixture(scope="module")
def media(one):
    one.post("accounts/edit", full_name="Ann & Bob")
    taken = one.take(caption="Sunset #norway\nby the fjord", latitude=62.2, longitude=6.1, location_name="Ørsta <3")
    fan = Person()
    fan.post(f"media/{taken['id']}/likes")
    fan.post(f"media/{taken['id']}/comments", text="Wow <b>so</b> #nice")
    settled(one, fan)
    return taken | {"fan": fan.username}


def test_the_page_shows_the_photo_and_what_was_said(one, media):
    page = open_page(media)
    (photo,) = page.all("img", **{"class": "photo"})
    assert photo["src"] == media["images"]["standard_resolution"]["url"]
    assert (photo["width"], photo["height"]) == ("612", "612")
    assert photo["alt"] == f"Photo by {one.username}: Sunset #norway\nby the fjord"
    assert pixels(photo["src"]).size == (612, 612)
    assert media["images"]["low_resolution"]["url"] + " 306w" in photo["srcset"]
    (avatar,) = page.all("img", **{"class": "avatar"})
    assert avatar["src"] == media["user"]["profile_picture"]
    for text in (one.username, "Ann & Bob", "Sunset #norway\nby the fjord", "Ørsta <3", "1 like, 1 comment"):
        assert text in page.text
    assert f"{media['fan']} Wow <b>so</b> #nice" in page.text
    assert len(page.all("b", **{"class": "tag"})) == 2
    assert all(time["datetime"].startswith("20") for time in page.all("time"))
    assert len(page.all("time")) == 2


def test_the_head_tells_other_sites_what_to_show(one, media):
    page = open_page(media)
    image = media["images"]["standard_resolution"]["url"]
    assert (
        page.meta().items()
        >= {
            "og:type": "article",
            "og:site_name": "Instagram",
            "og:url": media["link"],
            "og:title": f"Ann & Bob (@{one.username}) on Instagram",
            "og:description": "Sunset #norway\nby the fjord",
            "og:image": image,
            "og:image:width": "612",
            "og:image:height": "612",
            "article:tag": "norway",
            "twitter:card": "summary",
            "viewport": "width=device-width, initial-scale=1",
        }.items()
    )
    assert page.all("link", rel="canonical") == [{"rel": "canonical", "href": media["link"]}]
    (alternate,) = page.all("link", rel="alternate", type="application/json+oembed")
    assert requests.get(alternate["href"], timeout=10).json()["media_id"] == media["id"]


@pytest.mark.parametrize("where", ["caption", "comment", "full_name"])
def test_whatever_people_write_is_only_text(person, where):
    one, text = person(), HOSTILE if where != "full_name" else HOSTILE[:64]
    media = one.take(caption=text if where == "caption" else "")
    if where == "comment":
        one.post(f"media/{media['id']}/comments", text=text)
    if where == "full_name":
        one.post("accounts/edit", full_name=text)
    settled(one)
    page = open_page(media)
    assert text.strip("\u202e") in page.text
    assert not page.all("script")
    assert len(page.all("img")) == 2
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert len(page.all("meta", property="og:title")) == 1
    assert Page(get("/oembed", params={"url": media["link"]}).text).text  # JSON that no browser takes for a page:
    assert embed(media).headers["Content-Type"].startswith("application/json")
    assert embed(media).headers["X-Content-Type-Options"] == "nosniff"


def test_a_photo_without_words_has_a_page_too(person):
    one = person()
    page = open_page(one.take())
    assert page.meta()["og:description"] == f"A photo by {one.username}."
    assert page.all("img", **{"class": "photo"})[0]["alt"] == f"Photo by {one.username}"
    assert "0 likes" in page.text


def test_the_page_runs_nothing_and_loads_from_the_cdn_alone(media):
    headers = get(path_of(media)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["img-src"] == f"{settings.CDN_URL}/"
    assert "script-src" not in policy
    assert all(style.startswith("'sha256-") for style in policy["style-src"].split())
    assert len(policy["style-src"].split()) == 2
    assert "Set-Cookie" not in headers


def test_whoever_keeps_the_page_has_to_ask_whether_it_still_is_so(person):
    one = person()
    media = one.take()
    settled(one)
    first = get(path_of(media))
    assert first.headers["Cache-Control"] == "no-cache"
    again = {"If-None-Match": first.headers["ETag"]}
    unchanged = get(path_of(media), headers=again)
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert "Content-Security-Policy" not in unchanged.headers  # else the browser would replace the page's own
    one.post(f"media/{media['id']}/likes")
    assert get(path_of(media), headers=again).status_code == 200
    one.delete(f"media/{media['id']}")
    gone = get(path_of(media), headers=again)
    assert gone.status_code == 404
    assert gone.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("suffix", ["", "media", "media/"])
def test_head_is_answered_without_a_body(media, suffix):
    response = requests.head(f"{media['link']}{suffix}", timeout=10)
    assert response.status_code == (302 if suffix else 200)
    assert response.content == b""
    assert "Content-Security-Policy" in response.headers


def test_a_page_takes_no_forms(media):
    response = requests.post(media["link"], data={"a": "b"}, timeout=10)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, HEAD"


def test_with_and_without_the_last_slash_it_is_the_same_page(media):
    assert get(path_of(media)).content == get(path_of(media).rstrip("/")).content


# What is not public does not exist.


def test_all_that_is_not_public_looks_the_same(person, stopped):
    one, private = person(), person()
    deleted, hidden, rejected = one.take(), private.take(), one.publish(b"not a picture")
    settled(one, private)
    one.delete(f"media/{deleted['id']}")
    private.post("accounts/edit", is_private="true")
    stopped("worker")
    processing = one.publish()

    nothing = get("/p/nothing/")
    assert nothing.status_code == 404
    assert "There is no such page" in nothing.text
    for media in (deleted, hidden, rejected, processing):
        for suffix in ("", "media/"):
            page = get(path_of(media) + suffix)
            assert (page.status_code, page.content) == (404, nothing.content)
            assert page.headers["Cache-Control"] == "no-store"
        refusal = embed(media)
        assert refusal.status_code == 404
        assert refusal.json()["meta"]["error_type"] == "APINotFoundError"
        assert refusal.text.replace(media["link"], "X") == embed({"link": "X"}).text


def test_an_account_that_becomes_public_again_has_its_pages_again(person):
    one = person()
    media = one.take()
    one.post("accounts/edit", is_private="true")
    assert get(path_of(media)).status_code == 404
    one.post("accounts/edit", is_private="false")
    assert get(path_of(media)).status_code == 200


def test_a_block_hides_nothing_from_nobody(person):
    """A block is between two; the page is for whoever comes without a name."""
    one, other = person(), person()
    media = one.take()
    one.block(other)
    assert get(path_of(media), headers={"Authorization": f"Bearer {other.token}"}).status_code == 200


@pytest.mark.parametrize("code", ["A", "_", "a b", "é", "x" * 12, "___________", "x" * 3000, "..%2f", "%0A"])
def test_codes_that_are_none(code):
    response = get(f"/p/{code}/", headers=BROWSER)
    assert response.status_code == 404
    assert "There is no such page" in response.text


def test_a_page_while_a_shard_is_away_asks_for_patience(media, stopped):
    stopped("pgbouncer", "memcached_1", "memcached_2", "redis_feeds")  # no copy of it counts without Redis
    response = get(path_of(media))
    assert response.status_code == 503
    assert "try again" in response.text
    assert response.headers["Retry-After"] == "1"


# The picture alone.


@pytest.mark.parametrize(
    ("query", "rendition"),
    [
        ("", "low_resolution"),
        ("?size=t", "thumbnail"),
        ("?size=m", "low_resolution"),
        ("?size=l", "standard_resolution"),
    ],
)
def test_the_picture_is_a_redirect_to_the_cdn(media, query, rendition):
    response = get(f"{path_of(media)}media/{query}", allow_redirects=False)
    assert response.status_code == 302
    assert response.headers["Location"] == media["images"][rendition]["url"]
    assert response.headers["Cache-Control"] == "no-cache"


def test_a_size_that_there_is_not(media):
    response = get(f"{path_of(media)}media/?size=xl")
    assert response.status_code == 400
    assert "size" in response.text


# oEmbed.


def test_oembed_describes_the_photo(one, media):
    response = embed(media)
    large, small = media["images"]["standard_resolution"], media["images"]["thumbnail"]
    assert response.json() == {
        "version": "1.0",
        "type": "photo",
        "provider_name": "Instagram",
        "provider_url": f"{SITE}/",
        "author_name": one.username,
        "author_id": one.id,
        "author_url": f"{SITE}/",
        "title": "Sunset #norway\nby the fjord",
        "media_id": media["id"],
        "url": large["url"],
        "width": 612,
        "height": 612,
        "thumbnail_url": small["url"],
        "thumbnail_width": 150,
        "thumbnail_height": 150,
    }
    assert response.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    ("most", "shown", "rendition"),
    [
        ({"maxwidth": 10_000}, 612, "standard_resolution"),
        ({"maxwidth": 612}, 612, "standard_resolution"),
        ({"maxwidth": 611}, 306, "low_resolution"),
        ({"maxheight": 400}, 306, "low_resolution"),
        ({"maxwidth": 400, "maxheight": 305}, 150, "thumbnail"),
        ({"maxwidth": 150}, 150, "thumbnail"),
        ({"maxheight": 100}, 100, "thumbnail"),
        ({"maxwidth": ""}, 612, "standard_resolution"),
    ],
)
def test_oembed_fits_into_the_space_that_there_is(media, most, shown, rendition):
    embedding = embed(media, **most).json()
    assert embedding["url"] == media["images"][rendition]["url"]
    assert (embedding["width"], embedding["height"]) == (shown, shown)
    assert embedding["thumbnail_width"] == embedding["thumbnail_height"] == min(shown, 150)


@pytest.mark.parametrize("form", ["{}", "{}?utm=1#x", "https://{host}{path}", "http://{upper}{path}", "{no_slash}"])
def test_oembed_takes_the_link_in_each_form(media, form):
    parts = urlsplit(media["link"])
    url = form.format(
        media["link"],
        host=parts.netloc,
        upper=parts.netloc.upper(),
        path=parts.path,
        no_slash=media["link"].rstrip("/"),
    )
    assert get("/oembed", params={"url": url}).json()["media_id"] == media["id"]


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere.example{path}",
        "http://{host}@elsewhere.example{path}",
        "ftp://{host}{path}",
        "{path}",
        "http://{host}/",
        "http://{host}{path}media/",
        "http://{host}/p/A/",
        "http://[",
        "x",
    ],
)
def test_oembed_knows_no_other_links(media, url):
    parts = urlsplit(media["link"])
    response = get("/oembed", params={"url": url.format(host=parts.netloc, path=parts.path)})
    assert response.status_code == response.json()["meta"]["code"] == 404


@pytest.mark.parametrize(
    ("params", "code", "named"),
    [
        ({"url": ""}, 400, "url"),
        ({"maxwidth": "0"}, 400, "maxwidth"),
        ({"maxheight": "wide"}, 400, "maxheight"),
        ({"format": "xml"}, 501, "format"),
    ],
)
def test_oembed_names_what_is_wrong(media, params, code, named):
    meta = embed(media, **params).json()["meta"]
    assert (meta["code"], meta["error_type"]) == (code, "APIInvalidParametersError")
    assert meta["error_message"].startswith(named)


def test_oembed_as_a_script(media):
    response = embed(media, callback="show", omitscript="true", format="json")
    assert response.headers["Content-Type"].startswith("application/javascript")
    assert json.loads(response.text.removeprefix("/**/show(").removesuffix(");"))["media_id"] == media["id"]


def test_oembed_of_a_private_photo_says_nothing_of_it(person):
    one = person()
    media = one.take(caption="secret")
    eventually(lambda: embed(media).status_code == 200)
    one.post("accounts/edit", is_private="true")
    response = embed(media)
    assert response.status_code == 404
    assert "secret" not in response.text


def test_a_links_code_is_the_photos_id(media):
    assert media["link"] == f"{SITE}/p/{shortcode(photo_id(media['id']))}/"
