"""The error tree: exit codes, hints, places."""

from __future__ import annotations

import pytest

from orchestrator import errors

CODES = {
    errors.QvlError: 1,
    errors.UserError: 78,
    errors.JobFileError: 78,
    errors.DataFault: 78,
    errors.NewerVersion: 78,
    errors.UsageError: 2,
    errors.NoSuchRun: 3,
    errors.Unreachable: 69,
    errors.Full: 69,
    errors.StorageError: 69,
    errors.CheckpointError: 73,
    errors.RecordDamaged: 73,
    errors.LogDamaged: 73,
    errors.RegistryDamaged: 73,
    errors.ContractRefused: 78,
    errors.NotOwner: 79,
    errors.PeersMissing: 1,
    errors.InternalError: 1,
}


def test_every_class_has_its_code() -> None:
    found = {
        c for c in vars(errors).values() if isinstance(c, type) and c.__module__ == errors.__name__
    }
    assert found == set(CODES)
    assert {c: c.exit_code for c in CODES} == CODES
    for cls in CODES:
        assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("cls", sorted(CODES, key=lambda c: c.__name__))
def test_message_and_hint(cls: type[errors.QvlError]) -> None:
    if cls is errors.NewerVersion:
        assert str(cls("what")).startswith("what\n  hint: use the version")
        return
    assert str(cls("what")) == "what"
    assert str(cls("what", hint="do this")) == "what\n  hint: do this"


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({}, "bad"),
        ({"file": "job.yaml", "line": 3, "path": "lora.r"}, "job.yaml:3 lora.r: bad"),
        ({"file": "job.yaml"}, "job.yaml: bad"),
        ({"path": "lora.r"}, "lora.r: bad"),
    ],
)
def test_places_in_a_job_file(place: dict[str, object], text: str) -> None:
    assert str(errors.JobFileError("bad", **place)) == text  # type: ignore[arg-type]
