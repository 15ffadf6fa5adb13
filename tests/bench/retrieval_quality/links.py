"""Learned links on the jobs world, against its truth, ratio scoring and the towers. Everything here is synthetic.

Definitions:
- links_precision: share of the mined links that are a rule of the world exactly, no condition more or less.
- links_recall: share of the rules with at least 3 hires before the split that are a mined link exactly. (With fewer
  hires a rule is below the miner's support.) The share of all rules is printed beside it.
- Ratio scoring: every candidate with enough support and lift, scored by its log ratio of hires to refusals; a pair's
  score is the mean, maximum or sum over the links that hold, whichever separates best: the baseline's best case.
- AUC: hires against refusals among the applications of the test window.
- Towers: RetrievalConfig's defaults, trained to find applications, and to find hires; "both" uses the better ones.
- Hires found: of the hires of the test window on jobs that were open at the split, the share whose job is among the
  100 retrieved for the member at the split. A log of what was shown and applied for; each member is hired once.
- Expected hires per 100: the truth's chance of a hire, summed over the 100 retrieved, if the member applied to all.
"""

# U = members asked, J = jobs, K = retrieved

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.data.events import HistoryBuilder
from models.data.state import UserState
from models.evaluate import Interval, auc, bootstrap_mean
from models.retrieval.links.labels import label_pairs
from models.retrieval.links.liquidity import LiquidityConfig, choose_links
from models.retrieval.links.matching import ItemPostings, LinkSet, score_items
from models.retrieval.links.mining import LabelledPairs, Mined, MiningConfig, count_links, mine_links
from models.retrieval.links.ratio import ratio_weights, score_pairs
from models.retrieval.links.rows import Link
from models.retrieval.links.templates import MetaLinks
from models.retrieval.links.weights import Design
from models.retrieval.training import RetrievalConfig, train_retrieval
from tests.bench.record import Record
from tests.bench.retrieval_quality.jobs import LABELS, TEMPLATES, JobsCase, make_case, real_words, size_of
from tests.bench.retrieval_quality.truth import compare_with_rules, rules_as_links

RETRIEVED = 100
MAX_ASKED = 1500
SAME_AUC = 0.005
"""Two AUCs that differ by no more are about equal."""
CONFIG = MiningConfig(templates=TEMPLATES)
LAMBDAS = (0.01, 0.03, 0.1, 0.3, 1.0)


def measure_links(record: Record, *, quick: bool) -> None:
    """Add the figures and rows of the links, and print the tables of docs/links.md."""
    print(__doc__)
    measure_case(record, make_case(size_of(quick=quick), real_words()))


def measure_case(record: Record, case: JobsCase) -> None:
    """As `measure_links`, on any jobs world."""
    pairs = _label(case, train=True)
    mined = mine_links(CONFIG, case.profiles, case.jobs, pairs)
    _measure_rules(record, case, pairs, mined)
    _measure_ratio(record, case, pairs, mined)
    _measure_liquidity(record, case, mined)
    _measure_retrieval(record, case, mined)


def _label(case: JobsCase, *, train: bool) -> LabelledPairs:
    events = case.train if train else case.test
    return label_pairs(LABELS, case.schema, events, case.member_keys, case.job_keys)


