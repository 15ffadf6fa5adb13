"""Training on: the events since the last run, held by anchors to the weights that were."""

# N = candidate rows, T = tasks

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.data.events import EventTable
from models.data.items import ItemTable
from models.data.schema import FeatureSchema
from models.ranking.evidence import posterior_of
from models.ranking.examples import replay_examples
from models.ranking.fisher import Fisher, load_fisher
from models.ranking.model import RankingModel, assembler_of
from models.ranking.training import RankingConfig, StageTimer, TrainedRanking, calibrate, fisher_on, fit
from models.retrieval.model import RetrievalModel
from models.train.loop import StageProgress, stage_of
from models.train.optimizers import step_metric


@dataclass(frozen=True, slots=True, kw_only=True)
class IncrementalConfig:
    ranking: RankingConfig = field(default_factory=lambda: RankingConfig(num_epochs=1.0, fisher_requests=64))
    """How to train on the new requests. Its network is not used: the earlier models' is."""
    cold_weight: float = 0.1
    """alpha: share of the cold model, against the previous one, in the start and in the anchor."""
    anchor_strength: float = 0.1
    """lambda_f: strength of the anchor; 0 lets go."""
    min_calibration_requests: int = 100
    """With fewer held-out requests among the new ones, the previous model's calibration stays."""

    @classmethod
    def of(cls, cold: RankingConfig) -> IncrementalConfig:
        """Return the default increment of a ranker that was trained with `cold`: the same, once over the requests."""
        return cls(ranking=replace(cold, num_epochs=1.0, fisher_requests=min(cold.fisher_requests, 64)))

    def __post_init__(self) -> None:
        if not 0.0 <= self.cold_weight <= 1.0:
            raise ValueError(f"cold_weight is {self.cold_weight}; expected 0 to 1")
        if not self.anchor_strength >= 0.0:
            raise ValueError(f"anchor_strength is {self.anchor_strength}; expected 0 or more")


class Anchor:
    """Holds a network near a cold and a previous model, each weight as firmly as those models' losses minded it.

    The objective is  loss(w) + s/2 [a (w - w0)' H0 (w - w0) + (1 - a) (w - w1)' H1 (w - w1)],  with w0, H0 the cold
    model's weights and diagonal Fisher, w1, H1 the previous one's, a the cold weight and s the strength. `start` puts
    the network at a w0 + (1 - a) w1.

    LiRank (arXiv 2402.06859), incremental training. Departure: the penalty is not part of the loss but a proximal
    step after each optimizer step, in the optimizer's own metric:
    w <- argmin_x  |x - w|^2_D / 2 lr + penalty(x).  Its fixed points are the objective's stationary points, as a
    penalty in the loss has; but it is stable at every strength (an infinite one gives the anchor) and the optimizers'
    second moments stay those of the loss. Of a hash table only the rows of the step move, so rows the new events do
    not touch cost nothing and stay where they start.
    """

    def __init__(
        self,
        network: nn.Module,
        cold: tuple[Mapping[str, Tensor], Fisher],
        previous: tuple[Mapping[str, Tensor], Fisher],
        *,
        cold_weight: float,
        strength: float,
    ) -> None:
        """cold, previous: weights by name, as `state_dict` has them, and Fisher information.

        Raises ValueError when either lacks a tensor of the network or has another shape of it.
        """
        (cold_weights, cold_fisher), (previous_weights, previous_fisher) = cold, previous
        for what, tensors in (("cold", cold_weights), ("previous", previous_weights)):
            for name, tensor in network.state_dict().items():
                if name not in tensors or tensors[name].shape != tensor.shape:
                    found = f"has shape {list(tensors[name].shape)}" if name in tensors else "is absent"
                    raise ValueError(f"{name} of the {what} model {found}; expected shape {list(tensor.shape)}")
        self._network = network
        self._strength = strength
        self._begin = {
            name: torch.lerp(tensor, cold_weights[name], cold_weight) if tensor.is_floating_point() else tensor
            for name, tensor in previous_weights.items()
        }
        self._pulls: dict[int, tuple[Tensor, Tensor]] = {}
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            for what, fisher in (("cold", cold_fisher), ("previous", previous_fisher)):
                if name not in fisher:
                    raise ValueError(f"the Fisher information of the {what} model lacks {name}")
            to_cold, to_previous = cold_weight * cold_fisher[name], (1.0 - cold_weight) * previous_fisher[name]
            firmness = to_cold + to_previous
            mean = (to_cold * cold_weights[name] + to_previous * previous_weights[name]) / firmness
            self._pulls[id(parameter)] = (firmness, torch.where(firmness > 0, mean, 0.0))

    def start(self) -> None:
        """Put the network's weights and buffers where training begins."""
        self._network.load_state_dict(self._begin)

    @torch.no_grad()
    def pull(self, optimizers: Sequence[Optimizer]) -> None:
        """Take the proximal step after one of the optimizers'."""
        if self._strength == 0.0:
            return
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._pull(optimizer, parameter, group["lr"])

    def _pull(self, optimizer: Optimizer, parameter: Tensor, learning_rate: float) -> None:
        firmness, anchor = self._pulls[id(parameter)]
        metric = step_metric(optimizer, parameter)
        if parameter.grad is not None and parameter.grad.is_sparse:
            rows = parameter.grad.coalesce().indices()[0]
            share = self._share(firmness[rows], metric[rows], learning_rate)
            parameter[rows] = torch.lerp(parameter[rows], anchor[rows], share.expand(-1, parameter.shape[1]))
        else:
            parameter.lerp_(anchor, self._share(firmness, metric, learning_rate).expand_as(parameter))

    def _share(self, firmness: Tensor, metric: Tensor, learning_rate: float) -> Tensor:
        """Return how far towards the anchor a weight goes, 0 to 1."""
        if math.isinf(self._strength):
            return (firmness > 0).to(firmness.dtype)
        pull = learning_rate * self._strength * firmness
        return pull / (metric + pull)


