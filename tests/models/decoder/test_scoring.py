"""Every candidate's score is what it is alone, by the plain decoder over one sequence."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.decoder import scoring
from models.decoder.attention import PackedCausal
from models.decoder.inference import Stopped
from models.decoder.scoring import Candidate, Labels, Scorer
from tests.models.decoder.tiny import tiny_decoder

LABELS = Labels(yes=17, no=3)
SHAPE = {"vocab_size": 512, "hidden_size": 64, "head_dim": 16, "max_position_embeddings": 2048}
DECODER = tiny_decoder(**SHAPE)
SCORER = Scorer(DECODER)
VOCAB_SIZE = DECODER.config.vocab_size


def draw(num_tokens, seed):
    return torch.randint(VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def candidates_of(sizes, num_questions=1):
    """One candidate of each size, with questions of one, two, ... tokens."""
    return [
        Candidate(draw(size, 100 + place), [draw(1 + (place + q) % 4, 7 * place + q) for q in range(num_questions)])
        for place, size in enumerate(sizes)
    ]


@torch.no_grad()
def alone(prefix, candidate):
    """Scores and masses float64[Q], one plain pass for each question."""
    scores, masses = [], []
    for question in candidate.questions:
        tokens = torch.tensor([*prefix, *candidate.body, *question])
        attention = PackedCausal([len(tokens)])
        logits = DECODER.logits(DECODER(tokens, attention.positions(), attention)[-1:])[0].double()
        scores.append(logits[LABELS.yes] - logits[LABELS.no])
        masses.append(logits.softmax(0)[[LABELS.yes, LABELS.no]].sum())
    return np.array(scores), np.array(masses)


@settings(max_examples=25, deadline=None)
@given(
    num_prefix=st.integers(1, 70),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    num_questions=st.integers(1, 3),
)
def test_scores_are_those_of_the_plain_decoder(num_prefix, sizes, num_questions):
    prefix, candidates = draw(num_prefix, 1), candidates_of(sizes, num_questions)
    found = SCORER.score(SCORER.prefill(prefix), candidates, LABELS, with_mass=True)
    expected = [alone(prefix, candidate) for candidate in candidates]
    np.testing.assert_allclose(found.score_NQ, np.array([scores for scores, _ in expected]), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.label_mass_NQ, np.array([masses for _, masses in expected]), rtol=1e-3, atol=1e-7)
    assert found.score_NQ.dtype == found.label_mass_NQ.dtype == np.float32
    assert found.num_tokens == sum(len(c.body) + sum(map(len, c.questions)) for c in candidates)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 59), max_size=3), pass_tokens=st.integers(1, 90))
def test_neighbours_order_passes_and_chunks_of_the_prefix_change_nothing(order, cuts, pass_tokens):
    prefix, candidates = draw(60, 2), candidates_of([3, 40, 1, 17, 8, 25], 2)
    whole = SCORER.score(SCORER.prefill(prefix), candidates, LABELS).score_NQ
    chunked = None
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        chunked = SCORER.prefill(prefix[start:stop], onto=chunked)
    assert chunked.tokens == tuple(prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "PASS_TOKENS", pass_tokens)
        shuffled = SCORER.score(chunked, [candidates[place] for place in order], LABELS).score_NQ
    np.testing.assert_allclose(shuffled, whole[list(order)], rtol=0, atol=1e-4)
    for place, candidate in enumerate(candidates):
        single = SCORER.score(chunked, [candidate], LABELS).score_NQ
        np.testing.assert_allclose(single[0], whole[place], rtol=0, atol=1e-4)


def test_neighbours_cannot_move_a_score_whatever_they_say():
    prefix, candidates = SCORER.prefill(draw(30, 3)), candidates_of([10, 20, 30])
    before = SCORER.score(prefix, candidates, LABELS).score_NQ
    loud = Candidate([LABELS.yes, LABELS.no, 0, 1, 2] * 6, [[LABELS.yes] * 9])
    after = SCORER.score(prefix, [loud, candidates[0], loud, candidates[1], candidates[2], loud], LABELS).score_NQ
    np.testing.assert_allclose(after[[1, 3, 4]], before, rtol=0, atol=1e-4)


def test_a_head_of_a_prefix_is_the_prefix_of_its_tokens():
    tokens, candidates = draw(50, 4), candidates_of([5, 9])
    long = SCORER.prefill(tokens)
    short = long.head(20)
    assert short.tokens == tuple(tokens[:20]) and long.head(50) is long
    found = SCORER.score(short, candidates, LABELS).score_NQ
    np.testing.assert_allclose(found, SCORER.score(SCORER.prefill(tokens[:20]), candidates, LABELS).score_NQ, atol=1e-4)
    regrown = SCORER.prefill(tokens[20:], onto=short)
    torch.testing.assert_close(regrown.key_LGPK, long.key_LGPK, rtol=0, atol=1e-5)
    assert long.num_bytes == 2 * 4 * long.key_LGPK.numel()
    with pytest.raises(ValueError, match="num_tokens is 51; expected 1 to 50"):
        long.head(51)


@pytest.mark.parametrize(
    "config",
    [
        {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10, "hidden_size": 30},
        {"num_attention_heads": 6, "num_key_value_heads": 1, "num_hidden_layers": 1},
        {"tie_word_embeddings": False, "rope_theta": 500.0, "rms_norm_eps": 1e-3},
    ],
    ids=["odd sizes", "one layer, one key head", "own head"],
)
def test_other_shapes(config):
    decoder = tiny_decoder(seed=1, **(SHAPE | config))
    prefix, candidate = draw(25, 5), candidates_of([12], 2)[0]
    scorer = Scorer(decoder)
    found = scorer.score(scorer.prefill(prefix), [candidate, candidate], LABELS).score_NQ
    for place, question in enumerate(candidate.questions):
        tokens = torch.tensor([*prefix, *candidate.body, *question])
        attention = PackedCausal([len(tokens)])
        with torch.no_grad():
            logits = decoder.logits(decoder(tokens, attention.positions(), attention)[-1:])[0]
        expected = float(logits[LABELS.yes] - logits[LABELS.no])
        assert found[:, place] == pytest.approx([expected, expected], abs=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.15), ("int8", 0.6)])
def test_lower_precisions_are_near(precision, tolerance):
    prefix, candidates = draw(40, 6), candidates_of([5, 20, 33, 2], 2)
    exact = SCORER.score(SCORER.prefill(prefix), candidates, LABELS).score_NQ
    scorer = Scorer(DECODER, precision)
    held = scorer.prefill(prefix)
    found = scorer.score(held, candidates, LABELS).score_NQ
    assert held.num_bytes == SCORER.prefill(prefix).num_bytes // 2
    assert np.abs(exact).max() > 1.0, "or the tolerance says nothing"
    np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance)


def test_no_candidates_are_no_scores():
    found = SCORER.score(SCORER.prefill([1]), [], LABELS, with_mass=True)
    assert found.score_NQ.shape == found.label_mass_NQ.shape == (0, 0) and found.num_tokens == 0
    assert SCORER.score(SCORER.prefill([1]), candidates_of([1]), LABELS).label_mass_NQ is None


@pytest.mark.parametrize("last", [0, 1, 2])
def test_a_pass_that_nobody_waits_for_stops_between_layers(last):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) > last

    prefix = SCORER.prefill([1, 2])
    run = [
        lambda: SCORER.prefill([1, 2], stop=stop),
        lambda: SCORER.score(prefix, candidates_of([3]), LABELS, stop=stop),
    ][last % 2]
    if last < DECODER.config.num_hidden_layers:
        with pytest.raises(Stopped):
            run()
        assert len(asked) == last + 1
    else:
        run()


@pytest.mark.parametrize(
    ("candidates", "labels", "message"),
    [
        ([Candidate([1], [])], LABELS, "candidate 0 has 0 questions"),
        ([Candidate([1], [[2]]), Candidate([1], [[2], [3]])], LABELS, "candidate 1 has 2 questions, the first has 1"),
        ([Candidate([1], [[2], []])], LABELS, r"candidate 0 has a body of 1 tokens and questions of \[1, 0\]"),
        ([Candidate([1] * 2047, [[2]])], LABELS, "behind a prompt of 3; expected no empty question and up to 2048"),
        ([Candidate([1, 512], [[2]])], LABELS, "token 512; expected 0 to 511"),
        ([Candidate([1], [[-1]])], LABELS, "token -1"),
        ([Candidate([1], [[2]])], Labels(1, 512), "token 512"),
    ],
)
def test_what_cannot_be_scored_is_named(candidates, labels, message):
    with pytest.raises(ValueError, match=message):
        SCORER.score(SCORER.prefill([1, 2, 3]), candidates, labels)


def test_what_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"the prompt has 0 \+ 0 tokens; expected 1 to 2048"):
        SCORER.prefill([])
    with pytest.raises(ValueError, match=r"the prompt has 2 \+ 2047 tokens"):
        SCORER.prefill([1] * 2047, onto=SCORER.prefill([1, 2]))
    with pytest.raises(ValueError, match="token 512; expected 0 to 511"):
        SCORER.prefill([512])
    with pytest.raises(ValueError, match="precision is 'fp8'; expected 'fp32', 'bf16' or 'int8'"):
        Scorer(DECODER, "fp8")
