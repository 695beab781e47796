"""`data check` at work: from a request to the whole report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from orchestrator.contract.jsonio import to_json
from orchestrator.contract.resolved import ModelSpec
from orchestrator.errors import UserError
from trainer.commands.data_check import index, report
from trainer.commands.data_check.kinds import Finding
from trainer.commands.data_check.memory import Shapes, read_shapes
from trainer.commands.data_check.render import rendered
from trainer.commands.data_check.request import Request
from trainer.commands.data_check.sample import Checked, Judge
from trainer.commands.data_check.scan import repetitions, scan
from trainer.commands.tool import Tool
from trainer.data.dataset import kept_length
from trainer.vision_language.families import family_of
from trainer.vision_language.families.processor import VisionChatProcessor
from trainer.vision_language.formats import normalise
from trainer.vision_language.media import media_file, picture_facts

__all__ = ["Request", "work"]

_TICK_S = 0.2


def work(tool: Tool, request: Request) -> dict[str, Any]:
    """The report of one request. Raises UserError for a model that cannot be read."""
    return DataCheck(tool, request).run()


class DataCheck:
    """One request at work."""

    def __init__(self, tool: Tool, request: Request) -> None:
        self._tool = tool
        self._request = request
        folder = _folder(request)
        self._processor = VisionChatProcessor.from_pretrained(folder, family_of(folder))
        try:
            self._shapes: Shapes = read_shapes(folder)
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise UserError(f"{folder}: its config or weights cannot be read: {fault}") from None
        self._said = 0.0

    def run(self) -> dict[str, Any]:
        """The whole report."""
        files, findings, everything = [], [], []
        sample = None
        for name in filter(None, (self._request.train, self._request.eval)):
            judge, read, checked = self._file(Path(name))
            found = [*read.findings, *(f for one in checked for f in one.findings)]
            found += repetitions(read.file, checked)
            found.sort(key=lambda f: (-1 if f.record is None else f.record, f.kind))
            files.append(report.file_report(read.file, len(read.records), checked, found))
            findings += found
            everything += checked
            sample = sample or self._sample(judge, read, checked)
        return {
            "files": files,
            "counts": report.counts(findings),
            "findings": [_shown(f) for f in findings],
            "limit_tokens": self._limit,
            "memory": report.memory_report(self._shapes, self._request, everything),
            "sample": sample,
        }

    @property
    def _limit(self) -> int | None:
        return self._request.max_length or self._shapes.max_positions

    def _file(self, file: Path) -> tuple[Judge, index.Index, list[Checked]]:
        read = index.read(file)
        judge = Judge(
            file=str(file),
            processor=self._processor,
            media_root=Path(self._request.media_root or file.parent).resolve(),
            limit=self._limit,
            decode=self._request.decode,
        )
        total = len(read.records)

        def tick(done: int) -> None:
            if done == total or time.monotonic() - self._said > _TICK_S:
                self._said = time.monotonic()
                self._tool.say("progress", file=str(file), done=done, total=total)

        return judge, read, scan(judge, read.records, self._request.processes, tick)

    def _sample(
        self, judge: Judge, read: index.Index, checked: list[Checked]
    ) -> dict[str, Any] | None:
        """The first good record, one with a picture if there is any."""
        good = [one for one in checked if one.tokens]
        chosen = next((one for one in good if one.images), good[0] if good else None)
        if chosen is None:
            return None
        record = next(r for r in read.records if r.number == chosen.record)
        chat = normalise(record.value, record.number)
        facts = [picture_facts(media_file(judge.media_root, i.path)) for i in chat.images]
        sizes = [self._processor.image_tokens(f.width, f.height) for f in facts]
        encoded = self._processor.layout(chat.turns, sizes)
        kept = kept_length(encoded, judge.limit)
        return {
            "file": read.file,
            "record": chosen.record,
            "tokens": kept,
            "runs": rendered(self._processor, encoded, kept),
        }


def _folder(request: Request) -> Path:
    if Path(request.model).is_dir():
        return Path(request.model)
    from trainer.base_model.modeling import model_folder  # takes seconds to import

    return model_folder(ModelSpec(path=request.model, revision=request.revision))


def _shown(finding: Finding) -> dict[str, Any]:
    return {**to_json(finding), "level": finding.level}
