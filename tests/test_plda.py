"""PLDA against Gaussian densities, closed forms, SpeechBrain's and scikit-learn's."""

import logging
from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from spkexp.counter import generator
from spkexp.errors import UserError
from spkexp.scoring.plda import Model, Plda, em_step, estimate
from spkexp.scoring.projection import pair_scores
from spkexp.scoring.transforms import Moments, Preparation, centred, lda, moments, prepared

PLAIN: dict[str, Any] = {
    "kind": "two_covariance",
    "rank": None,
    "iterations": 10,
    "lda_size": None,
    "whiten": False,
    "length_norm": False,
}


def exact(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64)


def some_model(d: int, rank: int, seed: int = 0) -> Model:
    rng = generator(5, seed)
    root = rng.standard_normal((d, d))
    return Model(rng.standard_normal(d), rng.standard_normal((d, rank)), root @ root.T / d + 0.3 * np.eye(d))


def draw(model: Model, counts: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings from the model, those of the speakers mixed up, and who speaks."""
    rng = generator(6, seed)
    speaker = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    voices = rng.standard_normal((len(counts), model.loading.shape[1])) @ model.loading.T
    noise = rng.standard_normal((len(speaker), len(model.mean))) @ np.linalg.cholesky(model.residual).T
    return (model.mean + voices[speaker] + noise).astype(np.float32), speaker


def slow_log_likelihood(model: Model, embeddings: np.ndarray, speaker: np.ndarray) -> float:
    """Each speaker's embeddings as one long Gaussian vector."""
    total, between = 0.0, model.loading @ model.loading.T
    for one in np.unique(speaker):
        rows = exact(embeddings[speaker == one])
        covariance = np.kron(np.ones((len(rows), len(rows))), between) + np.kron(np.eye(len(rows)), model.residual)
        total += multivariate_normal(np.tile(model.mean, len(rows)), covariance).logpdf(rows.ravel())
    return float(total)


@pytest.mark.parametrize("rank", [4, 2])
def test_scores_are_log_likelihood_ratios(rank: int) -> None:
    model = some_model(4, rank)
    plda = Plda(Preparation(np.zeros(4), np.eye(4), False), model, ())
    rows = generator(7).standard_normal((9, 4), dtype=np.float32) * 3
    sides = plda.project(rows)
    enroll, test = np.divmod(np.arange(81), 9)
    between = model.loading @ model.loading.T
    whole = between + model.residual
    same = multivariate_normal(np.tile(model.mean, 2), np.block([[whole, between], [between, whole]]))
    alone = multivariate_normal(model.mean, whole).logpdf(exact(rows))
    expected = same.logpdf(np.column_stack([exact(rows[enroll]), exact(rows[test])])) - alone[enroll] - alone[test]
    assert np.ptp(expected) > 5
    np.testing.assert_allclose(pair_scores(sides, sides, enroll, test), expected, atol=2e-5)
    assert sides.vector.shape == (9, rank)
    assert plda.gives_llr


def test_scores_are_those_of_speechbrain() -> None:
    from speechbrain.processing import PLDA_LDA

    model, rows = some_model(5, 3), generator(8).standard_normal((6, 5), dtype=np.float32)

    def their_rows(prefix: str) -> Any:
        names = np.array([f"{prefix}{n}" for n in range(6)], dtype="|O")
        nothing, ones = np.array([None] * 6), np.ones((6, 1))
        return PLDA_LDA.StatObject_SB(names, names, nothing, nothing, ones, exact(rows))

    enrolled, tested = their_rows("e"), their_rows("t")
    trials = PLDA_LDA.Ndx(models=enrolled.modelset, testsegs=tested.modelset)
    found = PLDA_LDA.fast_PLDA_scoring(enrolled, tested, trials, model.mean, model.loading, model.residual)
    ours = Plda(Preparation(np.zeros(5), np.eye(5), False), model, ()).project(rows)
    enroll, test = np.divmod(np.arange(36), 6)
    np.testing.assert_allclose(pair_scores(ours, ours, enroll, test), found.scoremat.ravel(), atol=2e-5)


@pytest.mark.parametrize("rank", [3, 1])
def test_training_climbs_to_a_maximum_of_the_likelihood(rank: int) -> None:
    counts = generator(9).integers(1, 9, size=60)
    embeddings, speaker = draw(some_model(3, rank), counts)
    found = moments(embeddings, speaker, exact)
    early, _ = estimate(found, rank, 1)
    model, likelihood = estimate(found, rank, 400)
    np.testing.assert_allclose(likelihood[1], slow_log_likelihood(early, embeddings, speaker), rtol=1e-10)
    np.testing.assert_allclose(likelihood[-1], slow_log_likelihood(model, embeddings, speaker), rtol=1e-10)
    assert likelihood[3] > likelihood[0] + 0.1
    assert np.diff(likelihood).min() > -1e-9

    # Nothing moves the likelihood at the end: V, μ and W, the last by its root, which keeps it a covariance.
    sizes = np.cumsum([3, 3 * rank])

    def at(parameters: np.ndarray) -> float:
        mean, loading, root = np.split(parameters, sizes)
        root = root.reshape(3, 3)
        return slow_log_likelihood(Model(mean, loading.reshape(3, rank), root @ root.T), embeddings, speaker)

    best = np.concatenate([model.mean, model.loading.ravel(), np.linalg.cholesky(model.residual).ravel()])
    assert np.abs(approx_fprime(best, at, 1e-6)).max() < 0.01
    assert np.abs(approx_fprime(1.02 * best, at, 1e-6)).max() > 10


def slow_step(model: Model, embeddings: np.ndarray, speaker: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """μ, VVᵀ and W after one step of EM with minimum divergence, a speaker and an embedding at a time."""
    weighted = np.linalg.solve(model.residual, model.loading)
    posteriors, square, product = [], 0.0, 0.0
    for one in np.unique(speaker):
        rows = exact(embeddings[speaker == one])
        covariance = np.linalg.inv(np.eye(model.loading.shape[1]) + len(rows) * model.loading.T @ weighted)
        mean = covariance @ weighted.T @ (rows - model.mean).sum(axis=0)
        posteriors.append((mean, covariance))
        extended = np.append(mean, 1)
        moment = np.outer(extended, extended)
        moment[:-1, :-1] += covariance
        for row in rows:
            square, product = square + moment, product + np.outer(row, extended)
    both = product @ np.linalg.inv(square)
    scatter = sum(np.outer(row, row) for row in exact(embeddings))
    residual = (scatter - both @ product.T) / len(embeddings)
    center = np.mean([mean for mean, _ in posteriors], axis=0)
    spread = np.mean([cov + np.outer(mean - center, mean - center) for mean, cov in posteriors], axis=0)
    return both[:, -1] + both[:, :-1] @ center, both[:, :-1] @ spread @ both[:, :-1].T, residual


@pytest.mark.parametrize("seed", range(3))
def test_training_comes_quickly_from_anywhere(seed: int) -> None:
    embeddings, speaker = draw(some_model(4, 3), generator(13).integers(1, 9, size=40))
    found = moments(embeddings, speaker, exact)
    model, likelihood = some_model(4, 3, 20 + seed), []
    mean, between, residual = slow_step(model, embeddings, speaker)
    for turn in range(12):
        value, model = em_step(found, model)
        likelihood.append(value)
        if turn == 0:
            np.testing.assert_allclose(model.mean, mean, rtol=1e-9)
            np.testing.assert_allclose(model.loading @ model.loading.T, between, rtol=1e-8, atol=1e-9)
            np.testing.assert_allclose(model.residual, residual, rtol=1e-8, atol=1e-9)
    assert np.diff(likelihood).min() > -1e-9
    # Plain EM, without the minimum divergence, is by then ten times as far from it and more.
    assert likelihood[-1] == pytest.approx(estimate(found, 3, 500)[1][-1], abs=1e-3)


def test_equal_counts_have_the_closed_form() -> None:
    """One-way analysis of variance: W and W/n + B are the pooled covariances within and of the speakers' means."""
    embeddings, speaker = draw(some_model(3, 3), np.full(200, 5))
    model, _ = estimate(moments(embeddings, speaker, exact), 3, 2000)
    rows = exact(embeddings)
    means = np.array([rows[speaker == one].mean(axis=0) for one in range(200)])
    within = (rows - means[speaker]).T @ (rows - means[speaker]) / (200 * 4)
    between = np.cov(means, rowvar=False, bias=True) - within / 5
    assert np.linalg.eigvalsh(between).min() > 0  # else this is not the maximum
    np.testing.assert_allclose(model.mean, rows.mean(axis=0), atol=1e-8)
    np.testing.assert_allclose(model.residual, within, atol=1e-6)
    np.testing.assert_allclose(model.loading @ model.loading.T, between, atol=1e-6)


def test_training_recovers_the_model() -> None:
    truth = some_model(6, 2)
    embeddings, speaker = draw(truth, generator(10).integers(2, 12, size=3000))
    plda = Plda.fit(embeddings, speaker * 7 - 5, **{**PLAIN, "kind": "simplified", "rank": 2, "iterations": 40})
    # What is centred before: the model's mean is what remains.
    assert np.abs(plda.preparation.mean + plda.model.mean - truth.mean).max() < 0.1
    for ours, theirs in (
        (plda.model.loading @ plda.model.loading.T, truth.loading @ truth.loading.T),
        (plda.model.residual, truth.residual),
    ):
        assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


def test_a_few_iterations_reach_what_speechbrain_reaches() -> None:
    from speechbrain.processing import PLDA_LDA

    embeddings, speaker = draw(some_model(4, 2), generator(11).integers(2, 9, size=80))
    nothing, names = np.array([None] * len(speaker)), np.array([f"s{n:02d}" for n in speaker], dtype="|O")
    segments = np.array([f"u{n}" for n in range(len(speaker))], dtype="|O")
    given = PLDA_LDA.StatObject_SB(names, segments, nothing, nothing, np.ones((len(speaker), 1)), exact(embeddings))
    their = PLDA_LDA.PLDA(rank_f=2, nb_iter=10)
    their.plda(given)
    theirs_is = slow_log_likelihood(Model(their.mean, their.F, their.Sigma), embeddings, speaker)
    ours = Plda.fit(embeddings, speaker, **{**PLAIN, "kind": "simplified", "rank": 2})
    assert ours.log_likelihood[-1] > theirs_is - 0.5


def test_lda_is_that_of_scikit_learn() -> None:
    embeddings, speaker = draw(some_model(6, 6), generator(12).integers(1, 9, size=20))
    rows = exact(embeddings)
    reference = LinearDiscriminantAnalysis(solver="eigen", n_components=3).fit(rows, speaker)
    expected = reference.transform(rows)
    found = Preparation(rows.mean(axis=0), lda(moments(embeddings, speaker, exact), 3), False).apply(embeddings)
    found *= np.sign((found * expected).sum(axis=0))  # a direction has no sign
    np.testing.assert_allclose(found - found.mean(axis=0), expected - expected.mean(axis=0), rtol=1e-6, atol=1e-8)


def test_preparation_whitens_and_scales() -> None:
    embeddings, speaker = draw(some_model(5, 5), np.full(40, 6))
    found = moments(embeddings, speaker, exact)
    white = prepared(found, 3, True, False).apply(embeddings)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.cov(white, rowvar=False, bias=True), np.eye(3), atol=1e-10)
    plda = Plda.fit(embeddings, speaker, **{**PLAIN, "lda_size": 3, "whiten": True, "length_norm": True})
    np.testing.assert_allclose(
        plda.preparation.apply(embeddings), white / np.linalg.norm(white, axis=1, keepdims=True), rtol=1e-9
    )
    # Trained on what it will be given: the fit of the prepared embeddings alone is the same.
    alone = Plda.fit(plda.preparation.apply(embeddings), speaker, **PLAIN)
    np.testing.assert_allclose(plda.model.residual, alone.model.residual, rtol=1e-6)
    unreadable = embeddings[:2].copy()
    unreadable[0, 1] = np.nan
    sides = plda.project(unreadable)
    assert np.isnan(sides.vector).any(axis=1).tolist() == np.isnan(sides.offset).tolist() == [True, False]
    np.testing.assert_array_equal(centred(unreadable[1:], embeddings[2]), [embeddings[1] - embeddings[2]])


def test_moments_in_blocks() -> None:
    embeddings, speaker = draw(some_model(3, 3), np.array([1500, 3, 700, 900]))
    found = moments(embeddings, speaker, exact)
    rows = exact(embeddings)
    assert found.count.tolist() == [1500, 3, 700, 900]
    np.testing.assert_allclose(found.total, [rows[speaker == one].sum(axis=0) for one in range(4)])
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False, bias=True))
    own = np.array([rows[speaker == one].mean(axis=0) for one in range(4)])[speaker]
    np.testing.assert_allclose(found.within, (rows - own).T @ (rows - own) / len(rows))
    np.testing.assert_allclose(found.between, np.cov(own, rowvar=False, bias=True), atol=1e-12)


