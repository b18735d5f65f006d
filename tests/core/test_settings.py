"""Everything that is set from outside."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from worker.errors import ConfigurationError
from worker.settings import SECRETS, SETTING_NAMES, Settings, read_settings

LEAST = {"AMQP_URL": "amqp://guest:guest@localhost:5672/", "STRIPE_API_KEY": "sk_test_abc"}


def problems_of(environment: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(environment)
    return str(caught.value).splitlines()


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = read_settings(LEAST)
    assert settings.amqp_url.get_secret_value() == LEAST["AMQP_URL"]
    assert settings.stripe_api_key.get_secret_value() == LEAST["STRIPE_API_KEY"]
    assert settings.database_url.get_secret_value() == "sqlite+aiosqlite:///./payments.db"
    defaults = {
        "stripe_api_base": None,
        "stripe_webhook_secret": None,
        "webhook_tolerance": 300,
        "webhook_secrets": (),
        "stripe_rate_limit": 25,
        "stripe_key_horizon": 82_800,
        "resolve_after": 900,
        "reconcile_every": 900,
        "dead_letter_ceiling": 0.9,
        "http_host": "127.0.0.1",
        "http_port": 8080,
        "log_level": "info",
        "log_format": None,
        "event_source": "payment-worker",
        "orders_exchange": "orders",
        "orders_routing_key": "order.created",
        "orders_queue": "payment-worker.orders",
        "retry_queue_prefix": "payment-worker.retry",
        "dead_letters_queue": "payment-worker.dead-letters",
        "payments_exchange": "payments",
    }
    assert {name: getattr(settings, name) for name in defaults} == defaults


def test_every_setting_is_read_from_its_name_in_capitals() -> None:
    environment = {
        "AMQP_URL": "amqps://u:p@broker/vhost",
        "STRIPE_API_KEY": "rk_live_abc",
        "STRIPE_API_BASE": "http://127.0.0.1:12111/",
        "STRIPE_RATE_LIMIT": "2.5",
        "STRIPE_KEY_HORIZON": "3600",
        "STRIPE_TIMEOUT": "10",
        "STRIPE_WEBHOOK_SECRET": "whsec_oldoldold, whsec_newnewnew",
        "WEBHOOK_TOLERANCE": "60",
        "DATABASE_URL": "postgresql://u:p@db/payments",
        "MIGRATE_AT_START": "true",
        "HTTP_HOST": "0.0.0.0",
        "HTTP_PORT": "0",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "console",
        "PREFETCH": "8",
        "CLAIM_TTL": "2",
        "RESOLVE_AFTER": "60",
        "RECONCILE_EVERY": "0",
        "DEAD_LETTER_CEILING": "0.5",
        "DRAIN_TIMEOUT": "0",
        "EVENT_SOURCE": "shop-1",
        "ORDERS_EXCHANGE": "o",
        "ORDERS_ROUTING_KEY": "r",
        "ORDERS_QUEUE": "q",
        "RETRY_QUEUE_PREFIX": "p",
        "DEAD_LETTERS_QUEUE": "d",
        "PAYMENTS_EXCHANGE": "x",
    }
    assert {name for name in SETTING_NAMES if not name.endswith("_FILE")} == set(environment)
    settings = read_settings({**environment, "HOME": "/root", "STRIPE_SOMETHING": "else"})
    assert settings.stripe_api_base == "http://127.0.0.1:12111"
    assert settings.webhook_secrets == ("whsec_oldoldold", "whsec_newnewnew")
    assert (settings.stripe_rate_limit, settings.http_port, settings.prefetch) == (2.5, 0, 8)
    unread = {name for name in Settings.model_fields if name not in settings.model_fields_set}
    assert unread == set()


def test_the_names_are_known_for_those_who_clear_the_environment() -> None:
    assert {"AMQP_URL", "STRIPE_API_KEY", "DATABASE_URL", "HTTP_PORT"} < SETTING_NAMES
    assert {name for name in SETTING_NAMES if name.endswith("_FILE")} == {f"{name}_FILE" for name in SECRETS}
    assert {"AMQP_URL", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", "DATABASE_URL"} == SECRETS


def test_what_is_missing_is_told_with_an_example() -> None:
    assert problems_of({}) == [
        "AMQP_URL is not set; for example amqp://guest:guest@localhost:5672/",
        "STRIPE_API_KEY is not set; for example rk_test_… (or STRIPE_API_KEY_FILE)",
    ]
    assert problems_of({"AMQP_URL": "", "STRIPE_API_KEY": ""}) == problems_of({})


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    problems = problems_of(
        {
            "STRIPE_API_KEY": "pk_test_public",
            "DATABASE_URL": "mysql://u:p@h/d",
            "DATABASE_URL_FILE": str(tmp_path),
            "AMQP_URL_FILE": str(tmp_path / "nowhere"),
            "HTTP_PORT": "http",
            "STRIPE_RATE_LIMIT": "0",
            "LOG_LEVEL": "loud",
            "ORDERS_QUEUE": "has spaces",
        }
    )
    named = {problem.split()[0] for problem in problems}
    assert named == {
        "STRIPE_API_KEY",
        "DATABASE_URL",
        "AMQP_URL_FILE",
        "HTTP_PORT",
        "STRIPE_RATE_LIMIT",
        "LOG_LEVEL",
        "ORDERS_QUEUE",
    }
    assert len(problems) == len(named)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMQP_URL", "http://localhost"),
        ("AMQP_URL", "localhost:5672"),
        ("AMQP_URL", "amqp://"),
        ("AMQP_URL", "amqp://host:port/"),
        ("AMQP_URL", "amqp://host:99999/"),
        ("STRIPE_API_KEY", "sk_test_"),
        ("STRIPE_API_KEY", "pk_test_abc"),
        ("STRIPE_API_KEY", "whsec_abc"),
        ("STRIPE_API_KEY", "sk_test_abc\n"),
        ("STRIPE_API_KEY", "sk_test_ä"),
        ("STRIPE_API_BASE", "127.0.0.1:12111"),
        ("STRIPE_API_BASE", "ftp://host"),
        ("STRIPE_API_BASE", "http://host:x"),
        ("STRIPE_API_BASE", "http://host/?a=b"),
        ("STRIPE_RATE_LIMIT", "0"),
        ("STRIPE_RATE_LIMIT", "-1"),
        ("STRIPE_RATE_LIMIT", "nan"),
        ("STRIPE_RATE_LIMIT", "inf"),
        ("STRIPE_KEY_HORIZON", "86401"),
        ("STRIPE_KEY_HORIZON", "1.5"),
        ("STRIPE_TIMEOUT", "0"),
        ("DATABASE_URL", "mysql://h/d"),
        ("DATABASE_URL", "payments.db"),
        ("MIGRATE_AT_START", "perhaps"),
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("PREFETCH", "0"),
        ("PREFETCH", "1001"),
        ("CLAIM_TTL", "0.1"),
        ("DRAIN_TIMEOUT", "-1"),
        ("EVENT_SOURCE", "a b"),
        ("ORDERS_EXCHANGE", "x" * 201),
        ("ORDERS_QUEUE", "q\n"),
    ],
)
def test_a_setting_against_its_rule_is_named_and_its_rule_told(name: str, value: str) -> None:
    (problem,) = problems_of({**LEAST, name: value})
    assert re.match(rf"{name} (must|should) ", problem)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMQP_URL", "amqp://user:p[ss]w0rd-hunter2@host/"),
        ("AMQP_URL", "amqp://user:[hunter2]@host/"),
        ("AMQP_URL", "amqp://user:hunter2℀@host/"),
        ("AMQP_URL", "amqp://user:hunter2/@host/"),
        ("AMQP_URL", "amqp://user:hunter2@host:hunter2/"),
        ("AMQP_URL", "amqp:hunter2"),
        ("AMQP_URL", "hunter2"),
        ("STRIPE_API_KEY", "sk_hunter2"),
        ("STRIPE_API_KEY", "sk_test_hunter2 "),
        ("DATABASE_URL", "mysql://u:hunter2@h/d"),
        ("DATABASE_URL", "hunter2"),
        ("STRIPE_API_BASE", "http://u:hunter2@[x]/"),
        ("HTTP_PORT", "hunter2"),
    ],
)
def test_no_problem_shows_what_was_set(name: str, value: str, tmp_path: Path) -> None:
    (problem,) = problems_of({**LEAST, name: value})
    assert problem.startswith(f"{name} ")
    assert "hunter2" not in problem
    if name in SECRETS:
        file = tmp_path / "secret"
        file.write_text(f"{value.strip()} x")
        environment = {key: text for key, text in LEAST.items() if key != name} | {f"{name}_FILE": str(file)}
        assert "hunter2" not in "".join(problems_of(environment))


def test_no_secret_is_shown_by_the_settings_themselves() -> None:
    settings = read_settings(
        {
            "AMQP_URL": "amqp://user:hunter2@host/",
            "STRIPE_API_KEY": "sk_test_hunter2",
            "DATABASE_URL": "postgresql://u:hunter2@h/d",
        }
    )
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_secret_may_stand_in_a_file(name: str, tmp_path: Path) -> None:
    values = {**LEAST, "DATABASE_URL": "postgresql://u:p@h/d", "STRIPE_WEBHOOK_SECRET": "whsec_12345678"}
    file, expected = tmp_path / "secret", values.pop(name)
    file.write_text(f"  {expected}\n")
    settings = read_settings({**values, f"{name}_FILE": str(file), name: ""})
    assert getattr(settings, name.lower()).get_secret_value() == expected


def test_a_secret_set_twice_is_told() -> None:
    problems = problems_of({**LEAST, "STRIPE_API_KEY_FILE": "/nowhere"})
    assert problems == ["STRIPE_API_KEY and STRIPE_API_KEY_FILE are both set; keep one"]


@pytest.mark.parametrize("name", sorted(SECRETS))
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "names an empty file"),
        (b" \n", "names an empty file"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_a_secret_file_without_a_secret_is_told_and_no_default_takes_its_place(
    name: str, content: bytes | None, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    environment = {key: value for key, value in LEAST.items() if key != name}
    assert problems_of({**environment, f"{name}_FILE": str(file)}) == [f"{name}_FILE {told}"]


def test_a_secret_file_that_is_a_folder_is_told(tmp_path: Path) -> None:
    assert problems_of({**LEAST, "DATABASE_URL_FILE": str(tmp_path)}) == [
        "DATABASE_URL_FILE cannot be read: Is a directory"
    ]


def test_a_file_is_read_for_secrets_alone(tmp_path: Path) -> None:
    file = tmp_path / "level"
    file.write_text("debug")
    assert read_settings({**LEAST, "LOG_LEVEL_FILE": str(file)}).log_level == "info"


def test_a_command_that_needs_less_asks_for_less() -> None:
    settings = read_settings({"AMQP_URL": "amqp://h"}, needed=frozenset({"AMQP_URL"}))
    assert settings.amqp_url.get_secret_value() == "amqp://h"
    with pytest.raises(ConfigurationError, match=r"^AMQP_URL is not set[^\n]*$"):
        read_settings({}, needed=frozenset({"AMQP_URL"}))
    with pytest.raises(ConfigurationError, match=r"^STRIPE_API_KEY must be[^\n]*$"):
        read_settings({"AMQP_URL": "amqp://h", "STRIPE_API_KEY": "no"}, needed=frozenset({"AMQP_URL"}))


@pytest.mark.parametrize(
    ("key", "livemode"), [("sk_test_a", False), ("rk_test_a", False), ("sk_live_a", True), ("rk_live_a", True)]
)
def test_the_key_tells_live_from_test_mode(key: str, livemode: bool) -> None:
    assert read_settings({**LEAST, "STRIPE_API_KEY": key}).livemode is livemode


def test_a_test_key_that_contains_live_moves_no_real_money() -> None:
    assert read_settings({**LEAST, "STRIPE_API_KEY": "sk_test_my_live_key"}).livemode is False


@pytest.mark.parametrize(
    ("url", "set_to", "migrates"),
    [
        ("sqlite+aiosqlite:///./payments.db", None, True),
        ("sqlite://", "false", False),
        ("postgresql+asyncpg://u:p@h/d", None, False),
        ("postgresql://u:p@h/d", "true", True),
        ("postgres://u:p@h/d", None, False),
    ],
)
def test_only_a_ledger_of_ones_own_is_migrated_at_start_unless_told(
    url: str, set_to: str | None, migrates: bool
) -> None:
    environment = {**LEAST, "DATABASE_URL": url} | ({"MIGRATE_AT_START": set_to} if set_to else {})
    settings = read_settings(environment)
    assert settings.migrates_at_start is migrates
    assert settings.ledger_is_sqlite is url.startswith("sqlite")


def test_settings_cannot_be_changed() -> None:
    settings = read_settings(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1  # type: ignore[misc]


def test_every_number_says_its_unit() -> None:
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float) and name not in ("http_port", "prefetch", "dead_letter_ceiling"):
            assert re.search(r"[Ss]econds?\b", field.description or ""), name


@pytest.mark.parametrize("told", ["sk_test_abcdefgh", "whsec_", "whsec_short", "whsec_12345678,", "whsec_1234 5678"])
def test_what_is_no_webhook_secret_is_told_and_not_shown(told: str) -> None:
    [problem] = problems_of({**LEAST, "STRIPE_WEBHOOK_SECRET": told})
    assert problem.startswith("STRIPE_WEBHOOK_SECRET must be whsec_…")
    assert told == "whsec_" or told not in problem
