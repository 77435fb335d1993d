"""The types of the API's parameters and answers that every app uses; pydantic checks the former, and describes both."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from shardmap.ids import MAX_ID

DIGITS = re.compile(r"[0-9]{1,19}")


def _whole(value: Any) -> Any:
    """Lets pass what is written as a whole number and in no other way (int() would take "1_0", " 1 ", "+1")."""
    if isinstance(value, bool) or not DIGITS.fullmatch(str(value)):
        raise ValueError(f"{value!r} is not a whole number")
    return value


# How IDs and times are written, in both directions: a number in JavaScript has no more than 53 bits.
WRITTEN = {"type": "string", "pattern": "^[0-9]{1,19}$"}

Whole = BeforeValidator(_whole)
Id = Annotated[int, Field(ge=0, le=MAX_ID), Whole, WithJsonSchema(WRITTEN)]
Count = Annotated[int, Field(ge=1, le=100), Whole]  # items a page
Timestamp = Annotated[int, Field(ge=0, le=MAX_ID), Whole, WithJsonSchema(WRITTEN)]  # Unix time in seconds

# Of answers.
IdText = Annotated[str, WithJsonSchema(WRITTEN)]
TimeText = Annotated[str, WithJsonSchema(WRITTEN | {"description": "Unix time in seconds"})]
Cursor = dict[str, str]  # the parameters that ask for the next page, or nothing on the last one
