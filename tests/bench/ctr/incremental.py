"""Training on against training anew: the same rows, a fixed test."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import NamedTuple

from models.evaluate import Interval, auc_statistic, bootstrap
from models.ranking.fisher import Fisher
from models.ranking.incremental import Anchor, IncrementalConfig
from models.ranking.network import RankingNetwork
from models.ranking.training import RankingConfig, fisher_on, fit
from tests.bench.ctr.compare import TEST, joined
from tests.bench.ctr.log import PreparedLog
from tests.bench.ctr.ours import logits_of, make_network


class Increment(NamedTuple):
    cold_auc: float
    stale_auc: float
    """Of the model that is trained on, before."""
    gain: Interval
    """AUC after training on less that of training anew on everything."""
    seconds: float
    cold_seconds: float


def increment(prepared: PreparedLog, config: RankingConfig, share: float = 0.1) -> Increment:
    """Train on the oldest 1 - share of the training requests, then on the newest; and on all of them from nothing."""
    schema, items, training = prepared.log.schema, prepared.log.items, list(prepared.examples["train"])
    cut = round((1.0 - share) * len(training))
    labels = joined({split: prepared.labels(split)[:, 0] for split in TEST})
    members = joined({split: prepared.user_keys[split] for split in TEST})

    def scored(network: RankingNetwork):  # type: ignore[no-untyped-def]
        rows = {split: logits_of(prepared, network, prepared.examples[split])[:, 0] for split in TEST}
        return auc_statistic(joined(rows), labels)

    def trained(part: list) -> tuple[RankingNetwork, float]:  # type: ignore[type-arg]
        network = make_network(prepared, config.network, config.seed)
        started = time.perf_counter()
        fit(schema, items, network, part, config)
        return network, time.perf_counter() - started

    cold, cold_seconds = trained(training)
    previous, _ = trained(training[:cut])
    fisher: Fisher | None = fisher_on(schema, items, previous, training[:cut], config)
    assert fisher is not None
    defaults = IncrementalConfig()
    weights = {name: tensor.detach().clone() for name, tensor in previous.state_dict().items()}
    network = copy.deepcopy(previous)
    anchor = Anchor(
        network, (weights, fisher), (weights, fisher),
        cold_weight=defaults.cold_weight, strength=defaults.anchor_strength,
    )  # fmt: skip
    anchor.start()
    started = time.perf_counter()
    fit(schema, items, network, training[cut:], replace(config, num_epochs=1.0), after_step=anchor.pull)
    seconds = time.perf_counter() - started
    anew, on, stale = scored(cold), scored(network), scored(previous)
    ones = joined({split: prepared.labels(split)[:, 0] * 0.0 + 1.0 for split in TEST})
    gain = bootstrap(lambda drawn: on(drawn) - anew(drawn), members)
    return Increment(anew(ones), stale(ones), gain, seconds, cold_seconds)