def train_incremental(
    previous: Path,
    cold: Path,
    schema: FeatureSchema,
    items: ItemTable,
    users: Mapping[int, Mapping[str, object]],
    events: EventTable,
    since_ms: int,
    retrieval: RetrievalModel,
    config: IncrementalConfig | None = None,
    progress: StageProgress | None = None,
    checkpoint: Path | None = None,
) -> TrainedRanking:
    """Train the ranker of folder `previous` on, over the requests from `since_ms` on.

    previous, cold: folders of `RankingModel.save` and `save_fisher`; one and the same at the first increment.
    events: all of them; the earlier ones make the requests' histories and signals.  retrieval: towers that have not
    been trained on events from `since_ms` on.  checkpoint: as of `train_cold`.

    Raises ValueError when the two models are not alike, lack their Fisher information, or no request can be learned
    from.
    """
    config = config or IncrementalConfig()
    timer = StageTimer()
    model = RankingModel.load(previous, schema)
    cold_model = RankingModel.load(cold, schema)
    if cold_model.config != model.config:
        raise ValueError(f"{cold} has network {cold_model.config}; expected that of {previous}, {model.config}")
    ranking = replace(config.ranking, network=model.config)
    network = model.network
    before, cold_before = _weights(model), _weights(cold_model)
    anchor = Anchor(
        network,
        (cold_before, load_fisher(cold)),
        (before, load_fisher(previous)),
        cold_weight=config.cold_weight,
        strength=config.anchor_strength,
    )
    anchor.start()
    assembler = assembler_of(schema, network)
    timer.done("load")
    examples = list(
        replay_examples(
            schema, items, users, events, retrieval, assembler, ranking.examples, ranking.seed,
            stage_of(progress, "replay requests"), since_ms,
        )
    )  # fmt: skip
    timer.done("replay")
    training = [example for example in examples if not example.held_out]
    if not training:
        raise ValueError(f"no request since {since_ms} has a candidate that was acted on")
    report = fit(
        schema, items, network, training, ranking, stage_of(progress, "train ranking"),
        after_step=anchor.pull, checkpoint=checkpoint,
        identity=f"{model.version} {cold_model.version} {config.cold_weight} {config.anchor_strength}",
    )  # fmt: skip
    timer.done("optimise")
    held_out = [example for example in examples if example.held_out]
    trained = RankingModel(schema, model.config, network, model.calibration)
    if len(held_out) >= config.min_calibration_requests:
        trained.calibration = calibrate(trained, items, held_out)
    timer.done("calibrate")
    trained.exploration = posterior_of(trained, items, held_out, model.exploration)
    timer.done("posterior")
    fisher = fisher_on(schema, items, network, training, ranking)
    timer.done("fisher")
    return TrainedRanking(trained, fisher, report, timer.seconds, len(held_out))


def _weights(model: RankingModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.network.state_dict().items()}
