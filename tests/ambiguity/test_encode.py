import numpy as np
import pytest

from ethalign import encoders, models
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
