"""When a call is tried again. Pure: the attempt and the jitter are arguments."""

from typing import Final

# Seconds between deliveries of one order; each is a queue of its own. A blip is over in one, a deploy in thirty,
# an incident in minutes. The last one repeats.
RUNGS_S: Final = (1, 5, 30, 120, 600)

# 1 + 5 + 30 + 120 + 16 × 600 s are under three hours.
MAX_DELIVERIES: Final = 20
# By the clock, for deliveries that take long themselves; both far inside the life of an idempotency key (24 h). An
# outage stops the deliveries and not the clock: whoever has hardly been tried is not late.
DEADLINE_S: Final = 6 * 3600
TRIED_OFTEN: Final = 8

# What waits for another message, such as a command for its order: soon over as a rule, and looked at often so long.
WAITS_S: Final = ((0, 5), (300, 30), (3600, 120))

# In place, before the delivery gives up its slot: a dropped connection or a short 409 is over by then.
QUICK_TRIES: Final = 3
QUICK_WAIT_S: Final = 0.2


def rung_after(deliveries: int, *, age_s: float) -> int | None:
    """Seconds to wait after the n-th delivery (n from 1) has failed; None when the budget is spent.

    age_s: since the first delivery that failed.
    """
    is_late = age_s >= DEADLINE_S and deliveries >= TRIED_OFTEN
    if deliveries >= MAX_DELIVERIES or is_late:
        return None
    return RUNGS_S[min(deliveries, len(RUNGS_S)) - 1]


def wait_after(tries: int, *, age_s: float) -> int | None:
    """Seconds until one that waits for another message is tried again, after n tries (n from 1); None when in vain.

    age_s: as in rung_after.
    """
    if age_s >= DEADLINE_S and tries >= TRIED_OFTEN:
        return None
    if tries == 1:
        return RUNGS_S[0]
    return max((wait_s for since_s, wait_s in WAITS_S if age_s >= since_s), default=WAITS_S[0][1])
