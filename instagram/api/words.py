"""The words of the API's description that belong to no single endpoint (instagram/api/openapi.py); `…` is code."""

OVERVIEW = {
    "Paths": "Each path also answers with a slash at its end, and with `.json`. Where a GET is, a HEAD is too. A GET "
    "with `callback` is answered by a call of that function in JavaScript (JSONP). A POST or a DELETE takes a form "
    "or a JSON object, and what is no secret also in the query. A list is `name[]=…&name[]=…` there, an array in JSON.",
    "Answers": 'An answer is `{"meta": {"code": 200}, "data": …}`, an error `{"meta": {"code", "error_type", '
    '"error_message"}}` with the same HTTP status. IDs and times (in seconds since 1970) are strings. New fields may '
    "come at any time: pass over those that you do not know.",
    "Authentication": "Calls need an access token, by OAuth 2 from `/oauth/authorize`; send it as `Authorization: "
    "Bearer …`, or as the parameter `access_token`. Those that write need one with the scope that they name. Some "
    "also take the `client_id` of an app alone, for what is public. If an app has asked for it, each of its "
    "requests must be signed: `sig` is the HMAC-SHA256, with its secret, of the path after `/v1` and of "
    "`|name=value` for each parameter in the order of their names.",
    "Paging": "`count` says how many items you want. When there are more, `pagination` has the `next_url`, and the "
    "parameter of which it is made. A page may have fewer items than `count`, even none, and not be the last one: "
    "the last one is the one without a `next_url`. A `min_…` in it asks, later, for what has come since.",
    "Limits": "An access token, and an app without one, has {requests} requests in any hour; of those, a token has "
    "{comments} comments, {likes} likes and {relationships} changes of relationships. `X-Ratelimit-Remaining` says "
    "how many are left, and with a 429, `Retry-After` for how many seconds to wait.",
}

# What a parameter means wherever it comes. Where one endpoint means something else, its type says so by a `Field`.
MEANINGS = {
    "action": "What to do",
    "aspect": "What about it: its photos",
    "bio": "A text about the user",
    "callback_url": "Where updates are sent",
    "caption": "The text below the photo, in which `#words` are tags",
    "client_id": "The app's ID",
    "client_secret": "The app's secret, unless it runs where nothing stays secret",
    "code": "The code",
    "code_verifier": "The verifier that the code's `code_challenge` was made of (PKCE)",
    "comment_id": "A comment's ID",
    "comments": "Of whose comments to notify",
    "content_type": "What will be uploaded: `image/jpeg`, `image/png`, `image/webp`, `image/heic` or `image/heif`",
    "count": "How many items are wanted at most",
    "cursor": "Where the page begins: the `next_cursor` of the one before",
    "distance": "How far around the point, in metres",
    "email": "An email address, which nobody sees",
    "environment": "Which of Apple's push services the phone uses",
    "filter": "The name of the filter that was put on the photo",
    "first_photos": "Of whose first photos to notify",
    "follow_requests": "Of whose requests to follow to notify",
    "follows": "Of which new followers to notify",
    "format": "`json`, the only one there is",
    "foursquare_v2_id": "The place's ID on Foursquare",
    "friends_joined": "Of which friends to notify who join",
    "full_name": "The user's name in full",
    "geography_id": "The ID that a subscription to a geography has as its `object_id`",
    "grant_type": "What is given for the token",
    "id": "A subscription's ID",
    "is_private": "Whether the account is private",
    "language": "Of the notifications",
    "lat": "The point's latitude",
    "latitude": "Where the photo was taken",
    "likes": "Of whose likes to notify",
    "lng": "The point's longitude",
    "location_id": "A place's ID",
    "location_name": "The name of a place that may be new",
    "longitude": "Where the photo was taken",
    "max_id": "Photos before this one: the `next_max_id` of the page before",
    "max_like_id": "Likes before this one: the `next_max_like_id` of the page before",
    "max_tag_id": "Taggings before this one: the `next_max_tag_id` of the page before",
    "max_timestamp": "Until this time, in seconds since 1970",
    "maxheight": "The most pixels that there is room for",
    "maxwidth": "The most pixels that there is room for",
    "media_id": "A photo's ID, with or without the `_` and the owner's ID",
    "mentions": "Of whose mentions to notify",
    "min_id": "Photos after this one",
    "min_tag_id": "Taggings after this one",
    "min_timestamp": "From this time on, in seconds since 1970",
    "name": "The tag's name, without its #",
    "new_password": "The password as it shall be",
    "object": "What has the photos",
    "object_id": "The tag's name, or the place's ID",
    "old_password": "The password as it is",
    "password": "The user's password",
    "q": "What to look for",
    "quiet_from": "When notifications stop, `hh:mm`",
    "quiet_to": "When they come again",
    "radius": "The geography's radius, in metres",
    "redirect_uri": "The one that the code came to",
    "scope": "The scopes that are wanted, with blanks between; all if there is none",
    "secret": "What the service gave for it, with the token",
    "service": "The other service",
    "share_to": "Where to share the photo: `twitter`, `facebook`, or both",
    "text": "The comment, up to 300 characters",
    "time_zone": "Of the quiet hours, like `Europe/Berlin`",
    "token": "An access token",
    "upload_id": "That of `POST /v1/media/uploads`",
    "url": "The photo's permalink",
    "user_id": "A user's ID, or `self`: the one whose token it is",
    "username": "1 to 30 characters of a-z, 0-9, dot and underscore",
    "verify_token": "Comes back with the challenge of the `callback_url`",
    "website": "An address of the user's, `http://…` or `https://…`",
}
