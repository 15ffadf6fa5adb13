from __future__ import annotations

import pytest
import torch
from torch import nn

from models.data.schema import Action, FeatureSchema
from models.ranking.towers import CrossStack, GroupedTowers, MixtureTowers, Tower, task_groups


def schema(*tasks: str) -> FeatureSchema:
    actions = (
        Action("click", "click"),
        Action("watch", "rating"),
        Action("like", "rating", 4.0),
        Action("love", "rating", 5.0),
    )
    return FeatureSchema(item=(), user=(), actions=actions, signals=(), positive="like", tasks=tasks)


def tower() -> Tower:
    return Tower(4, "lowrank", 2, 2, (5,), 0.0, 0)


def test_a_task_and_what_it_implies_are_one_group() -> None:
    assert task_groups(schema("watch", "click", "like", "love")) == ((0, 2, 3), (1,))
    assert task_groups(schema("like", "click")) == ((0,), (1,))


def test_groups_may_be_named() -> None:
    assert task_groups(schema("watch", "like", "love"), [["like", "love"], ["watch"]]) == ((1, 2), (0,))


@pytest.mark.parametrize(
    "groups", [[["like"]], [["like", "watch"], ["like"]], [["like"], ["watch"], ["swim"]], [["like", "watch"], []]]
)
def test_groups_that_do_not_hold_each_task_once_are_refused(groups: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="each of the tasks"):
        task_groups(schema("watch", "like"), groups)


def test_a_tower_without_crosses_and_mlp_passes_its_input() -> None:
    x = torch.randn(3, 4)
    assert torch.equal(Tower(4, "none", 2, 2, (), 0.0, 0)(x), torch.cat([x, x], dim=1))
    assert len(CrossStack("none", 4, 2, 2).layers) == 0


def test_each_group_has_a_tower_of_its_own_and_logits_are_in_the_order_of_tasks() -> None:
    torch.manual_seed(0)
    towers = GroupedTowers([tower(), tower()], [(1, 2), (0,)])
    x = torch.randn(6, 4)
    logits = towers.read(towers.hidden(x))
    first, second = (tower(x) for tower in towers.towers)
    torch.testing.assert_close(logits[:, 1:], towers.heads[0](first))
    torch.testing.assert_close(logits[:, :1], towers.heads[1](second))
    logits[:, 0].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in towers.towers[0].parameters())


def test_a_mixture_starts_with_the_mean_of_its_experts_and_mixes_for_each_task() -> None:
    torch.manual_seed(0)
    towers = MixtureTowers(4, [tower(), tower()], num_tasks=2)
    x = torch.randn(6, 4)
    outputs = [expert(x) for expert in towers.experts]
    mean = sum(outputs) / 2
    torch.testing.assert_close(towers.hidden(x), torch.cat([mean, mean], dim=1))
    torch.testing.assert_close(towers.read(towers.hidden(x))[:, 1:], towers.heads[1](mean))
    with torch.no_grad():  # the second task asks the second expert alone
        towers.gates.bias.copy_(torch.tensor([0.0, 0.0, -50.0, 50.0]))
    torch.testing.assert_close(towers.hidden(x)[:, mean.shape[1] :], outputs[1])
    assert isinstance(towers.heads[0], nn.Linear)
