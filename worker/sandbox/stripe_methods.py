"""Payment methods as far as confirming an intent needs them: test names, inline data, and saved ones.

Source: https://docs.stripe.com/testing and https://docs.stripe.com/api/payment_methods. There is no endpoint of
their own: any `pm_1…` not met before stands for a saved Visa card that works.
"""

from typing import Any

from worker.sandbox.stripe_cards import BANK_ACCOUNT, REDIRECT, SAVED_CARD, TEST_METHODS, Method
from worker.sandbox.stripe_errors import missing
from worker.sandbox.stripe_params import Params
from worker.sandbox.stripe_store import Json, Scope, new_id


class PaymentMethods:
    def __init__(self) -> None:
        self._behaviour: dict[tuple[Scope, str], Method] = {}

    def named_by(self, scope: Scope, params: Params) -> str | None:
        """The id of the payment method a request brings, None if it brings none. Raises ApiError for an unknown one.

        A test name makes a new payment method each time, under an id of its own: an answer never shows the name.
        """
        name = params.get("payment_method")
        if name is not None:
            return self._known(scope, name)
        data = params.get("payment_method_data")
        if data is not None:
            return self._made_from(scope, data)
        if "confirmation_token" in params:
            return self._new(scope, SAVED_CARD)
        return None

    def behaviour(self, scope: Scope, method_id: str) -> Method:
        return self._behaviour.get((scope, method_id), SAVED_CARD)

    def describe(self, scope: Scope, method_id: str, customer: str | None) -> Json:
        method = self.behaviour(scope, method_id)
        details: dict[str, Any] = {"last4": method.last4}
        if method.kind == "card":
            details |= {"brand": method.brand, "country": "US", "exp_month": 12, "exp_year": 2034, "funding": "credit"}
        return {
            "id": method_id,
            "object": "payment_method",
            method.kind: details,
            "customer": customer,
            "livemode": scope.livemode,
            "type": method.kind,
        }

    def _known(self, scope: Scope, name: str) -> str:
        if name in TEST_METHODS and not scope.livemode:
            return self._new(scope, TEST_METHODS[name])
        if (scope, name) in self._behaviour or name.startswith("pm_1"):
            return name
        raise missing("PaymentMethod", name, param="payment_method", status=400)

    def _made_from(self, scope: Scope, data: Json) -> str:
        if data["type"] == "us_bank_account":
            return self._new(scope, BANK_ACCOUNT)
        if data["type"] != "card":
            return self._new(scope, REDIRECT)
        token: str = data.get("card", {}).get("token", "tok_visa")
        return self._known(scope, "pm_card_" + token.removeprefix("tok_"))

    def _new(self, scope: Scope, method: Method) -> str:
        method_id = new_id("pm")
        self._behaviour[scope, method_id] = method
        return method_id
