"""Servers that the whole suite shares: real ones, private, on loopback. A missing one is an error, never a skip."""

import os
from collections.abc import Iterator

import pytest

from worker.sandbox.broker import PrivateBroker
from worker.sandbox.postgres import PrivatePostgres
from worker.settings import SETTING_NAMES

# A developer's shell must not leak into the tests.
for _name in SETTING_NAMES:
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def broker() -> Iterator[PrivateBroker]:
    with PrivateBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    with PrivatePostgres() as postgres:
        yield postgres
