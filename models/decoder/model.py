"""A trained decoder as an artifact: the weights, and everything that must go with them to mean the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.data.schema import FeatureSchema
from models.decoder.blend import Blend
from models.decoder.checkpoint import read_decoder, write_decoder
from models.decoder.network import Decoder
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.task import TaskPrompt
from models.ranking.calibration import Calibration

KIND = "llm"
FORMAT = 1
_DESCRIPTION = "shortlist.json"
_CALIBRATION = "calibration.json"
_BLEND = "blend.json"


@dataclass(frozen=True, slots=True)
class LlmModel:
    """A decoder, the tasks that it was trained on and their versions, and what its scores are worth.

    The folder is a Hugging Face folder with three files more: transformers and vLLM read it as it is.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    tasks: Sequence[TaskPrompt]
    """The first one is the ranker's: its first question is what `blend` is of."""
    versions: Mapping[str, str]
    """The verbalizer's version of each task, by the task's name."""
    calibration: Calibration
    """One map per question, in the order of `question_names`."""
    blend: Blend

    def save(self, folder: Path, schema: FeatureSchema) -> None:
        """Write the model, weights in the dtype that they have; `schema` is that of the tasks' fields and actions."""
        write_decoder(folder, self.decoder, self.tokenizer)
        self.calibration.save(folder / _CALIBRATION)
        (folder / _BLEND).write_text(json.dumps(self.blend.to_dict(), indent=2) + "\n")
        document = {
            "format": FORMAT,
            "kind": KIND,
            "schema_hash": schema.hash(),
            "tokenizer": self.tokenizer.hash(),
            "tasks": [task.to_dict() for task in self.tasks],
            "versions": dict(self.versions),
        }
        (folder / _DESCRIPTION).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, schema: FeatureSchema, dtype: torch.dtype = torch.float32) -> LlmModel:
        """Read a model. Raises ValueError for another kind, format, schema or tokenizer than it was written with."""
        path = folder / _DESCRIPTION
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_folder(folder)
        for name, expected in (
            ("kind", KIND), ("format", FORMAT), ("schema_hash", schema.hash()), ("tokenizer", tokenizer.hash())
        ):  # fmt: skip
            if document.get(name) != expected:
                raise ValueError(f"{path}: {name} is {document.get(name)!r}, expected {expected!r}")
        tasks = tuple(TaskPrompt.from_dict(task) for task in document["tasks"])
        return cls(
            read_decoder(folder, dtype),
            tokenizer,
            tasks,
            document["versions"],
            Calibration.load(folder / _CALIBRATION, question_names(tasks)),
            Blend.from_dict(json.loads((folder / _BLEND).read_text())),
        )


def question_names(tasks: Sequence[TaskPrompt]) -> tuple[str, ...]:
    """Return "task.question" of every question of every task, in their order."""
    return tuple(f"{task.name}.{question.name}" for task in tasks for question in task.questions)
