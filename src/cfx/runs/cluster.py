"""Rewards on the workers of a Dask cluster: crystals go there in chunks, what they are worth comes back in order.

Each worker loads the reward of a configuration once, with the potentials, property models and hulls that it needs.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cfx.config import RewardConfig
from cfx.core import Structure
from cfx.errors import CfxError, RewardError
from cfx.reporter import Interrupted, Silent, StopRequest
from cfx.rl.rewards import NamedReward, Reward, RewardBatch, described, evaluate_checked
from cfx.runs.fine_tuning import named_reward

if TYPE_CHECKING:
    from dask.distributed import Client, Future

FEWEST, MOST = 8, 64
"""Crystals of a chunk: a potential is slow one by one, and relaxes no more than sixty-four at once."""

RESTART_SECONDS = 60.0
"""How long there may be no worker: one that died is started again."""

POLL_SECONDS = 0.5
"""How often a process that waits for workers looks for signals."""

_ONE_AT_A_TIME = threading.Lock()


def cluster_reward(client: Client, config: RewardConfig) -> NamedReward:
    """The reward of a configuration, computed by workers; this machine needs none of its models.

    Raises:
        CfxError: if a worker cannot load it, of the type that it was there.
    """
    [about] = _gather(client, [client.submit(_describe, config, pure=False)], "loading the reward")

    def evaluate(structures: Sequence[Structure | None]) -> RewardBatch:
        size = chunk_size(len(structures), len(cast(Any, client.nthreads())))
        chunks = [list(structures[start : start + size]) for start in range(0, len(structures), size)]
        futures = [client.submit(_evaluate, config, chunk, pure=False) for chunk in chunks]
        try:
            return joined(_gather(client, futures, "the reward"))
        except Interrupted:
            raise
        except CfxError as error:
            raise RewardError(error.message, error.hint) from error

    about["about"] += "; on a Dask cluster"
    return NamedReward(**about, evaluate=evaluate)


def chunk_size(crystals: int, workers: int) -> int:
    """Crystals of a chunk: two chunks for each worker, since some take longer, within FEWEST and MOST."""
    return min(max(-(-crystals // (2 * max(workers, 1))), FEWEST), MOST)


def joined(batches: Sequence[RewardBatch]) -> RewardBatch:
    """What was said of chunks, as if it had been said of all crystals at once; a part that a chunk lacks is NaN."""
    names = dict.fromkeys(name for batch in batches for name in batch.metrics)
    return RewardBatch(
        np.concatenate([batch.value for batch in batches]),
        np.concatenate([batch.ok for batch in batches]),
        [reason for batch in batches for reason in batch.reasons],
        {
            name: np.concatenate([batch.metrics.get(name, np.full(len(batch.value), np.nan)) for batch in batches])
            for name in names
        },
    )


def _gather(client: Client, futures: Sequence[Future], what: str) -> list[Any]:
    """The results of futures, in order.

    Raises:
        Interrupted: after a signal.
        CfxError: of the first future that failed, in one line; of its type if it is one.
    """
    from dask.distributed import TimeoutError, wait

    left, seen = list(futures), time.monotonic()
    try:
        while left:
            if client.nthreads():
                seen = time.monotonic()
            if client.status != "running" or time.monotonic() - seen > RESTART_SECONDS:
                raise RewardError(f"{what} on the cluster: no worker is left", "start some with: dask worker ADDRESS")
            if signum := StopRequest.heard():
                raise Interrupted(signum, f"stopped while workers computed {what}")
            try:
                done = cast(Any, wait(left, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")).done
            except TimeoutError:
                continue
            for future in done:
                if future.status != "finished":
                    raise _failure(future, what)
            left = [future for future in left if future not in done]
    except BaseException:
        client.cancel(futures, force=True)
        raise
    return [future.result() for future in futures]


def _failure(future: Future, what: str) -> CfxError:
    """What a future has failed of, in one line."""
    hint = "all workers need cfx in this version, and what the reward needs"
    if future.status != "error":
        return RewardError(f"{what} on the cluster was {future.status}", "is the scheduler still there?")
    error = future.exception()
    if isinstance(error, CfxError):
        return type(error)(f"{what} on a worker: {error.message}", error.hint)
    assert isinstance(error, BaseException), "a future that failed has an error"
    return RewardError(f"{what} on a worker: {described(error)}", hint)


# On a worker. Threads of one process take turns: potentials keep what they have computed last.


@functools.cache
def _loaded(config: RewardConfig) -> Reward:
    return named_reward(config, Silent())


def _describe(config: RewardConfig) -> dict[str, Any]:
    with _ONE_AT_A_TIME:
        reward = _loaded(config)
    return {name: getattr(reward, name) for name in ("name", "about", "unit", "failure", "kl_coef")}


def _evaluate(config: RewardConfig, structures: list[Structure | None]) -> RewardBatch:
    with _ONE_AT_A_TIME:
        return evaluate_checked(_loaded(config), structures)
