"""One real-shape training on this machine's GPU: preempted, resumed, proved and measured.

    python -m benchmarks.gpu_check [--folder FOLDER]          # writes docs/gpu-results.md
    python -m benchmarks.gpu_check --device cpu --tiny        # the same without a GPU

A Qwen2.5-VL with the shapes of the 7B model and random weights (about 17 GB on the disk of
FOLDER) is trained in NF4 with LoRA for some steps through the command line; a notice stops it
within a step; the next attempt goes on; `verify` must find nothing that differs. Writes a report.
Exits 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import SEVEN_B, make_shaped
from trainer.testing.tiny import make_tiny

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "gpu-results.md"
TOOL = Path(sys.executable).with_name("qvl-orchestrate")
PATIENCE_S = 420.0
STEPS, TINY_STEPS, STOP_AFTER = 10, 100, 4
"""The tiny model is so quick that its run would be over before the notice."""
FINAL = ("SUCCEEDED", "FAILED", "CANCELLED", "HELD")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")
Events = list[dict[str, Any]]


def main() -> int:
    """Command line."""
    args = _parser().parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU is seen by torch; `--device cpu --tiny` tries the same without one")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder = args.folder.absolute()
    shutil.rmtree(folder / "runs", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model = _model(folder, args.device, tiny=args.tiny)
    made_s = time.monotonic() - began
    check = Check(folder)
    row = check.train(_job(folder, model, tiny=args.tiny))
    text = report(check, row, made_s, args)
    sys.stdout.write(text)
    real = args.device == "cuda" and not args.tiny
    out = args.out or (RESULTS if real else None)
    if out is not None:
        out.write_text(text)
    good = row["state"] == "SUCCEEDED" and row["attempt"] >= 2 and check.proof["holds"]
    return 0 if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the tiny model instead of 7B shapes")
    parser.add_argument("--folder", type=Path, default=Path("gpu-check-output"))
    parser.add_argument("--out", type=Path, help="write the report to this file")
    return parser


def _model(folder: Path, device: str, *, tiny: bool) -> Path:
    script = runpy.run_path(str(ROOT / "examples/digits/make_data.py"))
    if not (folder / "train.json").exists():
        script["make_data"](folder, 240, 24)
    if tiny:
        return make_tiny("qwen2_5_vl", folder / "tiny")
    return make_shaped(folder, torch.device(device), SEVEN_B)


def _job(folder: Path, model: Path, *, tiny: bool) -> Path:
    """The job file: one rank, 4 micro-batches a step, so that a notice falls within one."""
    job = {
        "name": "gpu-check",
        "model": {"path": str(model)},
        "quantization": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        },
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "llm"},
        "data": {"train": str(folder / "train.json")},
        "training": {
            "max_steps": TINY_STEPS if tiny else STEPS,
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": not tiny,
            "seed": 7,
        },
        "deepspeed": {"stage": 2},
        "resources": {"gpus_per_node": 1},
        "checkpoint": {"uri": str(folder / "runs"), "every_steps": 30 if tiny else 3},
        "preemption": {"grace_s": 120},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job, indent=1))  # JSON is YAML
    return path


class Check:
    """One run through the command line, and what is known of it afterwards."""

    def __init__(self, folder: Path) -> None:
        state = {"QVL_STATE_DIR": str(folder / "state"), "HF_HUB_OFFLINE": "1"}
        self._env = {**os.environ, **state}
        self.events: Events = []
        self.proof: dict[str, Any] = {"holds": False}

    def train(self, job: Path) -> dict[str, Any]:
        """Submit, stop within a step, let it finish, prove; the last row of `status`."""
        run_id = str(json.loads(self.tool("submit", job, "--json"))["run_id"])
        self._wait(run_id, lambda row: row["step"] >= STOP_AFTER)
        self.tool("preempt", run_id, "--rank", "0")
        row = self._wait(run_id, lambda row: row["state"] in FINAL)
        self.events = [json.loads(s) for s in self.tool("events", run_id, "--json").splitlines()]
        if row["state"] != "SUCCEEDED":
            sys.stderr.write(self.tool("logs", run_id))
        self.proof = json.loads(self.tool("verify", run_id, "--json", fails=True))
        return row

    def of(self, attempt: int, kind: str) -> Events:
        """Events of one kind of an attempt."""
        return [e for e in self.events if e["attempt"] == attempt and e["kind"] == kind]

    def tool(self, *argv: object, fails: bool = False) -> str:
        """What `qvl-orchestrate` prints."""
        command = [str(TOOL), *map(str, argv)]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode and not fails:
            sys.exit(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
        return done.stdout

    def _wait(self, run_id: str, reached: Any) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            row = dict(json.loads(self.tool("status", run_id, "--json"))["runs"][0])
            if reached(row) or row["state"] in FINAL:
                return row
            time.sleep(0.2)
        sys.exit(f"{run_id} took more than {PATIENCE_S:.0f} s\n{self.tool('logs', run_id)}")


def report(check: Check, row: dict[str, Any], made_s: float, args: argparse.Namespace) -> str:
    """Markdown."""
    attempts = range(1, int(row["attempt"]) + 1)
    model = "the tiny model" if args.tiny else "Qwen2.5-VL, shapes of 7B, random weights"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    proved = "nothing differs" if check.proof["holds"] else "SOMETHING DIFFERS"
    steps = TINY_STEPS if args.tiny else STEPS
    what = f"{model}, NF4, LoRA r 16, {steps} steps of 4 x 2 samples, stopped by a notice, resumed"
    lines = [
        "# One training on a GPU" if args.device == "cuda" else "# The same without a GPU",
        "",
        f"`make gpu-check` on {time.strftime('%Y-%m-%d', time.gmtime())}: {what}.",
        "",
        f"- {_hardware(args.device)}",
        f"- Python {platform.python_version()}, {versions}",
        f"- model made in {made_s:.1f} s",
        f"- run: {row['state']}, {row['attempt']} attempts, {row['lost_steps']} steps lost",
        f"- proof: {proved} (tolerance of a loss: {check.proof.get('tolerance')})",
        *_reproduced(check, attempts),
        "",
        "| | " + " | ".join(f"attempt {n}" for n in attempts) + " |",
        "|---|" + "---|" * len(attempts),
    ]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in _table(check, attempts)]
    return "\n".join(lines) + "\n"


def _table(check: Check, attempts: range) -> list[tuple[str, list[str]]]:
    stages = [_stages(check.of(n, "stage")) for n in attempts]
    names = list(dict.fromkeys(name for found in stages for name in found))
    rows = [(f"{n}, s", [f"{s[n]:.2f}" if n in s else "-" for s in stages]) for n in names]
    kinds = [
        ("peak on the device, GB", "memory", lambda d: _gb(d.get("device_bytes"))),
        ("peak on the host, GB", "memory", lambda d: _gb(d.get("host_bytes"))),
        ("base from a snapshot, s", "base", lambda d: f"{d.get('seconds')} ({d.get('how')})"),
        ("last save, s", "committed", lambda d: f"{d['seconds']:.2f} ({d['trigger']})"),
        ("checkpoint, MB", "committed", lambda d: f"{d['size_bytes'] / 1e6:.1f}"),
        ("from notice to exit, s", "verdict", lambda d: _seconds(d.get("notice_to_exit_s"))),
    ]
    for name, kind, cell in kinds:
        found = [check.of(n, kind) for n in attempts]
        rows.append((name, [cell(events[-1]["data"]) if events else "-" for events in found]))
    return rows


def _stages(events: Events) -> dict[str, float]:
    """Seconds up to the first step, of rank 0 and its helper."""
    found: dict[str, float] = {}
    for event in events:
        if event["rank"] in (None, 0):
            found[event["data"]["stage"]] = float(event["data"]["seconds"])
            if event["data"]["stage"] == "first step":
                break
    return found


def _reproduced(check: Check, attempts: range) -> list[str]:
    told = [e["data"] for n in attempts for e in check.of(n, "reproduced")]
    return [
        f"- losses computed again after the resume: {d['micro_batches']} of step {d['step'] + 1}, "
        f"{d['apart']:.3g} apart"
        for d in told
        if "micro_batches" in d
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.2f}"


def _hardware(device: str) -> str:
    host = f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"
    if device == "cpu":
        return f"no GPU; {host}"
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}; {host}"


if __name__ == "__main__":
    sys.exit(main())
