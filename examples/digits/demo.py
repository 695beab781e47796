"""The main job on this machine: preempted three times, and compared with an undisturbed run.

A real Q-LoRA fine-tuning (NF4, PEFT, Transformers, DeepSpeed ZeRO-2, two ranks on the CPU) of a
tiny random Qwen2.5-VL on pictures of handwritten digits. Uses the command line as a user would.
Leaves everything in demo-output/; exits 1 if anything differs between the two runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OUT = Path.cwd() / "demo-output"
TOOL = Path(sys.executable).with_name("qvl-orchestrate")
ENV = {**os.environ, "QVL_STATE_DIR": str(OUT / "state"), "HF_HUB_OFFLINE": "1"}
PATIENCE_S = 240.0
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "HELD")
LAST_TRY = 28
"""A stop after this step leaves too little of the 40 to be sure of one more notice."""


def main() -> int:
    prepare()
    say("run A: preempted three times")
    disturbed = submit("digits-preempted")
    notices(disturbed)
    wait_until_settled(disturbed)
    say("run B: the same job, undisturbed")
    undisturbed = submit("digits-undisturbed")
    wait_until_settled(undisturbed)
    return report(disturbed, undisturbed)


def prepare() -> None:
    """A fresh output folder with the model, the data and the job file."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    say("making a tiny Qwen2.5-VL and 240 pictures of digits")
    run(sys.executable, "-m", "trainer.testing.tiny", OUT / "model", "--family", "qwen2_5_vl")
    run(sys.executable, HERE / "make_data.py", OUT)
    shutil.copy(HERE / "job.yaml", OUT / "job.yaml")


def submit(name: str) -> str:
    """Submit the job under a name of its own; returns the run id."""
    answer = tool("submit", OUT / "job.yaml", "--set", f"name={name}", "--json")
    run_id = str(json.loads(answer)["run_id"])
    print(f"   submitted {run_id}")
    return run_id


def notices(run_id: str) -> None:
    """Three notices: to all ranks, to one rank inside a step, and while it is still loading."""
    wait_for_step(run_id, attempt=1, step=6)
    preempt(run_id, "SIGTERM to all ranks", "--rank", "0", "--rank", "1")
    attempt = wait_for_attempt(run_id, after=1)
    while True:
        start = int(state(run_id)["step"])
        wait_for_step(run_id, attempt=attempt, step=start + 2)
        preempt(run_id, "SIGUSR1 to one rank", "--rank", "1", "--signal", "SIGUSR1")
        stopped, attempt = attempt, wait_for_attempt(run_id, after=attempt)
        if micro_batch_of_stop(run_id, stopped):
            break
        if int(state(run_id)["step"]) > LAST_TRY:
            print("   it hit the boundary of a step again; too few steps are left to try once more")
            break
        print("   it hit the boundary of a step; once more, for the middle of one")
    time.sleep(1.0)
    preempt(run_id, f"SIGTERM while attempt {attempt} is still loading")


def preempt(run_id: str, what: str, *options: str) -> None:
    print(f"   notice: {what}")
    tool("preempt", run_id, *options)


def micro_batch_of_stop(run_id: str, attempt: int) -> int:
    """Micro-batches of the unfinished step in which an attempt stopped; 0 at a boundary."""
    stops = [e for e in events(run_id) if e["kind"] == "stop_agreed" and e["attempt"] == attempt]
    return int(stops[-1]["data"]["micro_batch"] or 0) if stops else 0


def wait_for_step(run_id: str, *, attempt: int, step: int) -> None:
    wait_for(run_id, lambda s: s["attempt"] == attempt and s["step"] >= step, f"step {step}")


def wait_for_attempt(run_id: str, *, after: int) -> int:
    return int(wait_for(run_id, lambda s: s["attempt"] > after, f"attempt {after + 1}")["attempt"])


def wait_until_settled(run_id: str) -> None:
    end = wait_for(run_id, lambda s: s["state"] in FINAL, "the end")
    if end["state"] != "SUCCEEDED":
        sys.exit(f"run {run_id} ended {end['state']}: {end['reason']}")


