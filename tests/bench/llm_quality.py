"""How good the decoder's answers are: zero-shot, fine-tuned, beside the ranker and blended with it.

`python -m tests.bench.llm_quality [--quick] [--json FILE] [--model FOLDER]`. MovieLens-100k, one global split by time:
the oldest 85 % of the ratings train, 5 % weigh the blend, the newest 10 % judge; "liked" is 4 or 5 stars. Then the
claims of 360Brew (arXiv 2501.16450) as experiments of our own: a curve over history length, members of few actions, a
gap in time, tasks and a domain that were never trained. Intervals are 95 %, by resampling members.

Figures: auc and auc_within of rate, zero_shot, sft, ranker, blended (llm_auc_sft, llm_auc_within_sft, ...); what the
blend has over the ranker (llm_blend_gain, llm_blend_gain_within), with the lower ends (..._low); sft_tokens_per_s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.decoder.blend import Blend
from models.decoder.checkpoint import read_decoder, write_decoder
from models.decoder.network import Decoder
from models.decoder.rehearsal import RehearsalConfig
from models.decoder.sequences import Lesson
from models.decoder.sft import SftConfig, fine_tune
from models.decoder.shorten import shorten
from models.decoder.tokenizer import Tokenizer
from models.decoder.verbalizer.task import TaskPrompt
from services.llm.pretrained import fetch_smollm2
from tests.bench.llmquality.groceries import ask_about_groceries
from tests.bench.llmquality.judge import Jury, add_all, add_judged
from tests.bench.llmquality.movielens import Films
from tests.bench.llmquality.ranker import ranker_logits
from tests.bench.record import Record

STARTED = time.perf_counter()
SHOWN = [0]
NUM_LAYERS = 8
OTHER_SHARE = 0.2
"""Share of the training tokens of the second task."""
UNTRAINED = "love"
"""A task of the dataset that is kept from training."""
SERVED = RehearsalConfig(history_tokens=768, pass_tokens=1536)
WINDOWS = {"0 to 5 actions": (0, 5), "6 to 10": (6, 10), "11 to 100": (11, 100), "more than 100": (101, 1 << 30)}


@dataclass(frozen=True, slots=True)
class Systems:
    """Scores of every rating, nan where a system was not asked."""

    rate: NDArray[np.float64]
    sft: NDArray[np.float64]
    ranker: NDArray[np.float64]
    blended: NDArray[np.float64]

    def at(self, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        return {
            "the film's like-rate": self.rate[rows], "decoder after SFT": self.sft[rows],
            "LiRank": self.ranker[rows], "blended": self.blended[rows],
        }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens to train on, fewer questions")
    parser.add_argument("--json", type=Path, help="write figures and rows to this file")
    parser.add_argument("--model", type=Path, help="a folder that --save wrote: do not train")
    parser.add_argument("--save", type=Path, help="write the trained decoder here; a run that was cut is taken up")
    parser.add_argument("--layers", type=int, default=NUM_LAYERS, help="layers of SmolLM2's 30 that are kept")
    parser.add_argument("--only-train", action="store_true", help="train, save and stop")
    options = parser.parse_args()
    torch.set_num_threads(2)
    record = Record("llm quality")
    with tempfile.TemporaryDirectory(prefix="shortlist-bench-") as folder:
        films = Films.read(Path(folder))
        say("MovieLens in words")
        pretrained = fetch_smollm2()
        tokenizer = Tokenizer.from_folder(pretrained)
        if options.model is None:
            decoder = train(record, films, tokenizer, pretrained, options)
            if options.save is not None:
                write_decoder(options.save, decoder, tokenizer)
        else:
            decoder = read_decoder(options.model)
        if not options.only_train:
            judge(record, films, decoder.bfloat16(), tokenizer, pretrained, Path(folder), options.quick)
    record.write(options.json)
    print(record.table())
    return 0


def train(record: Record, films: Films, tokenizer: Tokenizer, pretrained: Path, options: argparse.Namespace) -> Decoder:
    """Fine-tune on the ranking task and, with a share of the tokens, on one that is about no item."""
    decoder = shorten(read_decoder(pretrained), options.layers)
    like = films.lesson(films.tasks["like"], tokenizer, films.validation_ms)
    genre = films.lesson(films.tasks["next_genre"], tokenizer, films.validation_ms)
    share = OTHER_SHARE / (1.0 - OTHER_SHARE) * like.num_tokens() / genre.num_tokens()
    drawn = np.random.default_rng(0).random(len(genre.conversations)) < share
    told = [conversation for conversation, kept in zip(genre.conversations, drawn, strict=True) if kept]
    config = SftConfig(num_tokens=350_000) if options.quick else SftConfig()
    recent: list[float] = []

    def progress(step: int, total: int, losses: object) -> None:
        recent.append(float(losses["answer"]))  # type: ignore[index]
        if step % 25 == 0 or step == total:
            say(f"step {step} / {total}, loss of answers {np.mean(recent[-25:]):.4f}")

    checkpoint = None if options.save is None else options.save.with_name(options.save.name + ".checkpoint")
    report = fine_tune(decoder, [like, Lesson(told, genre.yes, genre.no)], config, progress, checkpoint)
    record.add("SFT, tokens", report.num_examples, "tokens", f"{options.layers} layers, {config}")
    record.add("SFT, speed", report.examples_per_s, "tokens/s", "packed, bf16 autocast, embeddings frozen")
    record.add("SFT, time", report.seconds, "s")
    record.figures["sft_tokens_per_s"] = report.examples_per_s
    return decoder


def judge(
    record: Record, films: Films, decoder: Decoder, tokenizer: Tokenizer, pretrained: Path, folder: Path, quick: bool
) -> None:
    like = films.tasks["like"]
    ranker = ranker_logits(films, folder, say)
    # Of each member as many of the validation window as weigh the blend, and in the quick form of the test window.
    wanted = first_of_each(films, films.validation_ms, films.test_ms, 12 if quick else 40)
    validation = films.score(decoder, like, tokenizer, SERVED, since_ms=films.validation_ms, wanted=wanted)
    say(f"{int((~np.isnan(validation)).sum())} validation answers")
    judged = first_of_each(films, films.test_ms, None, 30 if quick else 1 << 30)
    sft = films.score(decoder, like, tokenizer, SERVED, wanted=judged)
    say(f"{int((~np.isnan(sft)).sum())} test answers")
    blend = fit_blend(films, validation, ranker)
    blended = np.full(len(sft), np.nan)
    rows = np.flatnonzero(~np.isnan(sft))
    blended[rows] = blend(ranker[rows], sft[rows], films.length[rows])
    systems = Systems(films.rate, sft, ranker, blended)
    compare(record, films, systems, blend)
    by_history(record, films, systems)
    by_time(record, films, systems)
    say("compared", record)
    zero_shot(record, films, decoder, tokenizer, pretrained, quick)
    untrained_task(record, films, decoder, tokenizer, quick)
    by_tokens(record, films, decoder, tokenizer, quick)
    untrained_domain(record, decoder, tokenizer, pretrained, quick)


def first_of_each(films: Films, since_ms: int, until_ms: int | None, most: int) -> NDArray[np.bool_]:
    """Return bool[ratings]: each member's first ones of a window, at most `most` and the rest of their instant."""
    exposures = films.exposures
    wanted = exposures.ts_ms >= since_ms
    if until_ms is not None:
        wanted &= exposures.ts_ms < until_ms
    for rows in exposures.by_member():
        inside = rows[wanted[rows]]
        if len(inside) > most:
            wanted[inside[exposures.ts_ms[inside] > exposures.ts_ms[inside[most - 1]]]] = False
    return wanted


