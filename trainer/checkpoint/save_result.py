"""What became of a save, and what a checkpoint says of itself.

Values that cross the borders of processes: from a saver to its rank, from rank to rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.contract.jsonio import Json, from_json, to_json
from orchestrator.contract.manifest import Trigger
from orchestrator.errors import ContractRefused, LogDamaged, NotOwner, QvlError, StorageError
from trainer.process.outcome import Ending, Leave, ending_of

_ENDS_THE_ATTEMPT = (NotOwner, LogDamaged, ContractRefused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a checkpoint says of itself beyond its files; known alike on every rank."""

    step: int
    epoch: int
    samples_seen: int
    trigger: Trigger
    learning_rate_hex: str
    pending_eval: bool
    adapter_digest: str = ""
    """Known on rank 0, like the next two."""
    adapter_sha256: str = ""
    needed_bytes: int = 0
    """What the trainable state takes (see commit.needed); 0 = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """Hashes of one rank's state, and of the base model where this rank computes them."""

    state: str
    rng: str
    base: str | None = None
    """At the start of the attempt."""
    base_again: str | None = None
    """After its first evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A step that stands in the log (or in the checkpoint that was resumed from)."""

    step: int
    seq: int | None
    """Number of the commit record; None if it stands in no log at hand."""
    adapter_sha256: str
    size_bytes: int = 0
    oversize: str = ""
    """What is wrong with its size, if anything: a saver that keeps more than it should."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A save that did not become a checkpoint; the last committed one still counts."""

    message: str
    storage: bool = False
    """The storage took no writes; anything else is a failure of the run's own."""
    uncertain: bool = False
    """Its commit record may stand all the same, so that its files must stay."""


Result = Committed | Failed | Ending
"""Ending: the attempt is over, whatever the storage does; every rank leaves with it."""

_KINDS: dict[str, type[Committed | Failed | Ending]] = {
    "committed": Committed,
    "failed": Failed,
    "ending": Ending,
}


def result_of(act: Callable[[], Committed | Failed | None]) -> Result | None:
    """What `act` gives; what it raises becomes a value, because others wait for an answer."""
    try:
        return act()
    except _ENDS_THE_ATTEMPT as fault:
        return ending_of(fault, noticed=False)
    except Exception as fault:  # noqa: BLE001 - others wait for an answer
        return failed(fault, uncertain=True)


def encode(result: Result | None) -> Json:
    """A result as a message to other ranks or processes."""
    if result is None:
        return None
    kind = next(kind for kind, cls in _KINDS.items() if isinstance(result, cls))
    return {"kind": kind, "value": to_json(result)}


def decode(message: Json) -> Committed | Failed | None:
    """The result behind `encode`. Raises Leave where it is an Ending."""
    if message is None:
        return None
    result = from_json(_KINDS[message["kind"]], message["value"])
    if isinstance(result, Ending):
        raise Leave(result)
    return result


def failed(fault: Exception, *, uncertain: bool = False) -> Failed:
    """The failure behind an error."""
    words = str(fault) if isinstance(fault, QvlError) else f"{type(fault).__name__}: {fault}"
    return Failed(words, _is_of_storage(fault), uncertain)


def together(faults: Mapping[int, Failed]) -> Failed:
    """One failure out of those of several ranks."""
    return Failed(
        "; ".join(f"rank {rank}: {fault.message}" for rank, fault in faults.items()),
        all(fault.storage for fault in faults.values()),
        all(fault.uncertain for fault in faults.values()),
    )


def _is_of_storage(fault: Exception) -> bool:
    """True if a storage is to blame, and the same save may succeed later."""
    cause: BaseException | None = fault
    while cause is not None and not isinstance(cause, StorageError | OSError):
        # torch.save tells of its own trouble after a sink that failed.
        cause = cause.__cause__ or cause.__context__
    return cause is not None
