"""Broken samples at run time: replaced alike before and after a resume, told, and capped."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.contract.resolved import DataSpec
from orchestrator.errors import StorageError, UserError
from orchestrator.storage.memory import MemoryStorage
from tests.integration.data.poison import LIMIT, Poisoned

pytestmark = [pytest.mark.families, pytest.mark.filterwarnings("default")]


class Told:
    """A rank that remembers what it reported."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, kind: str, **data: Any) -> None:
        assert kind == "replaced"
        self.events.append(data)


@pytest.fixture
def plain(poison: Poisoned, model: Path) -> Any:
    """The poisoned records, without the slow picture, as the trainer reads them."""
    from trainer.data.dataset import ChatDataset
    from trainer.vision_language.families import family_of
    from trainer.vision_language.families.processor import VisionChatProcessor

    processor = VisionChatProcessor.from_pretrained(model, family_of(model))
    records = [
        r for r, name in zip(poison.records, poison.names, strict=True) if "over" not in name
    ]
    return ChatDataset(records, processor, media_root=poison.root, max_length=LIMIT, file="train")


@pytest.fixture
def attempt(plain: Any, memory: MemoryStorage) -> Callable[..., Any]:
    """Everything that an attempt builds anew; the storage is the run's."""
    from trainer.data.dataset import Collator
    from trainer.data.loaders import make_loader
    from trainer.data.replacing import Replacements, ReplacingDataset

    def start(order: list[int], *, workers: int = 0, **settings: Any) -> Any:
        spec = DataSpec(train="train", **{"max_replaced": 1000, **settings})
        told = Told()
        seen = Replacements(memory, told, spec, "train")  # type: ignore[arg-type]
        data = ReplacingDataset(plain, spec, "train", seen.known)
        args = SimpleNamespace(
            dataloader_num_workers=workers,
            dataloader_pin_memory=False,
            dataloader_prefetch_factor=2,
            dataloader_multiprocessing_context=None,
        )
        batches = [order[i : i + 4] for i in range(0, len(order), 4)]
        loader = make_loader(data, batches, Collator(0), args, 7, seen.watch)
        return SimpleNamespace(loader=loader, told=told, data=data, seen=seen)

    return start


def contents(batches: Any) -> list[Any]:
    return [(b["sample_index"].tolist(), b["input_ids"].tolist()) for b in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_replacements_are_the_same_after_a_resume(
    attempt: Callable[..., Any], plain: Any, memory: MemoryStorage, workers: int
) -> None:
    order = list(range(len(plain)))
    whole = attempt(order, workers=workers)
    expected = contents(whole.loader)
    assert [i for indices, _ in expected for i in indices] == order
    broken = {event["index"]: event["by"] for event in whole.told.events}
    assert len(broken) > 60
    assert not set(broken) & set(broken.values())
    # A new process that knows the run's storage: nothing is told again.
    again = attempt(order[40:], workers=workers)
    assert contents(again.loader) == expected[10:]
    assert again.told.events == []
    # One that knows nothing, as if the storage had been lost: the same choice again.
    for entry in memory.list("data/replaced/"):
        memory.delete(entry.path)
    fresh = attempt(order[40:], workers=workers)
    assert contents(fresh.loader) == expected[10:]
    assert {e["index"]: e["by"] for e in fresh.told.events}.items() <= broken.items()


def test_a_replacement_holds_when_the_sample_is_repaired(
    attempt: Callable[..., Any], plain: Any, poison: Poisoned
) -> None:
    i = poison.names.index("empty reply")
    before = contents(attempt([i]).loader)
    plain.records[i] = poison.records[poison.names.index("only text")]
    assert contents(attempt([i]).loader) == before


def test_a_replacement_that_breaks_is_not_replaced_again(
    attempt: Callable[..., Any], plain: Any, poison: Poisoned
) -> None:
    i = poison.names.index("empty reply")
    first = attempt([i])
    list(first.loader)
    (event,) = first.told.events
    plain.records[event["by"]] = {}
    with pytest.raises(UserError, match=f"record {event['by']}: needs either"):
        list(attempt([i]).loader)


def test_each_replacement_says_which_and_why(attempt: Callable[..., Any], poison: Poisoned) -> None:
    i = poison.names.index("cut.jpg")
    first = attempt([i])
    list(first.loader)
    (event,) = first.told.events
    assert (event["index"], event["fault"], event["count"]) == (i, "broken", 1)
    assert "cut.jpg" in event["reason"]


def test_the_cap_counts_over_attempts(attempt: Callable[..., Any], poison: Poisoned) -> None:
    bad = [i for i, kinds in enumerate(poison.expected) if "value" in kinds][:3]
    list(attempt(bad[:2], max_replaced=2).loader)
    list(attempt(bad[:2], max_replaced=2).loader)
    with pytest.raises(UserError, match=r"3 samples are broken, data\.max_replaced is 2"):
        list(attempt(bad[2:], max_replaced=2).loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_policy_stop_names_the_sample(
    attempt: Callable[..., Any], poison: Poisoned, workers: int
) -> None:
    i = poison.names.index("unknown role")
    with pytest.raises(UserError, match=rf"train: record {i}: turn 0: .*'bot'"):
        list(attempt([i], workers=workers, policy="stop").loader)


def test_a_failing_file_system_is_no_fault_of_the_data(
    attempt: Callable[..., Any], poison: Poisoned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the sample would be whole again after a resume, and the run another."""
    from trainer.vision_language import media

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(media, "_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(media.PIL.Image, "open", fail)
    with pytest.raises(StorageError, match="media cannot be read now"):
        list(attempt([poison.names.index("grey.png")]).loader)