def fit_blend(films: Films, validation: NDArray[np.float64], ranker: NDArray[np.float64]) -> Blend:
    rows = np.flatnonzero(~np.isnan(validation) & (films.exposures.ts_ms < films.test_ms))
    return Blend.fit(
        ranker[rows], validation[rows], films.length[rows], films.exposures.labels[rows],
        films.exposures.user_keys[rows],
    )  # fmt: skip


def compare(record: Record, films: Films, systems: Systems, blend: Blend) -> None:
    rows = np.flatnonzero(~np.isnan(systems.sft))
    jury = Jury(films.exposures.labels[rows], films.exposures.user_keys[rows])
    names = {"the film's like-rate": "rate", "decoder after SFT": "sft", "LiRank": "ranker", "blended": "blended"}
    for name, scores in systems.at(rows).items():
        found = jury.judge(scores)
        add_judged(record, f"test: {name}", found)
        record.figures[f"llm_auc_{names[name]}"] = found.auc.mean
        record.figures[f"llm_auc_within_{names[name]}"] = found.within.mean
    gain = jury.compare(systems.blended[rows], systems.ranker[rows])
    add_judged(record, "test: blended less LiRank", gain)
    record.figures |= {
        "llm_blend_gain": gain.auc.mean, "llm_blend_gain_low": gain.auc.low,
        "llm_blend_gain_within": gain.within.mean, "llm_blend_gain_within_low": gain.within.low,
    }  # fmt: skip
    if blend.report is not None:
        record.add(
            "blend: log loss of LiRank, cross-fitted on the validation window", blend.report.log_loss_ranker, "nats"
        )
        record.add("blend: log loss with the decoder", blend.report.log_loss_blend, "nats", f"earned: {blend.earned}")
    for bucket, weights in enumerate(blend.weights):
        num = 0 if blend.report is None else blend.report.bucket_sizes[bucket]
        note = f"logit {weights.logit:.3f}, constant {weights.constant:+.3f}, {num} ratings"
        record.add(f"blend: weight of the decoder's score, bucket {bucket}", weights.score, "", note)


