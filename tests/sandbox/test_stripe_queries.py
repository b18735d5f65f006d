from typing import Any

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from worker.sandbox.stripe_queries import parse_query
from worker.sandbox.stripe_server import RunningSandbox


@pytest.fixture
async def five(intents: Any, sandbox: RunningSandbox) -> list[Any]:
    """Five intents, oldest first, created 100 s apart for two customers in turn."""
    made = []
    for number in range(5):
        made.append(
            await intents.create_async(
                {
                    "amount": 500 + number,
                    "currency": "usd",
                    "customer": f"cus_{number % 2}",
                    "metadata": {"order_id": f"order-{number}", "shop": "a'b"},
                }
            )
        )
        await sandbox.control.advance_clock(100)
    return made


def ids(page: Any) -> list[str]:
    return [intent.id for intent in page.data]


async def test_a_list_is_newest_first_and_pages_both_ways(intents: Any, five: list[Any]) -> None:
    newest_first = [intent.id for intent in reversed(five)]
    everything = await intents.list_async()
    assert (everything.object, everything.url) == ("list", "/v1/payment_intents")
    assert (ids(everything), everything.has_more) == (newest_first, False)

    assert (await intents.list_async({"limit": 5})).has_more is False

    first = await intents.list_async({"limit": 2})
    assert (ids(first), first.has_more) == (newest_first[:2], True)
    second = await intents.list_async({"limit": 2, "starting_after": first.data[-1].id})
    assert (ids(second), second.has_more) == (newest_first[2:4], True)
    third = await intents.list_async({"limit": 2, "starting_after": second.data[-1].id})
    assert (ids(third), third.has_more) == (newest_first[4:], False)
    back = await intents.list_async({"limit": 2, "ending_before": third.data[0].id})
    assert (ids(back), back.has_more) == (newest_first[2:4], True)
    assert [intent.id async for intent in (await intents.list_async({"limit": 1})).auto_paging_iter()] == newest_first


async def test_a_list_reads_its_own_writes(intents: Any, five: list[Any], sandbox: RunningSandbox) -> None:
    await sandbox.control.change_settings(search_lag_s=3600)
    canceled = await intents.cancel_async(five[2].id)
    assert (await intents.list_async()).data[2].to_dict() == canceled.to_dict()


@pytest.mark.parametrize(
    ("end", "expected"), [("gte", [4, 3, 2]), ("gt", [4, 3]), ("lte", [2, 1, 0]), ("lt", [1, 0]), (None, [2])]
)
async def test_a_list_filters_by_time(intents: Any, five: list[Any], end: str | None, expected: list[int]) -> None:
    moment = five[2].created
    page = await intents.list_async({"created": moment if end is None else {end: moment}})
    assert ids(page) == [five[number].id for number in expected]


async def test_a_list_filters_by_customer(intents: Any, five: list[Any]) -> None:
    page = await intents.list_async({"customer": "cus_1", "limit": 1})
    assert (ids(page), page.has_more) == ([five[3].id], True)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": 101}, "limit"),
        ({"limit": 0}, "limit"),
        ({"starting_after": "pi_nowhere"}, "starting_after"),
        ({"metadata": {"order_id": "1"}}, "metadata"),
        ({"created": {"after": 1}}, "created[after]"),
        ({"ending_before": "pi_1", "starting_after": "pi_2"}, None),
    ],
)
async def test_a_list_refuses(intents: Any, params: dict[str, Any], param: str | None) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await intents.list_async(params)
    assert (refused.value.http_status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("metadata['order_id']:'order-3'", [3]),
        ('metadata["order_id"]:"order-3"', [3]),
        (r"metadata['shop']:'a\'b'", [4, 3, 2, 1, 0]),
        ("metadata['order_id']:'order-3' AND status:'requires_payment_method'", [3]),
        ("metadata['order_id']:'order-3' AND status:'succeeded'", []),
        ("customer:'cus_1' AND -metadata['order_id']:'order-1'", [3]),
        ("metadata['order_id']:'order-9'", []),
        ("metadata['order_i']:'order-3'", []),
    ],
)
async def test_a_search_finds_by_metadata_and_status(
    intents: Any, five: list[Any], query: str, expected: list[int]
) -> None:
    found = await intents.search_async({"query": query})
    assert found.object == "search_result"
    assert ids(found) == [five[number].id for number in expected]


async def test_a_search_pages(intents: Any, five: list[Any]) -> None:
    query = "currency:'usd'"
    first = await intents.search_async({"query": query, "limit": 3})
    assert (ids(first), first.has_more) == ([five[n].id for n in (4, 3, 2)], True)
    rest = await intents.search_async({"query": query, "limit": 3, "page": first.next_page})
    assert (ids(rest), rest.has_more, rest.next_page) == ([five[n].id for n in (1, 0)], False, None)


async def test_a_search_finds_only_what_is_indexed(intents: Any, order: Any, sandbox: RunningSandbox) -> None:
    await sandbox.control.change_settings(search_lag_s=60)
    created = await intents.create_async(order)
    by_order = {"query": "metadata['order_id']:'order-1'"}
    assert ids(await intents.search_async(by_order)) == []
    await sandbox.control.advance_clock(61)
    assert ids(await intents.search_async(by_order)) == [created.id]

    await intents.cancel_async(created.id)
    canceled = {"query": "metadata['order_id']:'order-1' AND status:'canceled'"}
    assert ids(await intents.search_async(canceled)) == []
    assert ids(await intents.search_async(by_order)) == [created.id]
    await sandbox.control.advance_clock(61)
    assert ids(await intents.search_async(canceled)) == [created.id]


async def test_a_search_sees_its_own_account_only(intents: Any, make_client: Any, order: Any) -> None:
    await make_client(stripe_account="acct_other").v1.payment_intents.create_async(order)
    mine = await intents.create_async(order)
    assert ids(await intents.search_async({"query": "metadata['order_id']:'order-1'"})) == [mine.id]


@pytest.mark.parametrize(
    "query",
    [
        " ",
        "order-1",
        "metadata:'x'",
        "status['a']:'x'",
        "amount>5",
        "colour:'red'",
        "status:'a' OR status:'b'",
        "status:'a' status:'b'",
        "status:'a' AND",
        "status:'a' AND ",
        "status:'open",
    ],
)
async def test_a_query_that_cannot_be_read_is_refused(intents: Any, query: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await intents.search_async({"query": query})
    assert (refused.value.http_status, refused.value.param) == (400, "query")


@given(st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=4))
def test_any_quoted_metadata_is_read_back(pairs: list[tuple[str, str]]) -> None:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    query = " AND ".join(f"metadata[{quoted(key)}]:{quoted(value)}" for key, value in pairs)
    assert parse_query(query) == [(False, "metadata", key, value) for key, value in pairs]