@pytest.mark.parametrize(
    ("counts", "change", "message"),
    [
        ([9], {}, "at least 2 to train on, got 1"),
        ([1] * 9, {}, "each of the 9 speakers that it is to be trained on has only one"),
        ([2, 2, 2], {}, "at least 4 utterances more than speakers.*6 utterances of 3 speakers"),
        ([9, 9, 9], {"lda_size": 3}, "lda_size=3: .* 4-dimensional embeddings of 3 speakers has at most 2"),
        ([9] * 9, {"lda_size": 5}, "has at most 4"),
        ([9, 9, 9], {"kind": "simplified", "rank": 3}, "rank=3: 4 dimensions and 3 speakers allow for 1 to 2"),
        ([9] * 9, {"kind": "simplified", "rank": 5}, "allow for 1 to 4"),
        ([9] * 9, {"rank": 2}, "rank=2 is for kind=simplified"),
    ],
)
def test_too_little_to_train_on_is_said(counts: list[int], change: dict[str, Any], message: str) -> None:
    embeddings, speaker = draw(some_model(4, 2), np.array(counts))
    with pytest.raises(UserError, match=message):
        Plda.fit(embeddings, speaker, **{**PLAIN, **change})


def test_what_does_not_vary_is_said() -> None:
    embeddings, speaker = draw(some_model(4, 2), np.full(9, 9))
    embeddings[:, 2] = 0.5
    with pytest.raises(UserError, match="do not vary in 1 of 4 dimensions"):
        Plda.fit(embeddings, speaker, **PLAIN)
    with pytest.raises(UserError, match="whitening: the embeddings do not vary in 1 of 4 dimensions"):
        Plda.fit(embeddings, speaker, **{**PLAIN, "whiten": True})
    embeddings[[3, 5], 1] = np.inf
    with pytest.raises(UserError, match=r"2 of 81 embeddings to train on are not finite \(the first: row 3\)"):
        Plda.fit(embeddings, speaker, **PLAIN)


def test_speakers_fewer_than_dimensions(caplog: pytest.LogCaptureFixture) -> None:
    """The two-covariance model of S speakers has S - 1 dimensions between them: also the maximum of the likelihood."""
    embeddings, speaker = draw(some_model(4, 4), np.full(3, 30))
    with caplog.at_level(logging.INFO):
        plda = Plda.fit(embeddings, speaker, **{**PLAIN, "iterations": 200})
    assert plda.model.loading.shape == (4, 2)
    assert "90 utterances of 3 speakers" in caplog.text
    same = Plda.fit(embeddings, speaker, **{**PLAIN, "iterations": 200, "kind": "simplified"})
    assert same.log_likelihood == plda.log_likelihood
    # A third dimension would bring nothing: from a small start in the direction left, EM makes it smaller yet.
    found: Moments = moments(embeddings, speaker, plda.preparation.apply)
    more, likelihood = estimate(found, 4, 2000)
    assert np.linalg.svd(more.loading)[1][2:].max() < 0.05
    assert likelihood[-1] == pytest.approx(plda.log_likelihood[-1], abs=0.01)
