"""The client secret as a type that cannot be written down by accident."""

from typing import NoReturn


class ClientSecret:
    """Lets a customer pay; belongs in the private reply and nowhere else.

    Has no text of its own: printing, formatting, logging, JSON and pickling all fail to give it away.
    Source: https://docs.stripe.com/api/payment_intents/object#payment_intent_object-client_secret.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself. Called where the private reply is written, and there alone."""
        return self._value

    def __repr__(self) -> str:
        return "ClientSecret(***)"

    __str__ = __repr__

    def __format__(self, _: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client secret is not pickled")
