"""Every path that the app servers answer, and which function does."""

from functools import partial

from django.urls import path, re_path
from django.views.generic import RedirectView
from django.views.static import serve

import accounts.api as accounts
import accounts.oauth as oauth
import accounts.pages as pages
import feeds.api as feeds
import notifications.api as notifications
import photos.api as photos
import photos.linking as linking
import photos.pages as permalinks
from accounts.web import page, public_page
from instagram import admin, browsers
from instagram.api import dispatch, health, limits, openapi
from instagram.api.dispatch import raw, route
from instagram.reference import reference

urlpatterns = [
    # What is asked for all day comes first: paths are tried in this order.
    route("v1/users/self/feed", GET=feeds.home_feed),
    path("healthz", health.healthz),
    path("readyz", health.readyz),
    path("pingdom.xml", health.pingdom),
    path("", RedirectView.as_view(url="/developer/")),
    path("favicon.ico", browsers.no_icon),
    path("robots.txt", browsers.robots),
    public_page("p/{code}", permalinks.photo),
    public_page("p/{code}/media", permalinks.picture),
    route("oembed", enveloped=False, GET=permalinks.oembed),
    page("oauth/authorize", pages.authorize),
    page("accounts/login", limits.limited_page(pages.log_in, limits.of_login)),
    page("accounts/logout", pages.log_out),
    page("accounts/manage_access", pages.manage_access),
    page("shares", linking.accounts),
    page("shares/{service}/link", limits.limited_page(linking.link, partial(limits.of_form, name="links"))),
    page("shares/{service}/unlink", linking.unlink),
    page("shares/{service}/callback", linking.linked),
    page("developer", reference),
    path("developer/openapi.json", openapi.serve),
    page("developer/clients", pages.clients),
    page("developer/clients/register", pages.register_client),
    page("developer/clients/{client_id}", pages.client),
    page("developer/clients/{client_id}/secret", pages.rotate_secret),
    page("developer/clients/{client_id}/delete", pages.delete_client),
    path("admin/", admin.site.urls),
    re_path(r"^static/(?P<path>admin/.+)$", serve, {"document_root": admin.STATIC}),
    raw("oauth/access_token", "POST", oauth.access_token, oauth.TokenForm, limits.of_login),
    raw("oauth/revoke_token", "POST", oauth.revoke, oauth.RevocationForm),
    route("v1/accounts", POST=("sign_ups", accounts.sign_up), DELETE=accounts.delete_account),
    route("v1/accounts/edit", POST=accounts.edit_profile),
    route("v1/accounts/avatar", GET=photos.get_avatar, POST=photos.change_avatar, DELETE=photos.remove_avatar),
    route("v1/accounts/password", POST=accounts.change_password),
    route("v1/users/self/activity", GET=("relationships", feeds.get_activity)),
    route("v1/users/self/requested-by", GET=("relationships", accounts.requested_by)),
    route("v1/users/self/media/liked", GET=photos.liked_media),
    route("v1/users/search", GET=accounts.search_users),
    route("v1/users/{user_id}/follows", GET=accounts.follows),
    route("v1/users/{user_id}/followed-by", GET=accounts.followed_by),
    route("v1/users/{user_id}", GET=accounts.get_user),
    route("v1/users/{user_id}/media/recent", GET=photos.recent_media),
    route(
        "v1/users/{user_id}/relationship",
        GET=accounts.get_relationship,
        POST=("relationships", accounts.change_relationship),
    ),
    route("v1/media/uploads", POST=("publish", photos.create_upload)),
    route("v1/media", POST=("publish", photos.publish)),
    route(
        "v1/media/{media_id}/likes",
        GET=photos.get_likes,
        POST=("likes", photos.like),
        DELETE=("likes", photos.unlike),
    ),
    route("v1/media/{media_id}/comments", GET=photos.get_comments, POST=("comments", photos.comment)),
    route("v1/media/{media_id}/shares", GET=photos.get_shares, POST=("publish", photos.share_media)),
    route("v1/media/{media_id}/comments/{comment_id}", DELETE=("comments", photos.delete_comment)),
    route("v1/media/popular", GET=feeds.popular_media),
    route("v1/media/search", GET=photos.search_media),
    route("v1/media/shortcode/{code}", GET=photos.get_media_by_shortcode),
    route(
        "v1/media/{media_id}",
        GET=photos.get_media,
        POST=("publish", photos.edit_media),
        DELETE=("publish", photos.delete_media),
    ),
    route(
        "v1/shares/accounts",
        GET=photos.get_share_accounts,
        POST=photos.link_share_account,
        DELETE=photos.unlink_share_account,
    ),
    route("v1/locations/search", GET=photos.search_locations),
    route("v1/locations/{location_id}/media/recent", GET=photos.location_media),
    route("v1/locations/{location_id}", GET=photos.get_location),
    route("v1/geographies/{geography_id}/media/recent", GET=notifications.geography_media),
    route(
        "v1/push/devices",
        GET=notifications.list_devices,
        POST=notifications.register_device,
        DELETE=notifications.unregister_device,
    ),
    route("v1/push/settings", GET=notifications.get_push_settings, POST=notifications.change_push_settings),
    route("v1/push/muted", GET=notifications.list_muted, POST=notifications.mute, DELETE=notifications.unmute),
    route(
        "v1/subscriptions",
        GET=notifications.list_subscriptions,
        POST=("subscriptions", notifications.create_subscription),
        DELETE=notifications.delete_subscriptions,
    ),
    route("v1/tags/search", GET=photos.search_tags),
    route("v1/tags/{name}/media/recent", GET=photos.tagged_media),
    route("v1/tags/{name}", GET=photos.get_tag),
]
handler400 = dispatch.bad_request
handler404 = browsers.not_found
handler500 = dispatch.server_error
