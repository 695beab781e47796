"""Watches that the frozen base model is, and stays, what it was."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BaseWatch:
    """Computes the base's digest beside training; on one rank of each node only.

    compute: the digest, from any thread; None = another rank of this node does it
    """

    def __init__(self, compute: Callable[[], str] | None) -> None:
        self._compute = compute
        self._digests: list[str] = []
        self._error: Exception | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin the digest of the attempt's start; later calls do nothing."""
        if not self._threads:
            self._begin()

    def start_again(self) -> None:
        """Begin the digest after the first evaluation; later calls do nothing."""
        if len(self._threads) == 1:
            self.results()
            self._begin()

    def results(self) -> tuple[str | None, str | None]:
        """Both digests as far as they were begun; waits for them. Raises what they raised."""
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error
        first, again, *_ = [*self._digests, None, None]
        return first, again

    def _begin(self) -> None:
        thread = threading.Thread(target=self._run, name="qvl-base-digest", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        if self._compute is None:
            return
        try:
            self._digests.append(self._compute())
        except Exception as fault:  # noqa: BLE001 - raised where the result is asked for
            self._error = fault
