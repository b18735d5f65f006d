"""Everything that is set from outside: one frozen class, every problem told at once, secrets never shown."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from worker.errors import ConfigurationError


def _known_scheme(value: SecretStr) -> SecretStr:
    if not _is_address(value.get_secret_value(), ("amqp", "amqps")):
        raise ValueError("must look like amqp://user:password@host:5672/vhost (or amqps://), the password URL-encoded")
    return value


def _known_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"(sk|rk)_(test|live)_[A-Za-z0-9_]{1,250}", value.get_secret_value()):
        raise ValueError("must be a secret or restricted key: sk_test_…, sk_live_…, rk_test_… or rk_live_…")
    return value


def _known_secrets(value: SecretStr) -> SecretStr:
    told = [each.strip() for each in value.get_secret_value().split(",")]
    if not all(re.fullmatch(r"whsec_[A-Za-z0-9+/=_-]{8,250}", each) for each in told):
        raise ValueError("must be whsec_… as the endpoint's page shows it; several have commas between")
    return value


def _known_ledger(value: SecretStr) -> SecretStr:
    scheme = value.get_secret_value().partition("://")[0].partition("+")[0]
    if scheme not in ("sqlite", "postgresql", "postgres"):
        raise ValueError("must be sqlite+aiosqlite:///./payments.db or postgresql://user:password@host/database")
    return value


def _http_address(value: str) -> str:
    if not _is_address(value, ("http", "https")) or "?" in value:
        raise ValueError("must be a base address such as http://127.0.0.1:12111")
    return value.rstrip("/")


def _is_address(value: str, schemes: tuple[str, ...]) -> bool:
    """Whether it is a URL with a host and a fit port. The parser's own errors quote pieces of passwords."""
    try:
        url = urlsplit(value)
        return url.scheme in schemes and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,200}$")]


class Settings(BaseModel):
    """The settings; each field's environment name is its own in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    amqp_url: Annotated[SecretStr, AfterValidator(_known_scheme)] = Field(description="The broker.")
    stripe_api_key: Annotated[SecretStr, AfterValidator(_known_key)] = Field(
        description="Restricted or secret key; its prefix tells live from test mode."
    )
    stripe_api_base: Annotated[str, AfterValidator(_http_address)] | None = Field(
        default=None, description="Another base address than Stripe's own, such as the sandbox's."
    )
    stripe_rate_limit: float = Field(
        default=25, gt=0, le=100_000, description="PaymentIntent creations a second, for all replicas together."
    )
    stripe_key_horizon: int = Field(
        default=82_800,
        gt=0,
        le=86_400,
        description="Seconds after its first use past which an idempotency key is no longer trusted.",
    )
    stripe_webhook_secret: Annotated[SecretStr, AfterValidator(_known_secrets)] | None = Field(
        default=None,
        description="Of the webhook endpoint, whsec_…; several with commas between, while one is rolled.",
    )
    webhook_tolerance: float = Field(
        default=300, gt=0, le=3600, description="Seconds that a webhook's time may lie behind or ahead of ours."
    )
    stripe_timeout: float = Field(default=25, gt=0, le=80, description="Seconds one call to Stripe may take.")
    database_url: Annotated[SecretStr, AfterValidator(_known_ledger)] = Field(
        default=SecretStr("sqlite+aiosqlite:///./payments.db"),
        description="The ledger; PostgreSQL for more than one machine.",
    )
    migrate_at_start: bool | None = Field(
        default=None, description="Bring the ledger's schema up to date at start; by default SQLite only."
    )
    http_host: str = Field(default="127.0.0.1", min_length=1, description="Health and metrics listen here.")
    http_port: int = Field(default=8080, ge=0, le=65_535, description="0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] | None = Field(
        default=None, description="By default JSON unless on a terminal."
    )
    prefetch: int = Field(
        default=64,
        ge=1,
        le=1000,
        description="Orders in work at once. Bounds memory, and connections to Stripe.",
    )
    claim_ttl: float = Field(
        default=4,
        ge=0.5,
        le=600,
        description="Seconds without a sign of life after which another worker takes over a call.",
    )
    resolve_after: float = Field(
        default=900,
        gt=0,
        le=86_400,
        description="Seconds after which a call that nobody has come back for is settled in the background.",
    )
    reconcile_every: float = Field(
        default=900,
        ge=0,
        le=86_400,
        description="Seconds between looks at Stripe for what its webhooks did not bring; 0: never by itself.",
    )
    dead_letter_ceiling: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Share of dead letters among the last hundred orders above which consumption stops; 1: never.",
    )
    drain_timeout: float = Field(
        default=6, ge=0, le=600, description="Seconds that begun orders have to finish in when stopping."
    )
    event_source: Name = Field(default="payment-worker", description="`source` of the events.")
    orders_exchange: Name = "orders"
    orders_routing_key: Name = "order.created"
    orders_queue: Name = "payment-worker.orders"
    retry_queue_prefix: Name = "payment-worker.retry"
    dead_letters_queue: Name = "payment-worker.dead-letters"
    payments_exchange: Name = "payments"

    @property
    def webhook_secrets(self) -> tuple[str, ...]:
        """Of the webhook endpoint; none where it is off."""
        told = self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else ""
        return tuple(filter(None, (each.strip() for each in told.split(","))))

    @property
    def livemode(self) -> bool:
        """Whether the Stripe key moves real money."""
        return self.stripe_api_key.get_secret_value().startswith(("sk_live_", "rk_live_"))

    @property
    def has_stripe_key(self) -> bool:
        """Whether a key was given, where the command can do without."""
        return self.stripe_api_key.get_secret_value() != _PLACEHOLDERS["STRIPE_API_KEY"]

    @property
    def has_broker(self) -> bool:
        """Whether a broker was named, where the command can do without."""
        return self.amqp_url.get_secret_value() != _PLACEHOLDERS["AMQP_URL"]

    @property
    def ledger_is_sqlite(self) -> bool:
        """Whether the ledger is a file of this machine."""
        return self.database_url.get_secret_value().startswith("sqlite")

    @property
    def migrates_at_start(self) -> bool:
        """Whether `run` brings the ledger's schema up to date."""
        return self.ledger_is_sqlite if self.migrate_at_start is None else self.migrate_at_start


