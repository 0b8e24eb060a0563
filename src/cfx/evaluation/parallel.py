"""Many calls of one function, on many cores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from cfx.errors import CfxError


def spread(
    function: Callable[..., Any],
    jobs: Iterable[tuple],
    n_jobs: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list:
    """function(*job) of every job, in order, by joblib.

    The backend is joblib's own choice: loky, that is fresh processes and never forks, unless the caller has chosen
    another with `joblib.parallel_config`. Libraries' warnings are not shown, wherever a job runs.

    Args:
        function: of a module, so that it can be sent.
        jobs: arguments; taken one after the other while there is work.
        n_jobs: processes, -1 for as many as there are cores; None for what `parallel_config` says, or else one.
        on_done: told the number of jobs done so far, in this process.

    Raises:
        CfxError: if a process was killed.
    """
    import joblib

    calls = (joblib.delayed(_quietly)(function, *job) for job in jobs)
    try:
        if on_done is None:
            return list(joblib.Parallel(n_jobs=n_jobs)(calls))
        results = []
        for result in joblib.Parallel(n_jobs=n_jobs, return_as="generator")(calls):
            results.append(result)
            on_done(len(results))
        return results
    except BrokenProcessPool as error:
        raise CfxError("a worker process was killed, perhaps for want of memory", "use fewer processes") from error


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return function(*arguments)
