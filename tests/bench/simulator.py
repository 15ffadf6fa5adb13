"""A synthetic service in which the truth is known: what does exploring cost, and what does it earn?

Everything here is made up and seeded. Members have fixed preferences over what items are about. An item is also of a
topic, whose appeal no feature tells beforehand, only clicks. Items arrive every day and old ones leave, and so do
topics. A small network, trained once on a log of random pages, gives hidden features; every night the posterior over
them takes the day's clicks, for every policy alike. So policies differ in one thing only: how a page is ordered.
Members, items, candidates and the chance behind every click are the same for all policies of a seed.

    python -m tests.bench.simulator [--seeds 16] [--days 40]
"""

# U = members, I = items, R = requests of a day, n = candidates of a request, K = places, D = features, H = hidden

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.evaluate import Interval, bootstrap_mean
from models.ranking.exploration import BayesianHead, Evidence, ExplorationConfig, Projection, prior_of
from models.ranking.posterior import Gaussian
from models.ranking.propensity import best_rows, epsilon_greedy_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    num_members: int = 300
    num_first_items: int = 200
    items_per_day: int = 20
    item_days: int = 10
    """An item can be shown for so many days; the first ones are of all ages."""
    num_days: int = 40
    requests_per_day: int = 200
    num_candidates: int = 50
    num_places: int = 5
    num_aspects: int = 6
    num_topics: int = 10
    """At any time; an arriving item is of one of them."""
    days_per_topic: int = 2
    """Every so many days a new topic takes the oldest one's place."""
    topic_features: int = 32
    """Random numbers that tell topics apart, as a freshly hashed embedding does: nothing in them says what is good."""
    topic_deviation: float = 1.0
    """Of the appeal that all items of a topic share."""
    item_deviation: float = 0.3
    """Of the appeal that is an item's own, and shows in no feature."""
    taste_deviation: float = 1.0
    base_logit: float = -3.0
    warm_requests: int = 1500
    """Requests answered with random pages before day one, from which the network is trained."""
    exploration: ExplorationConfig = ExplorationConfig(max_features=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a page is ordered. Thompson sampling with scale 0 is greedy."""

    name: str
    scale: float = 0.0
    epsilon: float = 0.0
    link: str = "logistic"
    """Or "linear": y = w z with normal noise, as the LiRank paper prints it."""


WORLDS = {
    "broad": WorldConfig(),
    "narrow": WorldConfig(num_places=3, num_candidates=150, requests_per_day=60, base_logit=-4.0, taste_deviation=0.3),
}
"""broad: 50 candidates for 5 places, tastes that differ: a page is never the same for two members, so that greedy tries
much unasked. narrow: 150 candidates for 3 places, few clicks, tastes much alike: what is not tried is never seen."""

POLICIES = (
    Policy(name="random", epsilon=1.0),
    Policy(name="greedy"),
    Policy(name="epsilon-greedy 0.02", epsilon=0.02),
    Policy(name="epsilon-greedy 0.1", epsilon=0.1),
    Policy(name="Thompson 0.1", scale=0.1),
    Policy(name="Thompson 0.3", scale=0.3),
    Policy(name="Thompson 1", scale=1.0),
    Policy(name="Thompson 0.3, linear", scale=0.3, link="linear"),
)


class World:
    """Members, items and the chance of each click, of one seed."""

    def __init__(self, config: WorldConfig, seed: int) -> None:
        self.config = config
        random = np.random.default_rng(seed)
        num_items = config.num_first_items + config.items_per_day * config.num_days
        self.tastes_UA = random.standard_normal((config.num_members, config.num_aspects))
        self.aspects_IA = random.standard_normal((num_items, config.num_aspects))
        first_born = -random.integers(0, config.item_days, config.num_first_items)
        arriving = np.repeat(np.arange(config.num_days), config.items_per_day)
        self.born_I = np.concatenate([first_born, arriving])
        oldest_I = np.maximum(self.born_I, 0) // config.days_per_topic
        topic_I = oldest_I + random.integers(0, config.num_topics, num_items)
        num_topics = int(oldest_I.max()) + config.num_topics
        self.codes_IC = random.standard_normal((num_topics, config.topic_features))[topic_I]
        self.appeal_I = config.topic_deviation * random.standard_normal(num_topics)[topic_I]
        self.appeal_I += config.item_deviation * random.standard_normal(num_items)
        self._random = random

    def chances(self, members_R: NDArray[np.int64], items_Rn: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return f64[R, n]: P(click), the same at every place."""
        config = self.config
        taste_Rn = np.einsum("ra,rna->rn", self.tastes_UA[members_R], self.aspects_IA[items_Rn])
        taste_Rn *= config.taste_deviation / np.sqrt(config.num_aspects)
        logits_Rn = config.base_logit + taste_Rn + self.appeal_I[items_Rn]
        chances_Rn: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-logits_Rn))
        return chances_Rn

    def features(self, members_R: NDArray[np.int64], items_Rn: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return f32[R, n, D]: what a ranker can know. Appeal is not among it."""
        tastes_RnA = np.broadcast_to(self.tastes_UA[members_R][:, None], (*items_Rn.shape, self.config.num_aspects))
        aspects_RnA = self.aspects_IA[items_Rn]
        parts = [tastes_RnA, aspects_RnA, tastes_RnA * aspects_RnA, self.codes_IC[items_Rn]]
        return np.concatenate(parts, axis=2).astype(np.float32)

    def requests(self, day: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return members int64[R], their candidates int64[R, n] and the luck f64[R, n] that decides clicks."""
        alive = np.flatnonzero((self.born_I <= day) & (self.born_I > day - self.config.item_days))
        members_R = self._random.integers(0, self.config.num_members, count)
        picked = self._random.random((count, len(alive))).argsort(axis=1)[:, : self.config.num_candidates]
        return members_R, alive[picked], self._random.random(picked.shape)


class Trunk:
    """A two-layer perceptron; `hidden` joins its last layer with its input, as a cross network beside an MLP does."""

    def __init__(self, features_ND: NDArray[np.float32], clicks_N: NDArray[np.bool_], seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._hidden = torch.nn.Sequential(torch.nn.Linear(features_ND.shape[1], 32), torch.nn.ReLU())
            self._head = torch.nn.Linear(32 + features_ND.shape[1], 1)
            x, y = torch.from_numpy(features_ND), torch.from_numpy(clicks_N.astype(np.float32))
            parameters = [*self._hidden.parameters(), *self._head.parameters()]
            optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.1)
            for _ in range(4):
                for rows in torch.split(torch.randperm(len(x)), 256):
                    logits = self._head(torch.cat([self._hidden(x[rows]), x[rows]], dim=1))[:, 0]
                    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[rows])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()

    def __call__(self, features_ND: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return hidden features f32[N, H] and logits f32[N]."""
        with torch.inference_mode():
            x = torch.from_numpy(features_ND)
            hidden = torch.cat([self._hidden(x), x], dim=1)
            return hidden.numpy(), self._head(hidden)[:, 0].numpy()


class Regret(NamedTuple):
    """Clicks per page that a policy lost against the best page, in expectation."""

    by_day: NDArray[np.float64]
    best: float
    """Expected clicks of the best page, mean over days."""
    update_ms: float
    """Of one night's update."""


def simulate(policy: Policy, config: WorldConfig, seed: int) -> Regret:
    """Run one policy through one seed's world."""
    world = World(config, seed)
    trunk, projected, posterior = _warm_up(world, policy, seed)
    prior = prior_of(config.exploration, projected)
    by_day, best, update_s = np.zeros(config.num_days), 0.0, 0.0
    for day in range(config.num_days):
        random = np.random.default_rng([seed, day])  # of the policy: the world's own stays the same for all
        members_R, items_Rn, luck_Rn = world.requests(day, config.requests_per_day)
        chances_Rn = world.chances(members_R, items_Rn)
        features_Rnd = world.features(members_R, items_Rn)
        hidden_NH, logits_N = trunk(features_Rnd.reshape(-1, features_Rnd.shape[2]))
        z_ND = projected(hidden_NH)
        z_RnD = z_ND.reshape(*items_Rn.shape, -1)
        offsets_Rn = _offsets(policy, logits_N).reshape(items_Rn.shape)
        weights_RD = posterior.draws(config.requests_per_day, random, policy.scale)
        values_Rn = offsets_Rn + np.einsum("rd,rnd->rn", weights_RD, z_RnD)
        pages_RK = best_rows(values_Rn, config.num_places)
        if policy.epsilon:
            orders_Rn = best_rows(values_Rn, config.num_candidates)
            pages_RK = np.concatenate(
                [epsilon_greedy_rows(order, policy.epsilon, 1, config.num_places, random) for order in orders_Rn]
            )
        shown_RK = np.take_along_axis(chances_Rn, pages_RK, axis=1)
        best_R = np.sort(chances_Rn, axis=1)[:, -config.num_places :].sum(axis=1)
        by_day[day] = (best_R - shown_RK.sum(axis=1)).mean()
        best += float(best_R.mean()) / config.num_days
        clicks_RK = np.take_along_axis(luck_Rn, pages_RK, axis=1) < shown_RK
        rows_N = (np.arange(len(items_Rn))[:, None] * config.num_candidates + pages_RK).reshape(-1)
        start = time.perf_counter()
        posterior = posterior.forget(config.exploration.discount, prior)
        posterior = _learn(policy, posterior, z_ND[rows_N], clicks_RK.reshape(-1), offsets_Rn.reshape(-1)[rows_N])
        update_s += time.perf_counter() - start
    return Regret(by_day, best, 1000.0 * update_s / config.num_days)


def _warm_up(world: World, policy: Policy, seed: int) -> tuple[Trunk, Projection, Gaussian]:
    """Show random pages, train the trunk on them, and give the posterior the same log, as a training run does."""
    config = world.config
    members_R, items_Rn, luck_Rn = world.requests(0, config.warm_requests)
    shown_RK = items_Rn[:, : config.num_places]  # candidates come in random order
    features_RKd = world.features(members_R, shown_RK)
    features_NF = features_RKd.reshape(-1, features_RKd.shape[2])
    clicks_N = (luck_Rn[:, : config.num_places] < world.chances(members_R, shown_RK)).reshape(-1)
    trunk = Trunk(features_NF, clicks_N, seed)
    hidden_NH, logits_N = trunk(features_NF)
    offsets_N1, labels_N1 = logits_N[:, None], clicks_N[:, None]
    head = BayesianHead.fit("trunk", 1, [Evidence(hidden_NH, offsets_N1, labels_N1)], config.exploration)
    if policy.link == "logistic":
        return trunk, head.projection, head.posteriors[0]
    prior = prior_of(config.exploration, head.projection)
    return trunk, head.projection, _learn(policy, prior, head.projection(hidden_NH), clicks_N, np.zeros(len(clicks_N)))


def _offsets(policy: Policy, logits_N: NDArray[np.float32]) -> NDArray[np.float64]:
    """The linear link regresses on the click itself and has no use for a logit."""
    return logits_N.astype(np.float64) if policy.link == "logistic" else np.zeros(len(logits_N))


def _learn(
    policy: Policy,
    posterior: Gaussian,
    features_ND: NDArray[np.float32],
    clicks_N: NDArray[np.bool_],
    offsets_N: NDArray[np.float64],
) -> Gaussian:
    if policy.link == "logistic":
        return posterior.given_labels(features_ND, clicks_N, offsets_N)
    rate = float(clicks_N.mean())
    return posterior.given_values(features_ND, clicks_N.astype(np.float64), max(rate * (1.0 - rate), 0.01))


class Row(NamedTuple):
    """One policy over all seeds. Regret is in clicks per page."""

    policy: Policy
    early: Interval
    """The first quarter of the days."""
    late: Interval
    """The last quarter."""
    total: Interval
    versus_greedy: Interval
    """Total, less that of greedy on the same seeds."""
    update_ms: float


def regret_table(
    policies: Sequence[Policy] = POLICIES, config: WorldConfig | None = None, num_seeds: int = 16
) -> list[Row]:
    """Run every policy over `num_seeds` worlds; intervals are over worlds, differences paired."""
    config = config or WorldConfig()
    quarter = max(1, config.num_days // 4)
    runs = {policy: [simulate(policy, config, seed) for seed in range(num_seeds)] for policy in policies}
    greedy = Policy(name="greedy")
    against = runs.get(greedy) or [simulate(greedy, config, seed) for seed in range(num_seeds)]
    greedy_S = np.array([run.by_day.mean() for run in against])

    rows = []
    for policy, done in runs.items():
        days_SD = np.stack([run.by_day for run in done])
        rows.append(
            Row(
                policy,
                bootstrap_mean(days_SD[:, :quarter].mean(axis=1)),
                bootstrap_mean(days_SD[:, -quarter:].mean(axis=1)),
                bootstrap_mean(days_SD.mean(axis=1)),
                bootstrap_mean(days_SD.mean(axis=1) - greedy_S),
                float(np.mean([run.update_ms for run in done])),
            )
        )
    return rows


def table_text(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| policy | first quarter | last quarter | all days | minus greedy |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for i in (row.early, row.late, row.total)]
        difference = row.versus_greedy
        cells.append(f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
        lines.append(f"| {row.policy.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="regret of ways to explore, in a synthetic service")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--days", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, config in WORLDS.items():
        start = time.perf_counter()
        rows = regret_table(config=replace(config, num_days=arguments.days), num_seeds=arguments.seeds)
        print(
            f"{name} (synthetic), {arguments.seeds} seeds, {time.perf_counter() - start:.0f} s\n\n{table_text(rows)}\n"
        )


if __name__ == "__main__":
    main()
