"""What an operator starts is started here as an operator starts it: by a new interpreter each time."""

import pytest


@pytest.fixture(autouse=True)
def _real_starts(real_starts: None) -> None:
    """For every test of this folder."""
