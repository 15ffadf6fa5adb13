"""What exploration learns from: the hidden features, scores and labels of replayed requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from models.data.items import ItemTable
from models.ranking.batches import collate
from models.ranking.examples import Example
from models.ranking.exploration import BayesianHead, Evidence, ExplorationConfig, logits_of
from models.ranking.model import RankingModel

_REQUESTS_TOGETHER = 64


def evidence_of(model: RankingModel, items: ItemTable, examples: Sequence[Example]) -> Iterator[Evidence]:
    """Yield the examples' candidates, some requests at a time.

    A sample keeps candidates without a label at a rate, which raises its odds by as much: taken from the offsets, the
    weights stay those of all candidates, as in training. Requests of one member a few events apart share labels, so
    this counts some evidence more than once; the scale of the draws is there to make up for it.

    Pass requests that did not train the network: on those that did it is surer than it should be, and the posterior
    would learn to undo that.
    """
    for start in range(0, len(examples), _REQUESTS_TOGETHER):
        batch = collate(model.schema, items, examples[start : start + _REQUESTS_TOGETHER])
        with torch.inference_mode():
            network = model.network.eval()
            hidden_NZ = network.hidden(network.encode_member(batch.members), batch.candidates)
            logits_NT = network.read(hidden_NZ, batch.candidates).numpy()
        offsets_NT = logits_of(model.calibration.probabilities(logits_NT)) - batch.log_rate.numpy()[:, None]
        yield Evidence(hidden_NZ.numpy(), offsets_NT, batch.labels.numpy().astype(np.bool_))


def posterior_of(
    model: RankingModel,
    items: ItemTable,
    held_out: Sequence[Example],
    before: BayesianHead | None = None,
    config: ExplorationConfig | None = None,
) -> BayesianHead | None:
    """Return the posterior that goes with a newly trained and calibrated model; None without held-out requests.

    before: the posterior of the model that this one was trained on from, which is then updated; None: a new one.
    """
    if before is not None:
        return before.update(model.version, evidence_of(model, items, held_out), trained_from=before.trunk)
    if not held_out:
        return None
    evidence = evidence_of(model, items, held_out)
    return BayesianHead.fit(model.version, len(model.tasks), evidence, config)
