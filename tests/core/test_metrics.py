"""The figures of one worker are its own."""

from worker.metrics import Metrics


def test_two_workers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.orders.labels("done", "").inc()
    one.observe_stripe("create", "ok", 0.1)
    labels = {"outcome": "done", "reason": ""}
    assert one.registry.get_sample_value("payment_worker_orders_total", labels) == 1
    assert other.registry.get_sample_value("payment_worker_orders_total", labels) is None
    observed = {"call": "create", "result": "ok"}
    assert one.registry.get_sample_value("payment_worker_stripe_seconds_count", observed) == 1
