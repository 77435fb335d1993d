"""What a push says, in the user's language.

By Python's own gettext: Django's translates by thread-wide state, and what the API answers is not translated. After a
change here: `pybabel update` and `pybabel compile` as docs/notifications.md has it, for no server needs them.
"""

from functools import cache
from gettext import NullTranslations, translation
from pathlib import Path

LOCALE = Path(__file__).parent / "locale"
LONGEST_QUOTE = 100  # characters; a phone that is locked shows no more


def text(kind: str, language: str, actor: str, others: int = 0, said: str = "") -> str:
    """A sentence about something of this kind that `actor`, a username, did, and `others` after the same fashion.

    What people wrote is put into the sentence last, so whatever is in it means nothing.
    """
    t = _translations(language)
    if kind == "like":
        one = t.gettext("{actor} liked your photo.")
        many = t.ngettext(
            "{actor} and {others} other liked your photo.", "{actor} and {others} others liked your photo.", others
        )
    elif kind == "comment":
        one = many = t.gettext("{actor} commented: {said}")
    elif kind == "mention":
        one = many = t.gettext("{actor} mentioned you: {said}")
    elif kind == "follow":
        one = t.gettext("{actor} started following you.")
        many = t.ngettext(
            "{actor} and {others} other started following you.",
            "{actor} and {others} others started following you.",
            others,
        )
    elif kind == "request":
        one = t.gettext("{actor} has asked to follow you.")
        many = t.ngettext(
            "{actor} and {others} other have asked to follow you.",
            "{actor} and {others} others have asked to follow you.",
            others,
        )
    elif kind == "approval":
        one = many = t.gettext("{actor} has accepted your request to follow.")
    elif kind == "friend_joined":  # who is known from the service that `said` names
        one = many = t.gettext("Your {said} friend {actor} is here now.")
    elif kind == "link_broken":  # of which the service is the actor
        one = many = t.gettext("{actor} lets us in no longer. Link your account again to share photos there.")
    else:
        one = many = t.gettext("{actor} has posted a first photo.")
    return (many if others else one).format(actor=actor, others=others, said=_quote(said))


def _quote(said: str) -> str:
    line = " ".join(said.split())
    return line if len(line) <= LONGEST_QUOTE else f"{line[: LONGEST_QUOTE - 1]}…"


@cache
def _translations(language: str) -> NullTranslations:
    return translation("push", LOCALE, [language], fallback=True)  # English is in the code
