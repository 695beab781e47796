"""Nothing that others have written commands a person's terminal, whichever command prints it."""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli import escape
from orchestrator.cli import main as entry
from orchestrator.cli.output import table
from orchestrator.clock import SystemClock
from orchestrator.contract import layout
from orchestrator.contract.event import Event, StepMetrics
from orchestrator.contract.jsonio import to_json
from orchestrator.controller.status_rows import blank_row
from orchestrator.domain.node_exclusion import NodeDeath
from orchestrator.errors import CheckpointError
from orchestrator.run_directory import checkpoints
from orchestrator.run_directory.segments import SegmentWriter
from tests.harness.runs import Bench
from tests.unit.cli.shells import PLAN, T0, Built, Desk, Shell, manifest_of

HOSTILE = "x\x1b]0;title\x07\x1b[2J\x9b31m\u202e\u2066\u200f\x08\x7f\u2028\u200b\ufeff\r\nFORGED y"
KEPT = "日本語 العربية क्‍ष é 👩‍💻 　"
OURS = re.compile(r"\x1b\[[0-9;]*m")


def harmful(text: str) -> set[str]:
    """What of it is no letter, mark, sign or space that only shows itself."""
    bad = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    return bad - set("\n\u200c\u200d")


@given(st.text(st.characters(codec=None)))
def test_what_is_escaped_shows_only_itself(text: str) -> None:
    visible = "".join(c for c in text if c not in _SPOKEN and c != "\n")
    line = escape.line(text)
    assert harmful(line) & _SPOKEN == set()
    assert "\n" not in line
    assert escape.line(line) == line
    assert escape.text(line) == line
    assert not (harmful(escape.text(text)) & _SPOKEN) - {"\t"}
    assert escape.line(visible) == visible


# Signs of a few scripts are of the same kind as the marks that turn or hide, and do neither.
_SPOKEN = {
    c
    for c in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    and unicodedata.bidirectional(c) != "AN"
    and c not in "\n\u200c\u200d\u070f"
    and not unicodedata.name(c, "").startswith(("KAITHI", "EGYPTIAN", "SHORTHAND", "MUSICAL"))
}


def test_letters_of_all_scripts_stay() -> None:
    assert escape.line(KEPT) == KEPT


def test_what_a_program_printed_keeps_tabs_and_loses_colours() -> None:
    assert escape.printed("\x1b[1;31mred\x1b[0m\tplain\x1b[2J") == "red\tplain\\x1b[2J"


