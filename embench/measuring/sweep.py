"""A sweep over trials: what is run next, what is not worth it, what has to be run again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from embench.measuring import noise
from embench.measuring.execution import Execution, Pool
from embench.measuring.sizes import Hopeless
from embench.measuring.trial import utc_now
from embench.types import Record, Trial

TIMES_AT_MOST = 2
"""How often a trial is measured that others disturb."""

LOOK_AGAIN = 1.0
"""Seconds after which a pool is asked again how much it takes: workers come and go."""


def sweep(
    trials: Sequence[Trial], known: Sequence[Record], pool: Pool, how: Execution
) -> Iterator[Record]:
    """Run trials, as many at a time as the pool takes, and yield each record as it comes.

    Trials that others disturbed are run once more, at the end, when all may be quieter.

    Args:
        trials: What to run, in this order.
        known: Records of the run so far, of earlier calls.
        pool: Where to run them.
        how: What to make of those that are hopeless or disturbed.

    Raises:
        WorkersLost: The pool is gone.
    """
    queue, pending = deque(trials), dict[Future[Any], Trial]()
    hopeless = Hopeless(known if how.prune else ())
    quietest, seen = noise.Quietest(), list(known)
    repeated: set[str] = set()
    for record in known:
        quietest.learn(record)
    while True:
        if how.remeasure and not queue and not pending:
            again = disturbed_once(map(quietest.judged, seen))
            queue.extend(trial for trial in again if trial.id not in repeated)
            repeated |= {trial.id for trial in queue}
        if not queue and not pending:
            return
        while len(pending) < pool.slots() and queue:
            trial = queue.popleft()
            if how.prune and (reason := hopeless.why(trial)):
                yield _pruned(trial, reason)
            else:
                pending[pool.submit(trial)] = trial
        finished, _ = wait(pending, LOOK_AGAIN, FIRST_COMPLETED)
        for future in sorted(finished, key=Future.cancelled):  # what is lost comes last
            record = pool.record(future, pending.pop(future))
            quietest.learn(record)
            hopeless.learn(record)
            seen.append(quietest.judged(record))
            yield seen[-1]


def disturbed_once(records: Iterable[Record]) -> list[Trial]:
    """The trials whose only measurement was disturbed, in order; a failure is no measurement."""
    measured = [record for record in records if record.status == "ok"]
    times = Counter(record.trial.id for record in measured)
    return [r.trial for r in measured if r.disturbed and times[r.trial.id] < TIMES_AT_MOST]


def _pruned(trial: Trial, reason: str) -> Record:
    return Record(trial=trial, status="pruned", message=reason, ended=utc_now())
