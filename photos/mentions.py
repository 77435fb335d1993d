"""Mentions: @usernames in captions and comments."""

import re

from accounts.services import users_named

MENTION = re.compile(r"(?<![\w.@])@([A-Za-z0-9._]{1,30})")  # not within an email address
MOST_MENTIONS = 20  # of one text, so that nobody can ring at a thousand doors at once


def mentioned_in(text: str) -> set[int]:
    """The users whom a text mentions, the first MOST_MENTIONS of them."""
    names = [name.lower() for name in MENTION.findall(text)[:MOST_MENTIONS]]
    # A dot may belong to the name, or end the sentence.
    readings = [(name, name.rstrip(".")) for name in names]
    known = users_named({name for either in readings for name in either})
    found = (known.get(with_dot, known.get(without)) for with_dot, without in readings)
    return {user_id for user_id in found if user_id is not None}
