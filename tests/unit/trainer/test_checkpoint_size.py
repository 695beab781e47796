"""What a checkpoint may take."""

from __future__ import annotations

import pytest

from tests.unit.run_directory.fakes import entry
from trainer.checkpoint.commit import excess, needed


def test_bf16_adapters_need_16_bytes_a_parameter() -> None:
    assert needed([(1_000_000, 2), (500, 2)]) == 16 * 1_000_500
    assert needed([(1000, 4)]) == 20 * 1000
    assert needed([]) == 0


@pytest.mark.parametrize("ranks", [1, 8])
def test_the_limit_is_two_per_cent_and_a_little(ranks: int) -> None:
    limit = 16_320_000 + 256_000 + 64_000 * ranks
    assert excess([entry("a", limit - 7), entry("b", 7)], 16_000_000, ranks) == ""
    text = excess([entry("big.pt", limit - 6), entry("b", 7)], 16_000_000, ranks)
    assert f"takes {limit + 1} bytes" in text
    assert f"may take {limit}; the largest files: big.pt {limit - 6}, b 7" in text


def test_what_is_not_known_is_not_judged() -> None:
    assert excess([entry("a", 10**12)], 0, 1) == ""
