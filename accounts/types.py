"""The types of the API's parameters that every app uses; pydantic checks them."""

from typing import Annotated

from pydantic import Field

BIGGEST = 2**63 - 1

Id = Annotated[int, Field(ge=0, le=BIGGEST)]
Count = Annotated[int, Field(ge=1, le=100)]  # items a page
