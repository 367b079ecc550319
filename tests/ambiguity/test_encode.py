from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ethalign import calibration, encoders, models
from ethalign.ambiguity import data, encode

from . import resolved


def test_an_encoder_that_ranks_does_not_care_for_order() -> None:
    path = models.encoder("random-tiny", 0)
    counts = np.array([[5.0, 0.0], [1.0, 4.0]] * 6)
    one, two = ["theft", "help"] * 6, ["kindness", "a lie"] * 6
    for loss in encode.LOSSES.values():
        goal = counts.argmax(1) if loss == "hard" else counts
        fitted = encoders.fit(path, one, goal, pairs=two, loss=loss, ranked=True, epochs=1)
        z = encoders.logits(fitted, one, pairs=two, ranked=True)
        turned = encoders.logits(fitted, two, pairs=one, ranked=True)
        np.testing.assert_allclose(z, turned[:, ::-1], atol=1e-5)
    with pytest.raises(ValueError, match="pairs"):
        encoders.fit(path, one, counts, loss="soft", ranked=True)


def test_an_encoder_is_read_to_the_length_of_scruples_and_the_best_epoch_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []
    scores = iter([0.7, 0.6, 0.9] * 3)

    def fit(*_: Any, judge: Any, **more: Any) -> encoders.Encoder:
        asked.append(more)
        for _epoch in range(3):
            judge(None)
        return encoders.Encoder(None, None)

    def logits(_: Any, texts: Any, **more: Any) -> Any:
        asked.append(more)
        return np.zeros((len(texts), 2))

    monkeypatch.setattr(encoders, "fit", fit)
    monkeypatch.setattr(encoders, "logits", logits)
    monkeypatch.setattr(encode, "worth", lambda z, counts: next(scores))
    for dataset, own, length in (
        ("dilemmas", None, 92),
        ("anecdotes", None, 512),
        ("dilemmas", 33, 33),
    ):
        settings: dict[str, Any] = {"votes__dataset": dataset}
        run = resolved("ceiling", baselines__encoder_max_length=own, **settings)
        asked.clear()
        _, epoch = encode.encode(run, Path(), data.splits(run), "soft")
        assert epoch == 2
        assert {more["max_length"] for more in asked} == {length}
        assert asked[0]["device"] == "cpu"


def test_a_diverged_encoder_is_worth_five() -> None:
    assert encode.worth(np.array([[np.nan, 0.0]]), np.array([[5, 0]])) == 5
    # As sure as the votes are: their own entropy is all that is left.
    z = np.log([[0.8, 0.2], [0.2, 0.8]])
    entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
    assert encode.worth(9 * z, np.array([[4, 1], [1, 4]])) == pytest.approx(entropy, abs=1e-4)


def test_a_search_draws_from_the_space_and_keeps_the_best() -> None:
    run = resolved("ceiling", baselines__encoder_trials=3, data__limit_train=8)
    rows = data.splits(run)
    path = models.encoder("random-tiny", 0)
    chosen = encode.search(run, path, rows, "soft").baselines
    assert chosen != run.baselines
    assert 1e-8 <= chosen.encoder_lr <= 1e-2
    assert chosen.encoder_batch_size in [2**k for k in range(3, 11)]
    assert encode.search(run, path, rows, "soft").baselines == chosen
    assert encode.files(run)["search"] == encode.SEARCH, "the result depends on the space"


def test_nothing_that_reads_nothing_beats_the_mean_of_the_test_votes() -> None:
    run = resolved("ceiling")
    rows = data.splits(run)
    found = {
        r["metric"]: r["value"]
        for r in encode.floors(run, rows)
        if (r["variant"], r["stratum"]) == ("mean-votes", "all")
    }
    votes = data.counts(rows.test)
    constants = [np.array([p, 1 - p]) for p in np.linspace(0.01, 0.99, 99)]
    losses = [calibration.cross_entropy(p, votes).mean() for p in constants]
    assert min(losses) - 1e-3 < found["cross_entropy"] <= min(losses) + 1e-6
    own = [
        calibration.dirichlet_multinomial_nll(kappa * p, votes).mean()
        for p in constants
        for kappa in (0.5, 1, 2, 4)
    ]
    assert found["dirichlet_nll_own"] <= min(own) + 1e-6


def test_shares_of_votes_stand_in_their_own_tenth() -> None:
    """Three of five votes are six tenths; as a float 0.6 falls just short of them."""
    counts = np.array([[5 - k, k] for k in range(6)], dtype=float)
    facts = {name: found[0] for name, _, found in encode.vote_facts(counts, ("a", "b"))}
    tenths = [facts[f"tenth_{k}"] for k in range(10)]
    assert tenths == pytest.approx([1 / 6, 0, 1 / 6, 0, 1 / 6, 0, 1 / 6, 0, 1 / 6, 1 / 6])
