"""Grouped acknowledgements, against the broker's rule: what is covered was settled, and all of it is covered once."""

from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from tests.properties.strategies import tries
from worker.bus.acknowledge import SettledTags

# What is settled between one sending and the next, of up to forty deliveries in any order; some never are.
ROUNDS = st.permutations(range(1, 41)).flatmap(
    lambda order: st.lists(st.integers(0, 12), max_size=12).map(lambda sizes: _split(list(order), sizes))
)


def _split(order: list[int], sizes: list[int]) -> list[list[int]]:
    rounds = []
    for size in sizes:
        rounds.append(order[:size])
        order = order[size:]
    return rounds


class Broker:
    """The unacknowledged deliveries of a channel, as RabbitMQ keeps them (rabbit_channel, collect_acks)."""

    def __init__(self, delivered: int) -> None:
        self.unacknowledged = list(range(1, delivered + 1))

    def hear(self, ack: Basic.Ack) -> None:
        tag = ack.delivery_tag
        assert tag in self.unacknowledged, f"unknown delivery tag {tag}: the channel would be closed"
        self.unacknowledged = [each for each in self.unacknowledged if each > tag or (each != tag and not ack.multiple)]


@tries(500)
@given(ROUNDS)
def test_after_each_sending_the_broker_keeps_exactly_what_is_not_settled(rounds: list[list[int]]) -> None:
    broker, tags, settled = Broker(40), SettledTags(), set[int]()
    for some in rounds:
        for tag in some:
            tags.note(tag)
        settled |= set(some)
        for ack in tags.take():
            broker.hear(ack)
        assert set(broker.unacknowledged) == set(range(1, 41)) - settled
    assert tags.take() == []


@tries(100)
@given(ROUNDS, st.integers(1, 40))
def test_one_that_is_noted_again_is_told_once(rounds: list[list[int]], again: int) -> None:
    broker, tags = Broker(40), SettledTags()
    for some in rounds:
        for tag in some + [each for each in some if each <= again]:
            tags.note(tag)
        for ack in tags.take():
            broker.hear(ack)
        for tag in some:
            tags.note(tag)
    assert tags.take() == []


@tries(50)
@given(st.permutations(range(1, 21)), st.integers(2, 20))
def test_all_up_to_one_are_told_of_in_one_frame(order: list[int], gap: int) -> None:
    tags = SettledTags()
    for tag in order:
        if tag != gap:
            tags.note(tag)
    first, *beyond = tags.take()
    assert (first.delivery_tag, first.multiple) == (gap - 1, gap > 2)
    assert [(ack.delivery_tag, ack.multiple) for ack in beyond] == [(tag, False) for tag in range(gap + 1, 21)]
    tags.note(gap)
    tags.note(21)
    assert [(ack.delivery_tag, ack.multiple) for ack in tags.take()] == [(21, True)]