class Stranger(Built):
    """A run of which every value was written by somebody else."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, run_id=f"fake-{HOSTILE}")
        self.entry = replace(self.entry, name=HOSTILE)
        self.registry.add(self.entry)
        row = blank_row(self.entry) | {
            "state": "HELD",
            "next": HOSTILE,
            "reason": HOSTILE,
            "message": f"one\n{HOSTILE}",
            "template": f"user:{HOSTILE}",
            "startup": {HOSTILE: 1.0},
            "step": 5,
            "total_steps": 20,
            "save_seconds": 99.0,
            "grace_s": 1.0,
            "last_checkpoint": {"step": 5, "verified": True},
        }
        self.registry.saw(self.entry.run_id, row, final=False, at=SystemClock().now())
        self.claim(1)
        self.print(1, 0, (1.0, HOSTILE), (2.0, "plain"))
        self._events()
        self._metrics()
        self._checkpoint()
        folder = Path(self.storage.uri) / "attempts/000001" / HOSTILE
        folder.mkdir()
        (folder / HOSTILE).write_text("")
        death = NodeDeath(
            node=HOSTILE, run_id=HOSTILE, attempt=1, at=SystemClock().now() - 1, error=HOSTILE
        )
        self.registry.add_deaths([death, replace(death, attempt=2), replace(death, attempt=3)])

    def _events(self) -> None:
        writer = SegmentWriter(self.storage, layout.attempt_events(1, "node-0"))
        data = {HOSTILE: HOSTILE, "message": HOSTILE, "more": [{HOSTILE: [HOSTILE]}]}
        writer.add(to_json(Event(time=HOSTILE, kind=HOSTILE, attempt=1, writer=HOSTILE, data=data)))
        writer.flush()

    def _metrics(self) -> None:
        writer = SegmentWriter(self.storage, layout.metrics(1, 0))
        metrics = StepMetrics(
            step=1, attempt=1, loss=None, loss_hex=HOSTILE, learning_rate=1e-3, grad_norm=None,
            time=HOSTILE, samples=(),
        )  # fmt: skip
        writer.add(to_json(metrics))
        writer.flush()

    def _checkpoint(self) -> None:
        folder = layout.checkpoint_dir(1, 5)
        with self.storage.write_stream(f"{folder}/adapter_model.safetensors") as sink:
            sink.write(b"x")
        manifest = replace(
            manifest_of(1, 5, sink.entry("adapter_model.safetensors")),
            trigger=HOSTILE, created_at=HOSTILE, adapter_sha256=HOSTILE, plan=PLAN,
            facts={HOSTILE: HOSTILE, "model.revision": HOSTILE},
        )  # fmt: skip
        digest = checkpoints.write_manifest(self.storage, folder, manifest)
        checkpoints.commit(self.log, 1, manifest, folder, digest)
        (Path(self.storage.uri) / folder / HOSTILE).write_text("")


DRIVEN = {
    "init": ["init /dev/null/HOSTILE"],
    "submit": ["submit HOSTILE", "submit JOB", "submit JOB --HOSTILE",
               "submit JOB --set HOSTILE=1"],
    "data": ["data check JOB", "data check --data HOSTILE --model HOSTILE"],
    "status": ["status", "status -v", "status RUN -v", "status HOSTILE"],
    "logs": ["logs RUN", "logs RUN -n 1", "logs RUN --attempt 9", "logs HOSTILE"],
    "events": ["events RUN", "events RUN --kind HOSTILE"],
    "metrics": ["metrics RUN", "metrics RUN --csv"],
    "checkpoints": ["checkpoints RUN", "checkpoints verify RUN", "checkpoints inspect RUN 5",
                    "checkpoints inspect RUN HOSTILE", "checkpoints pull RUN 9 HOSTILE",
                    "checkpoints prune RUN --dry-run"],
    "preempt": ["preempt RUN"],
    "cancel": ["cancel RUN"],
    "resume": ["resume RUN --from HOSTILE", "resume RUN --job HOSTILE"],
    "repair": ["repair RUN"],
    "rm": ["rm RUN", "rm RUN --yes"],
    "adopt": ["adopt HOSTILE", "adopt DIR"],
    "controller": ["controller once", "controller HOSTILE"],
    "nodes": ["nodes list", "nodes clear FORGED", "nodes clear"],
    "export": ["export RUN HOSTILE"],
    "merge": ["merge RUN HOSTILE"],
    "generate": ["generate RUN - HOSTILE"],
    "verify": ["verify RUN"],
    "template": ["template check --template HOSTILE", "template show --site HOSTILE"],
    "drill": ["drill JOB", "drill HOSTILE"],
    "doctor": ["doctor JOB --backend local", "doctor HOSTILE"],
    "schema": ["schema"],
    "version": ["version"],
}  # fmt: skip
"""What is typed of each command; HOSTILE, RUN, DIR and JOB stand for the words of a stranger."""

WITHOUT = {"logs RUN -n 1", "checkpoints pull RUN 9 HOSTILE", "repair RUN", "rm RUN", "schema",
           "version"}  # fmt: skip
"""What has no place for them in its answer."""


def test_no_command_is_left_out() -> None:
    assert set(DRIVEN) == set(entry.COMMANDS)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("line", [line for lines in DRIVEN.values() for line in lines])
def test_no_command_passes_on_what_commands_a_terminal(
    desk: Desk,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    terminal: bool,
) -> None:
    stranger = Stranger(desk.bench)
    job = desk.bench.folder / "strange.yaml"
    words = HOSTILE.replace("\x9b", "").encode("unicode_escape").decode()
    job.write_text(f'name: "{words}"\nbackend: "{words}"\n"{words}": "{words}"\n')
    meant = {
        "HOSTILE": HOSTILE,
        "RUN": stranger.entry.run_id,
        "DIR": stranger.storage.uri,
        "JOB": str(job),
    }
    argv = [meant.get(word, word.replace("HOSTILE", HOSTILE)) for word in line.split(" ")]
    monkeypatch.chdir(desk.bench.folder)
    capsys.readouterr()
    if terminal:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm-256color")
    code = entry.main(argv)
    out, err = capsys.readouterr()
    said = OURS.sub("", out + err) if terminal else out + err
    assert out + err
    assert "internal error" not in said, said
    assert harmful(said) == set(), said
    assert ("FORGED" in said) == (line not in WITHOUT), "the words of a stranger are not there"
    if code == 0:
        assert not [x for x in said.splitlines() if x.startswith("FORGED")], said


@pytest.mark.parametrize(
    "fault", [CheckpointError(HOSTILE, hint=HOSTILE), RuntimeError(HOSTILE), OSError(HOSTILE),
              click.UsageError(HOSTILE), OSError(28, HOSTILE, HOSTILE)],
)  # fmt: skip
def test_errors_are_escaped_too(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Exception,
) -> None:
    @click.command()
    def command() -> None:
        raise fault

    monkeypatch.setattr(entry.LazyGroup, "get_command", lambda *_: command)
    assert entry.main(["status"]) != 0
    out, err = capsys.readouterr()
    assert "FORGED" in err
    assert harmful(out + err) == set()


def test_a_cell_stays_in_its_line() -> None:
    first, second = table.aligned([["a", HOSTILE], ["b", "c"]])
    assert "FORGED" in first
    assert second == "b  c"


def test_json_is_plain_ascii(shell: Shell, bench: Bench) -> None:
    stranger = Stranger(bench)
    for argv in (["status"], ["logs", stranger.entry.run_id], ["events", stranger.entry.run_id]):
        said = shell(*argv, "--json")
        assert said.isascii()
        assert harmful(said) == set()
    assert shell.json("status")["runs"][0]["name"] == HOSTILE


def test_logs_keep_lines_and_tabs(shell: Shell, run: Built) -> None:
    run.claim(1)
    run.print(1, 0, (1.0, "step\t1"), (2.0, "\x1b[32m 50%\x1b[0m\r100%"), (3.0, f"\x1b[2J{T0}"))
    said = shell("logs", "fake", "--rank", "0").splitlines()
    assert said == ["step\t1", " 50%", "100%", f"\\x1b[2J{T0}"]