def by_history(record: Record, films: Films, systems: Systems) -> None:
    """Members of few actions: is the decoder's part larger there?"""
    for name, (least, most) in WINDOWS.items():
        rows = np.flatnonzero(~np.isnan(systems.sft) & (films.length >= least) & (films.length <= most))
        if not len(rows):
            continue
        jury = Jury(films.exposures.labels[rows], films.exposures.user_keys[rows])
        add_all(record, f"{name} before", jury, systems.at(rows))
        add_judged(
            record, f"{name} before: blended less LiRank", jury.compare(systems.blended[rows], systems.ranker[rows])
        )


def by_time(record: Record, films: Films, systems: Systems) -> None:
    """The same models on the earlier and on the later half of the test ratings: nothing is trained in between."""
    rows = np.flatnonzero(~np.isnan(systems.sft))
    for name, part in zip(("earlier", "later"), np.array_split(rows, 2), strict=True):
        jury = Jury(films.exposures.labels[part], films.exposures.user_keys[part])
        add_all(record, f"{name} half of the test window", jury, systems.at(part))


def zero_shot(
    record: Record, films: Films, decoder: Decoder, tokenizer: Tokenizer, pretrained: Path, quick: bool
) -> None:
    """The pretrained decoder, all of its layers, in the same words, on a part of the ratings."""
    wanted = first_of_each(films, films.test_ms, None, 3 if quick else 10)
    config = RehearsalConfig(history_tokens=256, pass_tokens=768)
    whole = read_decoder(pretrained, torch.bfloat16)
    found = {
        "SmolLM2 zero-shot": films.score(whole, films.tasks["like"], tokenizer, config, wanted=wanted),
        "decoder after SFT": films.score(decoder, films.tasks["like"], tokenizer, config, wanted=wanted),
    }
    rows = np.flatnonzero(~np.isnan(found["SmolLM2 zero-shot"]))
    jury = Jury(films.exposures.labels[rows], films.exposures.user_keys[rows])
    add_all(record, "first ratings of each member", jury, {name: scores[rows] for name, scores in found.items()})
    record.figures["llm_auc_zero_shot"] = jury.judge(found["SmolLM2 zero-shot"][rows]).auc.mean
    say("zero-shot", record)


def by_tokens(record: Record, films: Films, decoder: Decoder, tokenizer: Tokenizer, quick: bool) -> None:
    """How much history should be told: the same ratings with more and more of it."""
    long = films.length >= 60
    wanted = first_of_each(films, films.test_ms, None, 4 if quick else 24) & long
    for tokens in (0, 128, 512, 1024) if quick else (0, 128, 256, 512, 1024, 2048):
        config = RehearsalConfig(history_tokens=tokens, pass_tokens=128)
        scores = films.score(decoder, films.tasks["like"], tokenizer, config, wanted=wanted)
        rows = np.flatnonzero(~np.isnan(scores))
        jury = Jury(films.exposures.labels[rows], films.exposures.user_keys[rows])
        add_judged(record, f"history of {tokens} to {tokens + 128} tokens", jury.judge(scores[rows]))
    say("history length", record)


def untrained_task(record: Record, films: Films, decoder: Decoder, tokenizer: Tokenizer, quick: bool) -> None:
    """A question that training never asked; nor did it show its answers in a history."""
    wanted = first_of_each(films, films.test_ms, None, 10 if quick else 40)
    task = films.tasks[UNTRAINED]
    scores = films.score(decoder, task, tokenizer, SERVED, wanted=wanted)
    rows = np.flatnonzero(~np.isnan(scores))
    jury = Jury(answers_of(films, task, rows), films.exposures.user_keys[rows])
    systems = {"decoder after SFT": scores[rows], "the film's like-rate": films.rate[rows]}
    add_all(record, f"task {UNTRAINED}, never trained", jury, systems)
    say("a task never trained", record)


def untrained_domain(record: Record, decoder: Decoder, tokenizer: Tokenizer, pretrained: Path, quick: bool) -> None:
    """Groceries, of which training never spoke, beside what SmolLM2 says of them."""
    decoders = {"decoder after SFT": decoder, "SmolLM2 zero-shot": read_decoder(pretrained, torch.bfloat16)}
    for name, found in ask_about_groceries(decoders, tokenizer, 20 if quick else 60).items():
        note = f"95 % interval {found.low:.4f} to {found.high:.4f}; mean over trips"
        record.add(f"groceries, never trained: {name}, AUC", found.mean, "", note)
    say("groceries", record)


def answers_of(films: Films, task: TaskPrompt, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    answers = [task.questions[0].label(films.interactions[row], films.schema) for row in rows.tolist()]
    return np.array(answers, dtype=np.bool_)


def say(text: str, record: Record | None = None) -> None:
    """Print what was done, and with a record the rows that it has more than when it was last shown."""
    print(f"[{time.perf_counter() - STARTED:5.0f} s] {text}", flush=True)
    for row in [] if record is None else record.rows[SHOWN[0] :]:
        print(f"    {row.quantity}: {row.value:.4f} {row.unit} ({row.note})", flush=True)
    SHOWN[0] = SHOWN[0] if record is None else len(record.rows)


if __name__ == "__main__":
    sys.exit(main())
