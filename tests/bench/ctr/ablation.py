"""The parts of LiRank switched on one by one, beside the deltas that its paper prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from models.evaluate import Interval, auc_statistic, bootstrap
from models.ranking.network import NetworkConfig
from models.ranking.training import RankingConfig
from tests.bench.ctr.compare import TEST, joined
from tests.bench.ctr.log import PreparedLog
from tests.bench.ctr.ours import fit_ours

BASE: Mapping[str, Any] = {
    "history": "pooled", "cross": "none", "gate_rank": 0, "hidden": (100, 100, 100, 100), "towers": "shared",
    "isotonic": False, "popularity": False,
}  # fmt: skip
"""The paper's MLP of 4 x 100, which here has ids and pooled histories: they cannot be left out of our network."""
LARGE: Mapping[str, Any] = {"hidden": (512, 512, 256)}
STEPS: Mapping[str, tuple[Mapping[str, Any], float | None]] = {
    "isotonic": ({"isotonic": True}, 1.08),
    "large MLP": (LARGE, 1.23),
    "dense gating": ({"gate_rank": 16}, 1.00),
    "task grouping": ({"towers": "grouped"}, 0.75),
    "low-rank DCNv2": ({"cross": "lowrank"}, 1.26),
    "TransAct": ({"history": "transact"}, 1.66),
    "causal history (ours)": ({"history": "causal"}, None),
    "residual DCN": ({"cross": "residual"}, 2.15),
    "low-rank DCNv2 + large MLP + TransAct": ({"cross": "lowrank", "history": "transact", **LARGE}, 3.45),
    "residual DCN + large MLP + TransAct": ({"cross": "residual", "history": "transact", **LARGE}, 3.62),
    "MMoE": ({"towers": "mmoe"}, 1.19),
}
"""Fields that differ from BASE, and the paper's relative change of contributions in replay on Feed, in percent. Its
printed 4.14 is of a sparsely gated MMoE; ours is dense, for which its text gives 1.19. Its "+ IDs" (1.89) has no row
here."""


MAIN_STEPS = ("large MLP", "dense gating", "low-rank DCNv2", "causal history (ours)", "residual DCN")
"""Of which none reads histories once per candidate: those that a log of many candidates a request can afford."""


class Step(NamedTuple):
    name: str
    paper: float | None
    ours: Interval
    """Change of AUC against BASE, in percent of BASE's, mean over seeds; members and seeds are resampled together."""


def ablate(
    prepared: PreparedLog,
    config: RankingConfig,
    seeds: Sequence[int],
    progress: Callable[[str], None],
    names: Sequence[str] = tuple(STEPS),
) -> list[Step]:
    """Train the base and each step with every seed."""
    labels = joined({split: prepared.labels(split)[:, 0] for split in TEST})
    members = joined({split: prepared.user_keys[split] for split in TEST})

    def statistics(fields: Mapping[str, Any]):  # type: ignore[no-untyped-def]
        # Of these tasks one implies the other, which by default makes them one group: a tower for each, then.
        groups = tuple((task,) for task in prepared.log.schema.tasks) if fields.get("towers") == "grouped" else ()
        found = []
        for seed in seeds:
            network: NetworkConfig = replace(config.network, **{**BASE, **fields}, groups=groups)
            logits, _ = fit_ours(prepared, replace(config, network=network, seed=seed))
            found.append(auc_statistic(joined({split: logits[split][:, 0] for split in TEST}), labels))
        return found

    base = statistics({})
    steps = []
    for name in names:
        fields, paper = STEPS[name]
        changed = statistics(fields)
        draw = np.random.default_rng(0)

        def change(weights, changed=changed, draw=draw):  # type: ignore[no-untyped-def]
            # Weights of 1 throughout ask for the mean itself; a resample draws seeds as well.
            whole = bool((weights == 1.0).all())
            chosen = range(len(seeds)) if whole else draw.integers(0, len(seeds), size=len(seeds))
            before, after = (np.mean([runs[seed](weights) for seed in chosen]) for runs in (base, changed))
            return 100.0 * float(after / before - 1.0)

        steps.append(Step(name, paper, bootstrap(change, members)))
        progress(f"{prepared.log.name}: {name} {steps[-1].ours.mean:+.2f} %")
    return steps