def _measure_rules(record: Record, case: JobsCase, pairs: LabelledPairs, mined: Mined) -> None:
    rules = rules_as_links([(rule.pairs, rule.weight) for rule in case.world.rules.rules])
    with_samples = label_pairs(
        replace(LABELS, sampled_per_hire=1), case.schema, case.train, case.member_keys, case.job_keys
    )
    variants: list[tuple[str, MiningConfig, LabelledPairs]] = [
        ("as configured", CONFIG, pairs),
        ("one round of L1 (the paper's)", replace(CONFIG, rounds=1), pairs),
        ("one round, every weight above 0", replace(CONFIG, rounds=1, min_weight=0.0), pairs),
        ("weights of any sign", replace(CONFIG, non_negative=False), pairs),
        ("up to 3 pairs a link", replace(CONFIG, max_size=3), pairs),
        ("an even draw per hire among the others", CONFIG, with_samples),
    ]
    print("| mining | candidates | links | precision | implied | recall | recall of all rules | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name, config, labelled in variants:
        made = mined if name == "as configured" else mine_links(config, case.profiles, case.jobs, labelled)
        found = compare_with_rules(made.links, rules, case.profiles, case.jobs, pairs, config.min_support)
        print(
            f"| {name} | {made.figures['candidates']:,.0f} | {len(made.links):,} | {found.precision:.3f} "
            f"| {found.implied:.3f} | {found.recall:.3f} | {found.recall_of_all:.3f} | {made.figures['seconds']:.1f} |"
        )
        if made is mined:
            record.figures["links_precision"], record.figures["links_recall"] = found.precision, found.recall
            record.add("links: precision", found.precision, "share", "synthetic; exactly a rule")
            record.add("links: precision, implied", found.implied, "share", "synthetic; a rule with conditions more")
            note = f"synthetic; of {found.num_supported} rules with 3 hires or more"
            record.add("links: recall", found.recall, "share", note)
            record.add("links: recall of all rules", found.recall_of_all, "share", f"synthetic; of {len(rules)}")
            record.add("links: mining", made.figures["seconds"], "s", f"{len(pairs):,} pairs, one thread")
    print()


def _measure_ratio(record: Record, case: JobsCase, pairs: LabelledPairs, mined: Mined) -> None:
    meta_links = MetaLinks(CONFIG.templates, case.profiles, case.jobs)
    counted = count_links(CONFIG, meta_links, pairs)
    test = _label(case, train=False)
    codes = meta_links.of_pairs(test.members, test.items)
    design = Design(counted.candidates.match(codes), len(test), len(counted.candidates)).take(counted.kept)
    weights = {link.pairs: link.weight for link in mined.links}
    decoded = (
        tuple(meta_links.decode(code) for code in counted.candidates.codes_of(link)) for link in counted.kept.tolist()
    )
    l1 = np.array([weights.get(Link(pairs=pairs_of, weight=0.0).pairs, 0.0) for pairs_of in decoded])
    ratio = ratio_weights(counted)
    every = np.ones(len(ratio), np.bool_)
    by_l1 = auc(score_pairs(design, l1, l1 > 0, "sum"), test.hired)
    truth = auc(case.world.hire_chances(test.members, test.items), test.hired)
    hows = {how: auc(score_pairs(design, ratio, every, how), test.hired) for how in ("mean", "max", "sum")}
    how = max(hows, key=lambda name: hows[name])
    order = np.argsort(-ratio, kind="stable")
    print("| scoring | links | AUC, test window |\n|---|---|---|")
    print(f"| the truth's own chance | {len(case.world.rules.rules):,} rules | {truth:.4f} |")
    print(f"| L1 | {len(mined.links):,} | {by_l1:.4f} |")
    for name, value in hows.items():
        print(f"| ratio, all, {name} | {len(ratio):,} | {value:.4f} |")
    needed = None
    for size in sorted({len(mined.links), *np.geomspace(100, len(ratio), 12).astype(int).tolist()}):
        part = np.zeros(len(ratio), np.bool_)
        part[order[:size]] = True
        value = max(auc(score_pairs(design, ratio, part, each), test.hired) for each in hows)
        print(f"| ratio, the best {size:,} | {size:,} | {value:.4f} |")
        if needed is None and value >= by_l1 - SAME_AUC:
            needed = size
    print()
    record.figures["links_fewer_than_ratio"] = len(ratio) / max(1, len(mined.links))
    record.figures["links_auc"], record.figures["links_ratio_auc"] = by_l1, hows[how]
    record.add("links: number", len(mined.links), "links", "synthetic")
    record.add("links: number, ratio scoring", len(ratio), "links", f"synthetic; best by {how}")
    record.add("links: AUC of hires, L1", by_l1, "AUC", "synthetic")
    record.add("links: AUC of hires, ratio", hows[how], "AUC", "synthetic")
    record.add("links: AUC of hires, the truth", truth, "AUC", "synthetic")
    reached = "never: no number of links reaches it" if needed is None else ""
    record.add(
        "links: ratio scoring to the same AUC",
        needed or float("nan"),
        "links",
        f"synthetic; within {SAME_AUC} {reached}",
    )


def _measure_liquidity(record: Record, case: JobsCase, mined: Mined) -> None:
    """How many jobs members reach, and what of the test window's hires is among them."""
    members, jobs = _test_hires(case)
    open_places = np.flatnonzero(case.open)
    postings = ItemPostings([case.jobs[place] for place in open_places])
    links = LinkSet(mined.links)
    print(
        "| enough | added | links a member | jobs to score | jobs reached | members with enough | qualified | hires |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for enough in (10, 25, 50, 100, 200, 400, 800):
        for unit in ("segment", "link"):
            config = LiquidityConfig(enough=enough, budget=4 * enough, unit=unit)  # type: ignore[arg-type]
            chosen = [choose_links(links, case.profiles[member], postings.rows, config) for member in members.tolist()]
            reached = [open_places[each.reached] for each in chosen]
            sizes = np.array([len(each) for each in reached])
            qualified = case.world.qualified(np.repeat(members, sizes), np.concatenate(reached)).mean()
            found = np.mean([job in each for job, each in zip(jobs.tolist(), reached, strict=True)])
            liquid = np.mean([each.enough for each in chosen])
            print(
                f"| {enough} | {unit}s | {np.mean([len(each.links) for each in chosen]):.1f} "
                f"| {np.mean([each.num_to_score for each in chosen]):.0f} | {sizes.mean():.0f} | {liquid:.3f} "
                f"| {qualified:.3f} | {found:.3f} |"
            )
            if unit == "segment":
                record.add(f"links: members who reach {enough} jobs", float(liquid), "share", "synthetic")
                record.add(f"links: hires reached, enough = {enough}", float(found), "share", "synthetic")
    print()


def _measure_retrieval(record: Record, case: JobsCase, mined: Mined) -> None:
    members, jobs = _test_hires(case)
    closed = ~case.open
    seen_UJ = _seen(case, members)
    hidden_UJ = seen_UJ | closed
    tune = np.arange(len(members)) % 2 == 0
    by_action = {action: _tower_scores(case, members, action) for action in ("apply", "hire")}
    towers_UJ = max(by_action.values(), key=lambda scores: _found(scores, hidden_UJ, jobs)[tune].mean())
    links_UJ = np.zeros_like(towers_UJ)
    links, postings = LinkSet(mined.links), ItemPostings(case.jobs)
    for row, member in enumerate(members.tolist()):
        places, weights = score_items(links.links_of(case.profiles[member]), postings)
        links_UJ[row, places] = weights
    counts_J = np.bincount(_places(case.train.item_keys, case.job_keys), minlength=len(case.jobs)).astype(np.float64)
    random = np.random.default_rng(0)
    both = {weight: towers_UJ + weight * links_UJ for weight in LAMBDAS}
    best = max(both, key=lambda weight: _found(both[weight], hidden_UJ, jobs)[tune].mean())
    candidates = {
        "random": random.random(towers_UJ.shape),
        "popular": np.broadcast_to(counts_J, towers_UJ.shape),
        "towers, of applications": by_action["apply"],
        "towers, of hires": by_action["hire"],
        "links": links_UJ + 1e-9 * counts_J,
        "both": both[best],
    }
    report = ~tune
    print(
        f"{report.sum()} members hired after the split; the weight of links beside towers, chosen on others: {best}\n"
    )
    print("| source | hires found in 100 | expected hires per 100 | qualified of 100 |\n|---|---|---|---|")
    for name, scores_UJ in candidates.items():
        top_UK = _top(scores_UJ, hidden_UJ)
        _add_source(record, case, name, members[report], jobs[report], top_UK[report])
    half = _quota(links_UJ, towers_UJ, hidden_UJ)
    _add_source(record, case, "both, half each", members[report], jobs[report], half[report])
    print()


def _add_source(
    record: Record,
    case: JobsCase,
    name: str,
    members: NDArray[np.int64],
    jobs: NDArray[np.int64],
    top_UK: NDArray[np.int64],
) -> None:
    found = bootstrap_mean((top_UK == jobs[:, None]).any(axis=1).astype(np.float64) * 100)
    everyone = np.repeat(members, top_UK.shape[1])
    chances = case.world.hire_chances(everyone, top_UK.ravel()).reshape(top_UK.shape)
    expected = bootstrap_mean(chances.sum(axis=1) * 100 / top_UK.shape[1])
    qualified = bootstrap_mean(case.world.qualified(everyone, top_UK.ravel()).reshape(top_UK.shape).mean(axis=1) * 100)
    print(f"| {name} | {_text(found)} | {_text(expected)} | {_text(qualified)} |")
    key = name.replace(", ", "_").replace(" ", "_")
    record.figures[f"hires_found_per_100_{key}"] = found.mean
    record.figures[f"expected_hires_per_100_{key}"] = expected.mean
    record.add(f"hires found in 100, {name}", found.mean, "%", f"synthetic; 95 % {found.low:.1f} to {found.high:.1f}")
    record.add(
        f"expected hires per 100, {name}",
        expected.mean,
        "hires",
        f"synthetic; {expected.low:.1f} to {expected.high:.1f}",
    )


def _test_hires(case: JobsCase) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Members hired after the split, and by which job: those whose job was open at the split, at most MAX_ASKED."""
    hired = case.test.take((case.test.action_masks & np.uint32(1 << case.schema.bit("hire"))) != 0)
    members = _places(hired.user_keys, case.member_keys)
    jobs = _places(hired.item_keys, case.job_keys)
    # Hired after it, but not for what was applied for before it: that is excluded as seen.
    rows = np.flatnonzero(case.open[jobs])
    seen = HistoryBuilder(case.train, 1)
    rows = np.array(
        [row for row in rows.tolist() if hired.item_keys[row] not in seen.seen(hired.user_keys[row], case.split_ms)]
    )
    rows = rows[:MAX_ASKED]
    return members[rows], jobs[rows]


def _seen(case: JobsCase, members: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[U, J]: what a member clicked or applied for before the split: nobody retrieves it again."""
    histories = HistoryBuilder(case.train, 1)
    seen_UJ = np.zeros((len(members), len(case.jobs)), np.bool_)
    for row, key in enumerate(case.member_keys[members].tolist()):
        seen_UJ[row, _places(histories.seen(key, case.split_ms), case.job_keys)] = True
    return seen_UJ


def _tower_scores(case: JobsCase, members: NDArray[np.int64], action: str) -> NDArray[np.float64]:
    """float64[U, J]: of towers that learn to find the action."""
    started = time.perf_counter()
    schema = replace(case.schema, positive=action)
    users = dict(zip(case.member_keys.tolist(), case.profiles, strict=True))
    model = train_retrieval(schema, case.items, users, case.train, RetrievalConfig())
    histories = HistoryBuilder(case.train, case.schema.history_length)
    states = [
        UserState(users[key], histories.history(key, case.split_ms)) for key in case.member_keys[members].tolist()
    ]
    vectors_UD = model.encode_users(states, case.split_ms)
    scores: NDArray[np.float64] = (vectors_UD @ model.encode_items(case.items.gather(case.job_keys)).T).astype(
        np.float64
    )
    print(f"towers of {action}: trained and asked in {time.perf_counter() - started:.0f} s")
    return scores


def _top(scores_UJ: NDArray[np.float64], hidden_UJ: NDArray[np.bool_]) -> NDArray[np.int64]:
    masked = np.where(hidden_UJ, -np.inf, scores_UJ)
    top = np.argpartition(-masked, RETRIEVED, axis=1)[:, :RETRIEVED]
    order = np.argsort(-np.take_along_axis(masked, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)


def _quota(
    links_UJ: NDArray[np.float64], towers_UJ: NDArray[np.float64], hidden_UJ: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The best half by links, ties to the towers' favourites; the rest by the towers."""
    by_links = _top(links_UJ + 1e-6 * towers_UJ, hidden_UJ)[:, : RETRIEVED // 2]
    left = hidden_UJ.copy()
    np.put_along_axis(left, by_links, True, axis=1)
    return np.concatenate([by_links, _top(towers_UJ, left)[:, : RETRIEVED - by_links.shape[1]]], axis=1)


def _found(scores_UJ: NDArray[np.float64], hidden_UJ: NDArray[np.bool_], jobs: NDArray[np.int64]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (_top(scores_UJ, hidden_UJ) == jobs[:, None]).any(axis=1)
    return found


def _places(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    order = np.argsort(known)
    return np.asarray(order[np.searchsorted(known, keys, sorter=order)])


def _text(interval: Interval) -> str:
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"