def wait_for(run_id: str, reached: Any, what: str) -> dict[str, Any]:
    """Poll `status` until the row satisfies `reached`, showing progress on the way."""
    end = time.monotonic() + PATIENCE_S
    shown = ""
    while time.monotonic() < end:
        row = state(run_id)
        line = f"   attempt {row['attempt']}  {row['state']:<9}  step {row['step']}"
        if line != shown:
            print(line)
            shown = line
        if reached(row):
            return row
        if row["state"] in FINAL:
            sys.exit(
                f"run {run_id} is {row['state']} ({row['reason']}) before it reached {what}\n"
                f"{tool('logs', run_id)}"
            )
        time.sleep(0.1)
    sys.exit(f"run {run_id} did not reach {what} within {PATIENCE_S:.0f} s\n{tool('logs', run_id)}")


def state(run_id: str) -> dict[str, Any]:
    return dict(json.loads(tool("status", run_id, "--json"))["runs"][0])


def events(run_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tool("events", run_id, "--json").splitlines()]


def curve(run_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in tool("metrics", run_id, "--json").splitlines()]


def adapter(run_id: str) -> str:
    return str(json.loads(tool("checkpoints", run_id, "--json"))[-1]["adapter_sha256"])


def report(disturbed: str, undisturbed: str) -> int:
    """The two runs side by side; 1 if anything that must be equal differs."""
    a, b = curve(disturbed), curve(undisturbed)
    row_a, row_b = state(disturbed), state(undisturbed)
    equal_losses = [x["loss_hex"] for x in a] == [x["loss_hex"] for x in b] and len(a) == 40
    equal_rates = [x["learning_rate"] for x in a] == [x["learning_rate"] for x in b]
    equal_adapter = adapter(disturbed) == adapter(undisturbed)
    stops = [
        e for e in events(disturbed) if e["kind"] == "verdict" and e["data"]["code"] in (75, 76)
    ]
    say("what each notice cost")
    for stop in stops:
        seconds = stop["data"]["notice_to_exit_s"]
        saved = "progress committed" if stop["data"]["code"] == 75 else "nothing new to save"
        print(f"   attempt {stop['attempt']}: {seconds:.2f} s from notice to exit, {saved}")
    say("side by side")
    lines = [
        ("", "preempted", "undisturbed"),
        ("attempts", row_a["attempt"], row_b["attempt"]),
        ("preemptions", row_a["preemptions"], row_b["preemptions"]),
        ("steps lost", row_a["lost_steps"], row_b["lost_steps"]),
        ("first loss", a[0]["loss_hex"], b[0]["loss_hex"]),
        ("last loss", a[-1]["loss_hex"], b[-1]["loss_hex"]),
        ("adapter sha256", adapter(disturbed)[:16], adapter(undisturbed)[:16]),
    ]
    for name, left, right in lines:
        print(f"   {name:<16}{left!s:<24}{right!s}")
    print(f"   all 40 losses identical: {equal_losses}")
    print(f"   learning rates identical: {equal_rates}")
    print(f"   final adapters identical: {equal_adapter}")
    print(f"   picture: {draw(a, events(disturbed))}")
    good = equal_losses and equal_rates and equal_adapter
    enough = row_a["preemptions"] >= 3 and row_a["lost_steps"] == 0
    say("bit for bit the same" if good and enough else "THE RUNS DIFFER")
    return 0 if good and enough else 1


def draw(points: list[dict[str, Any]], happened: list[dict[str, Any]]) -> Path:
    """The loss curve with the preemptions marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot([p["step"] for p in points], [p["loss"] for p in points], color="0.7", zorder=1)
    for attempt in sorted({p["attempt"] for p in points}):
        part = [p for p in points if p["attempt"] == attempt]
        axes.scatter(
            [p["step"] for p in part], [p["loss"] for p in part], s=14, label=f"attempt {attempt}"
        )
    for event in happened:
        if event["kind"] == "stop_agreed" and event.get("rank") in (0, None):
            axes.axvline(event["data"]["step"], color="0.5", linestyle="--", linewidth=1)
    axes.set(
        xlabel="optimizer step",
        ylabel="training loss",
        title="One curve over all attempts (dashed: preempted)",
    )
    axes.legend()
    path = OUT / "loss.png"
    figure.savefig(path, dpi=120)
    return path


def tool(*args: object) -> str:
    return run(TOOL, *args)


def run(*argv: object) -> str:
    done = subprocess.run(
        [str(a) for a in argv], env=ENV, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(
            f"{' '.join(map(str, argv))} failed ({done.returncode}):\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
