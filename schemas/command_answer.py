"""What the answers to commands have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

ToldRequestId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=255,
        description="The command's `request_id`, or the id of its event where it has none.",
        examples=["refund-7"],
    ),
]


class CommandFailure(BaseModel):
    """Why a command was not carried out."""

    model_config = ConfigDict(defer_build=True, frozen=True, extra="ignore")

    code: str = Field(
        min_length=1,
        description="An open set: `already_paid`, `already_captured`, `nothing_to_capture`, `over_capture`, "
        "`nothing_paid`, `over_refund`, `disputed` and others of the worker's, or Stripe's own.",
        examples=["over_refund"],
    )
    message: str = Field(min_length=1, description="For people who run the shop, not for its customers.")
