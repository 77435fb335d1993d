"""The types of the API's parameters that every app uses; pydantic checks them."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from shardmap.ids import MAX_ID

DIGITS = re.compile(r"[0-9]{1,19}")


def _whole(value: Any) -> Any:
    """Lets pass what is written as a whole number and in no other way (int() would take "1_0", " 1 ", "+1")."""
    if isinstance(value, bool) or not DIGITS.fullmatch(str(value)):
        raise ValueError(f"{value!r} is not a whole number")
    return value


Whole = BeforeValidator(_whole)
Id = Annotated[int, Field(ge=0, le=MAX_ID), Whole]
Count = Annotated[int, Field(ge=1, le=100), Whole]  # items a page
Timestamp = Annotated[int, Field(ge=0, le=MAX_ID), Whole]  # Unix time in seconds
