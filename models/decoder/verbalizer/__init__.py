"""Members, items and what members did, in words: the texts that the decoder is trained on and asked with."""

from models.decoder.verbalizer.fields import Limits
from models.decoder.verbalizer.history import Dropped
from models.decoder.verbalizer.numbers import NumberWords, Percentiles, Standing
from models.decoder.verbalizer.task import HistorySelection, Interaction, Question, TaskError, TaskPrompt
from models.decoder.verbalizer.verbalizer import BudgetError, Prompt, PromptPart, Verbalizer

__all__ = [
    "BudgetError",
    "Dropped",
    "HistorySelection",
    "Interaction",
    "Limits",
    "NumberWords",
    "Percentiles",
    "Prompt",
    "PromptPart",
    "Question",
    "Standing",
    "TaskError",
    "TaskPrompt",
    "Verbalizer",
]
