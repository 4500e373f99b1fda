import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from orchard_spark.moments import CannotFit, Doubles, Moments, fit


def data(n: int, p: int, seed: int = 0) -> Doubles:
    """Return correlated, shifted, non-negative data, similar to features."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(size=(n, 8)) @ rng.normal(size=(8, p)) + rng.normal(size=(n, p)) * 0.3) + 0.5


@pytest.mark.parametrize(("n", "p"), [(500, 40), (30, 60), (41, 40)])
@pytest.mark.parametrize("n_components", [1, 5, 0.5, 0.95, 0.999])
def test_the_fit_equals_scikit_learns(n: int, p: int, n_components: float) -> None:
    rows = data(n, p)
    ours = fit(Moments.of(rows), n_components)
    theirs = PCA(n_components, svd_solver="full").fit(rows)
    assert len(ours.components_) == theirs.n_components_
    np.testing.assert_allclose(ours.mean_, theirs.mean_)
    np.testing.assert_allclose(ours.explained_variance_ratio_, theirs.explained_variance_ratio_, atol=1e-6)
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(ours.components_, theirs.components_, atol=1e-6)
    vectors = theirs.transform(rows)
    error = np.linalg.norm(ours.transform(rows.astype(np.float32)) - vectors) / np.linalg.norm(vectors)
    assert error <= 1e-4


def test_the_moments_of_parts_add_up_to_the_moments_of_the_whole() -> None:
    rows = data(90, 7)
    whole, parts = Moments.of(rows), Moments.of(rows[:20]) + Moments.of(rows[20:21]) + Moments.of(rows[21:])
    assert parts.n == whole.n
    np.testing.assert_allclose(parts.total, whole.total)
    np.testing.assert_allclose(parts.gram, whole.gram)


def test_the_moments_do_not_depend_on_batch_sizes() -> None:
    rows = data(90, 7)
    whole, batched = Moments.of(rows), Moments.of_batches([rows[:3], rows[3:60], rows[60:60], rows[60:]])
    assert batched.n == 90
    np.testing.assert_allclose(batched.total, whole.total)
    np.testing.assert_allclose(batched.gram, whole.gram)


def test_the_order_of_the_rows_changes_neither_signs_nor_values_of_components() -> None:
    rows = data(200, 20)
    one, other = (fit(Moments.of(some), 5) for some in (rows, rows[::-1]))
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-9)


def test_vectors_are_centred() -> None:
    rows = data(100, 12)
    np.testing.assert_allclose(fit(Moments.of(rows), 3).transform(rows.astype(np.float32)).mean(axis=0), 0, atol=1e-5)


def test_components_as_many_as_images_are_finite() -> None:
    rows = data(6, 20)
    pca = fit(Moments.of(rows), 6)
    assert np.isfinite(pca.components_).all()
    assert pca.explained_variance_ratio_[-1] == pytest.approx(0, abs=1e-9)
    assert (pca.explained_variance_ >= 0).all()


@pytest.mark.parametrize(
    ("rows", "n_components", "message"),
    [
        (np.zeros((0, 3)), 1, "at least 2 images; the run has 0"),
        (np.ones((1, 3)), 1, "at least 2 images; the run has 1"),
        (np.tile([0.1, 0.2, 0.3], (50, 1)), 1, "features of all 50 images are identical"),
        (np.zeros((4, 3)), 0.9, "features of all 4 images are identical"),
        (data(3, 10), 4, "n_components is 4: use a whole number from 1 to 3"),
        (data(30, 4), 5, "whole number from 1 to 4"),
        (data(30, 4), 2.5, "n_components is 2.5"),
        (data(30, 4), 0, "n_components is 0"),
        (np.array([[1, np.nan], [2, 3]]), 1, "not all finite"),
    ],
)
def test_an_impossible_fit_is_a_clear_error(rows: Doubles, n_components: float, message: str) -> None:
    with pytest.raises(CannotFit, match=message):
        fit(Moments.of(rows), n_components)


NEXT_TO_1 = [math.nextafter(1, 0), 1 - 2**-52, 1 - 1e-15, 1 - 1e-14, 1 - 1e-12]
NEXT_TO_0 = [math.nextafter(0, 1), 1e-300, 1e-12]
# Shares so close to a sum of variances that rounding decides on which side they are.
CLOSE = 1e-10


@settings(max_examples=300, deadline=None)
@given(
    n=st.integers(2, 40),
    p=st.integers(1, 40),
    rank=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    offset=st.sampled_from([0.0, 0.5, 6.0]),
    n_components=st.one_of(
        st.sampled_from([*NEXT_TO_1, *NEXT_TO_0]),
        st.floats(0, 1, exclude_min=True, exclude_max=True),
        st.integers(1, 40),
        st.just("most"),
    ),
)
def test_the_number_of_components_is_scikit_learns_for_all_data_and_all_values(
    n: int, p: int, rank: int, seed: int, offset: float, n_components: float | str
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, p)) + offset
    wanted = min(n, p) if n_components == "most" else n_components
    assert not isinstance(wanted, str)
    if wanted > min(n, p):
        with pytest.raises(CannotFit, match=f"whole number from 1 to {min(n, p)} "):
            fit(Moments.of(rows), wanted)
        return
    ours, theirs = fit(Moments.of(rows), wanted), PCA(wanted, svd_solver="full").fit(rows)
    sums = np.cumsum(PCA(svd_solver="full").fit(rows).explained_variance_ratio_)
    if isinstance(wanted, int) or abs(sums - wanted).min() > CLOSE:
        assert len(ours.components_) == len(theirs.components_)
    else:  # the same variance, with or without a component of no variance
        assert 1 <= len(ours.components_) <= min(n, p)
        assert ours.explained_variance_ratio_.sum() == pytest.approx(wanted, abs=2 * CLOSE)
    both = min(len(ours.components_), len(theirs.components_))
    scale = max(theirs.explained_variance_[0], offset**2)
    np.testing.assert_allclose(ours.explained_variance_[:both], theirs.explained_variance_[:both], atol=1e-9 * scale)
    np.testing.assert_allclose(ours.components_ @ ours.components_.T, np.eye(len(ours.components_)), atol=1e-9)


@pytest.mark.parametrize("share", NEXT_TO_1)
@pytest.mark.parametrize(("n", "p"), [(500, 40), (30, 60), (41, 40), (40, 40), (3, 200)])
def test_a_share_next_to_1_keeps_all_components_with_variance(share: float, n: int, p: int) -> None:
    rows = data(n, p)
    ours, theirs = fit(Moments.of(rows), share), PCA(share, svd_solver="full").fit(rows)
    assert abs(len(ours.components_) - len(theirs.components_)) <= (n <= p)
    assert len(ours.components_) >= min(n - 1, p)
    assert ours.explained_variance_ratio_.sum() == pytest.approx(1)


def test_1_is_one_component_and_not_a_share() -> None:
    rows = data(30, 4)
    assert [len(fit(Moments.of(rows), value).components_) for value in (1, 1.0)] == [1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5, -1, 1.0000000000000002])
def test_what_is_neither_a_number_of_components_nor_a_share_is_refused(value: float) -> None:
    with pytest.raises(CannotFit, match=rf"n_components is {value:.17g}: use a whole number from 1 to 4"):
        fit(Moments.of(data(30, 4)), value)
