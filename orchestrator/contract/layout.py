"""Names inside a run directory: pure functions, relative to `<checkpoint.uri>/<run_id>/`.

job.yaml  resolved.json  tombstone  done.json  summary.json
submissions/<m>.json         what was submitted, numbered from 1
submissions/<m>-id.json      the backend's id of it
arrivals/<m>-<r>/<token>.json  an agent of restart r of submission m, before its attempt
log/<seq>.json               the one authority: fence, commit, retire, bad, done
log.json                     a copy of most of it, for readers in a hurry
lease/<seq>.json             the controller's lease
attempts/<n>.json            the claim of attempt n
attempts/<n>/nodes/<k>.json  slot k of the attempt: address and port
attempts/<n>/start.json      the start point that slot 0 chose
attempts/<n>/heartbeats/<k>.json
attempts/<n>/stop/<k>-<i>.json
attempts/<n>/verdict-<k>.json
attempts/<n>/checkpoints/checkpoint-<step>[.<retry>]/
attempts/<n>/salvage/        the adapter alone, where a notice left no time for more
attempts/<n>/events/<writer>/<seq>.jsonl, metrics/<rank>/<seq>.jsonl
attempts/<n>/logs/<writer>/<seq>.log
events/<writer>/<seq>.jsonl  controller and command line
modules.json                 the modules that carry an adapter, and their parameters
data/replaced/<index file>-<record>.json  broken samples and what takes their place
damaged/<k>/log/<seq>.json   a log that `repair` has replaced
cache/                       recomputable: hashes of the base model's files
reserve/                     room for small records once the file system is full
"""

from __future__ import annotations

import re

JOB = "job.yaml"
RESOLVED = "resolved.json"
TOMBSTONE = "tombstone"
DONE = "done.json"
SUMMARY = "summary.json"
SUBMISSIONS = "submissions/"
LOG = "log/"
LOG_COPY = "log.json"
LEASE = "lease/"
ATTEMPTS = "attempts/"
ARRIVALS = "arrivals/"
EVENTS = "events/"
MODULES = "modules.json"
REPLACED = "data/replaced/"
MANIFEST = "manifest.json"
DAMAGED = "damaged/"
SHARDS = "parts/"
BASE_CACHE = "cache/base-files.json"

RESERVE = "reserve/"

_BULK = re.compile(r"(attempts/[0-9]+/(checkpoints|metrics|logs|salvage)|data|cache|reserve)/")
_NUMBERED = re.compile(r"([0-9]{1,18})(?:\.[a-z]+)?")


def submission(number: int) -> str:
    return f"submissions/{number:06d}.json"


def submission_id(number: int) -> str:
    """The backend's id of a submission, created once the backend has answered."""
    return f"submissions/{number:06d}-id.json"


def arrivals(number: int, restart_count: int) -> str:
    """Folder of the agents that came with one start of a submission."""
    return f"{ARRIVALS}{number:06d}-{restart_count}/"


def arrival(number: int, restart_count: int, token: str) -> str:
    """One agent's arrival: that it is there, or what kept it from claiming anything."""
    return f"{arrivals(number, restart_count)}{token}.json"


def log_record(seq: int) -> str:
    return f"log/{seq:08d}.json"


def lease(seq: int) -> str:
    return f"lease/{seq:08d}.json"


def claim(attempt: int) -> str:
    return f"attempts/{attempt:06d}.json"


def attempt_dir(attempt: int) -> str:
    return f"attempts/{attempt:06d}/"


def slot(attempt: int, number: int) -> str:
    return f"{attempt_dir(attempt)}nodes/{number}.json"


def slots(attempt: int) -> str:
    return f"{attempt_dir(attempt)}nodes/"


def stop(attempt: int, slot_number: int, index: int) -> str:
    return f"{attempt_dir(attempt)}stop/{slot_number}-{index}.json"


def stops(attempt: int) -> str:
    return f"{attempt_dir(attempt)}stop/"


def verdict(attempt: int, slot_number: int) -> str:
    return f"{attempt_dir(attempt)}verdict-{slot_number}.json"


def start_point(attempt: int) -> str:
    """What slot 0 chose to start from; the other nodes of the attempt follow it."""
    return f"{attempt_dir(attempt)}start.json"


def heartbeat(attempt: int, slot_number: int) -> str:
    return f"{attempt_dir(attempt)}heartbeats/{slot_number}.json"


def checkpoint_dir(attempt: int, step: int, retry: int = 0) -> str:
    """Directory of a checkpoint, as commit records name it (no slash at the end).

    retry: how often this attempt has tried to save `step` before
    """
    again = f".{retry}" if retry else ""
    return f"{attempt_dir(attempt)}checkpoints/checkpoint-{step}{again}"


def is_checkpoint_before(directory: str, attempt: int, step: int) -> bool:
    """True for the directory of a checkpoint of that attempt, of an earlier step."""
    found = re.fullmatch(
        re.escape(f"{attempt_dir(attempt)}checkpoints/checkpoint-") + r"([0-9]+)(\.[0-9]+)?",
        directory,
    )
    return found is not None and int(found[1]) < step


def salvage_dir(attempt: int) -> str:
    """Where an attempt puts its adapter alone when the time may not do for a checkpoint."""
    return f"{attempt_dir(attempt)}salvage"


def salvage_note(attempt: int) -> str:
    """Says what was salvaged; written last."""
    return f"{salvage_dir(attempt)}/salvage.json"


def shard(rank: int) -> str:
    """The manifest of a rank's shard, relative to the checkpoint's directory."""
    return f"parts/{rank}.json"


def attempt_events(attempt: int, writer: str) -> str:
    return f"{attempt_dir(attempt)}events/{writer}/"


def run_events(writer: str) -> str:
    return f"events/{writer}/"


def metrics(attempt: int, rank: int) -> str:
    return f"{attempt_dir(attempt)}metrics/{rank}/"


def replaced(which: str, index: int) -> str:
    """Record of a broken sample; `which` is train or eval."""
    return f"{REPLACED}{which}-{index:09d}.json"


def logs(attempt: int, writer: str) -> str:
    """Folder of one log stream, for example `rank-0`; plain text segments."""
    return f"{attempt_dir(attempt)}logs/{writer}/"


def segment(folder: str, seq: int, suffix: str = ".jsonl") -> str:
    """Numbered segment of one writer inside its folder."""
    return f"{folder}{seq:08d}{suffix}"


def is_vital(path: str) -> bool:
    """True for the small records by which a run is looked after: log, claims, stop requests,
    events, verdicts, submissions, summary, lease.
    """
    return not _BULK.match(path)


def number_of(path: str) -> int | None:
    """The number a name like `attempts/000003.json` or `log/00000012.json` carries."""
    found = _NUMBERED.fullmatch(path.rstrip("/").rsplit("/", 1)[-1])
    return int(found[1]) if found else None
