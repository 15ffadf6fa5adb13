"""Online against offline: the served model answers what the trained one answers, whatever the network's parts."""

import warnings

import numpy as np
import pytest
import torch

from models.data.state import History, UserState
from models.ranking.calibration import Calibration
from models.ranking.export import FILE, ExportedNetwork
from models.ranking.model import RankingModel, make_network
from models.ranking.network import NetworkConfig
from models.ranking.parity import TOLERANCE, KnownAnswer, ParityError, questions, relative_difference
from models.ranking.serving import ServingModel, ServingTable, export_model
from tests.models.world import SCHEMA

PARTS = {
    "default": NetworkConfig(),
    "everything": NetworkConfig(
        history="causal", cross="residual", gate_rank=8, towers="grouped", isotonic=True, popularity=True, hidden=(32,)
    ),
    "per candidate, mixed": NetworkConfig(history="transact", towers="mmoe", ids="hash", history_places=10),
    "bare": NetworkConfig(cross="none", hidden=(), num_heads=1, quotient_rows=64, remainder_rows=32),
}


def trained(config: NetworkConfig, seed: int = 0) -> RankingModel:
    """A model none of whose parts is the identity."""
    network = make_network(SCHEMA, config, seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return RankingModel(SCHEMA, config, network, Calibration.identity(SCHEMA.tasks))


@pytest.fixture(scope="module", params=PARTS.values(), ids=PARTS)
def served(request, tmp_path_factory):
    model = trained(request.param)
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    export_model(model, folder)
    return RankingModel.load(folder, SCHEMA), folder


def test_the_served_model_equals_the_trained_one(served):
    """Float32 sums in another order: no logit differs by more than TOLERANCE of its scale."""
    model, folder = served
    online = ServingModel.load(folder, model)
    assert online.version == model.version
    for question in questions(SCHEMA):
        offline = question.ask(model)
        assert np.ptp(offline) > 0.01, "a constant would agree with anything"
        np.testing.assert_allclose(question.ask(online), offline, rtol=0, atol=TOLERANCE)
    assert KnownAnswer.load(folder).check(online, TOLERANCE) <= TOLERANCE


def test_any_number_of_candidates_and_any_history(served):
    model, folder = served
    online = ServingModel.load(folder, model)
    known, _ = questions(SCHEMA)
    for num_candidates, length in [(0, 3), (1, 0), (1, 5), (2, 1), (17, SCHEMA.history_length + 4)]:
        # A history may be longer than what the model reads.
        keys = np.resize(known.user.history.keys, length)
        history = History(
            keys, np.ones(length, np.uint32), np.zeros(length, np.float32), np.full(length, known.now_ms - 5)
        )
        rows = np.arange(num_candidates)
        arguments = (
            UserState(known.user.profile, history), known.items.take(rows), known.signals[rows],
            known.retrieval_scores[rows], known.now_ms,
        )  # fmt: skip
        items = known.history_items.take(np.resize(np.arange(len(known.history_items)), length))
        expected = model.score(*arguments, history_items=items)
        found = online.score(*arguments, history_items=items)
        assert found.shape == (num_candidates, len(SCHEMA.tasks))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_candidate_scores_the_same_whatever_it_is_scored_beside(served):
    model, folder = served
    online = ServingModel.load(folder, model)
    known, _ = questions(SCHEMA)
    whole = known.ask(online)
    some = np.array([3, 40, 7])
    part = known._replace(
        items=known.items.take(some), signals=known.signals[some], retrieval_scores=known.retrieval_scores[some]
    )
    np.testing.assert_allclose(part.ask(online), whole[some], rtol=0, atol=TOLERANCE)


def test_int8_tables_move_logits_a_little(served):
    model, folder = served
    if model.config.ids == "hash":
        with pytest.raises(ValueError, match="ids = 'qr'"):
            ServingModel.load(folder, model, 8)
        return
    online = ServingModel.load(folder, model, 8)
    difference = KnownAnswer.load(folder).difference(online)
    assert TOLERANCE < difference < 0.25
    whole = ServingTable(model.network.table, 32)
    assert online.table.num_bytes == whole.num_bytes * (model.config.dim + 8) // (4 * model.config.dim)


def test_an_export_of_other_weights_is_refused(tmp_path):
    model, other = trained(PARTS["bare"], 0), trained(PARTS["bare"], 1)
    export_model(other, tmp_path)
    with pytest.raises(ValueError, match=f"version {other.version}, expected {model.version}"):
        ServingModel.load(tmp_path, model)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        ExportedNetwork(tmp_path / FILE, model.version)


def test_the_known_answer_finds_a_model_that_has_changed(tmp_path):
    model = trained(PARTS["bare"])
    model.save(tmp_path)
    answer = KnownAnswer.load(tmp_path)
    assert answer.check(model, TOLERANCE) == 0.0
    with torch.no_grad():
        model.network.table.weight[:32].mul_(1.01)
    with pytest.raises(ParityError, match="known answer"):
        answer.check(model, TOLERANCE)
    (tmp_path / "known_answer.json").unlink()
    with pytest.raises(ValueError, match="train the model again"):
        KnownAnswer.load(tmp_path)


def test_a_model_of_large_logits_is_published_and_a_wrong_one_is_not(tmp_path):
    """Rounding of float32 grows with the logits: an absolute bound would refuse a sound model of large ones."""
    model = trained(PARTS["default"])
    with torch.no_grad():
        for head in model.network.towers.heads:
            head.weight.mul_(3e4)
    model = RankingModel(SCHEMA, model.config, model.network, model.calibration)
    model.save(tmp_path)
    export_model(model, tmp_path)
    online, answer = ServingModel.load(tmp_path, model), KnownAnswer.load(tmp_path)
    assert np.abs(answer.logits).max() > 1e3
    assert np.abs(KnownAnswer.of(online).logits - answer.logits).max() > TOLERANCE
    assert answer.check(online, TOLERANCE) <= TOLERANCE
    with torch.no_grad():
        model.network.table.weight.mul_(1.1)
    with pytest.raises(ParityError, match="of its scale from the known answer"):
        answer.check(model, TOLERANCE)


def test_differences_are_relative_to_the_scale_of_their_task():
    expected = np.array([[2000.0, 0.5], [-1000.0, -0.25]], np.float32)
    assert relative_difference(expected, expected) == 0.0
    assert relative_difference(expected + np.float32([[2.0, 0.0]]), expected) == pytest.approx(1e-3)
    assert relative_difference(expected + np.float32([[0.0, 0.1]]), expected) == pytest.approx(0.1)
    assert relative_difference(expected[:0], expected[:0]) == 0.0
    for broken in (np.nan, np.inf):
        found = expected.copy()
        found[1, 1] = broken
        assert not relative_difference(found, expected) <= 1.0
        assert not relative_difference(expected, found) <= 1.0


def test_the_exporter_leaves_warnings_as_they_were(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_model(trained(PARTS["bare"]), tmp_path)
        warnings.warn("ours", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["ours"]