SECRETS: Final = frozenset(
    name.upper() for name in ("amqp_url", "stripe_api_key", "stripe_webhook_secret", "database_url")
)
SETTING_NAMES: Final = frozenset(name.upper() for name in Settings.model_fields) | {f"{name}_FILE" for name in SECRETS}


def read_settings(environment: Mapping[str, str], *, needed: frozenset[str] | None = None) -> Settings:
    """The settings in an environment. `NAME_FILE` beside a secret names a file that holds it.

    needed: where a command wants fewer settings than `run`, those it does want; the other required ones are
    then filled with a placeholder. Raises ConfigurationError that tells every problem, and no secret.
    """
    problems: list[str] = []
    values: dict[str, str] = {}
    for field in Settings.model_fields:
        try:
            value = _read_one(field.upper(), environment)
        except ConfigurationError as error:
            problems.append(str(error))
            value = _PLACEHOLDERS.get(field.upper(), "")  # told already; what is only missing is told below
        if not value and needed is not None and field.upper() not in needed:
            value = _PLACEHOLDERS.get(field.upper(), "")
        if value:
            values[field] = value
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems += [_said(fault) for fault in error.errors(include_input=False, include_url=False)]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return settings


def _read_one(name: str, environment: Mapping[str, str]) -> str:
    """A setting's text, from the environment or from the file it names; empty where it is not set."""
    text = environment.get(name, "")
    path = environment.get(f"{name}_FILE", "") if name in SECRETS else ""
    if text and path:
        raise ConfigurationError(f"{name} and {name}_FILE are both set; keep one")
    if not path:
        return text
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{name}_FILE cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name}_FILE is not UTF-8 text") from None
    if not text:  # a default in its place would be a ledger that nobody meant
        raise ConfigurationError(f"{name}_FILE names an empty file")
    return text


def _said(fault: Any) -> str:
    name = str(fault["loc"][0]).upper()
    if fault["type"] == "missing":
        return f"{name} is not set{_EXAMPLES.get(name, '')}"
    cause = fault.get("ctx", {}).get("error")
    return f"{name} {cause or fault['msg'].removeprefix('Input ').removeprefix('String ')}"


_EXAMPLES: Final = {
    "AMQP_URL": "; for example amqp://guest:guest@localhost:5672/",
    "STRIPE_API_KEY": "; for example rk_test_… (or STRIPE_API_KEY_FILE)",
}
_PLACEHOLDERS: Final = {
    "AMQP_URL": "amqp://not-needed",
    "STRIPE_API_KEY": "sk_test_not_needed",
    "DATABASE_URL": "sqlite://",
}
