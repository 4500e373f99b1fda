"""Principal component analysis from sums, which takes one pass over the data and never holds them in memory.

The sums (n, Σx, Σxxᵀ) of disjoint parts add up to the sums of the whole. The covariance matrix is (Σxxᵀ − n·μμᵀ)/(n−1).
Everything is float64: features lie between 0 and about 6, so the subtraction loses at most a few of 16 digits.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

# A variance below this share of the mean square is rounding error.
CONSTANT_SHARE = 1e-13
# The same for the variance along one component, per column: twice the precision of float64.
ROUNDING_SHARE = 2.0**-52


class CannotFit(ValueError):
    """The requested principal component analysis does not exist for these data."""


@dataclass(frozen=True)
class Moments:
    """Sums over n rows of p columns: `total` Σx [p], `gram` Σxxᵀ [p, p]."""

    n: int
    total: Doubles
    gram: Doubles

    @classmethod
    def of(cls, rows: Singles | Doubles) -> "Moments":
        """Return the moments of rows [n, p]."""
        return cls.of_batches([rows])

    @classmethod
    def of_batches(cls, batches: Iterable[Singles | Doubles]) -> "Moments":
        """Return the moments of the rows of all batches [n, p]; there must be at least one batch.

        All batches share one work area: touching new memory pages takes nearly as long as the multiplication.
        """
        batches = iter(batches)
        first = next(batches)
        p = first.shape[1]
        n, total, gram = 0, np.zeros(p), np.zeros((p, p))
        doubles, product = np.empty(first.shape), np.empty((p, p))
        for rows in chain([first], batches):
            if len(rows) > len(doubles):
                doubles = np.empty(rows.shape)
            values = doubles[: len(rows)]
            values[...] = rows
            np.matmul(values.T, values, out=product)
            n += len(rows)
            total += values.sum(axis=0)
            gram += product
        return cls(n, total, gram)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.total + other.total, self.gram + other.gram)


@dataclass(frozen=True)
class Pca:
    """A fitted analysis with scikit-learn's attribute names; p columns, k components."""

    n_samples_: int
    mean_: Doubles  # [p]
    components_: Doubles  # [k, p], unit length, each with its largest coefficient positive
    explained_variance_: Doubles  # [k], with n-1 degrees of freedom
    explained_variance_ratio_: Doubles  # [k]

    @cached_property
    def name(self) -> str:
        """A name derived from the content: equal analyses have equal names."""
        content = hashlib.sha256(self.mean_.tobytes() + self.components_.tobytes()).hexdigest()
        return f"pca-{len(self.components_)}-{content[:8]}"

    @property
    def total_deviation(self) -> float:
        """The root of the total variance of the data, of which the components keep a part."""
        kept = self.explained_variance_ratio_.sum()
        return float(np.sqrt(self.explained_variance_.sum() / kept)) if kept else 0.0

    def transform(self, rows: Singles) -> Singles:
        """Return the vectors [n, k] of rows [n, p], centred as in scikit-learn (Spark's PCA does not centre)."""
        return ((rows.astype(np.float64) - self.mean_) @ self.components_.T).astype(np.float32)


@dataclass
class Drift:
    """How well a basis describes rows that it may not have been fitted to: sums over `images` rows.

    `squares` is the sum of the squared distances from the mean, `kept` the part of it that the components keep. `total`
    is the sum over all `current` rows [p], of which the `images` rows are a part.
    """

    images: int = 0
    squares: float = 0.0
    kept: float = 0.0
    current: int = 0
    total: Doubles | float = 0.0

    def add(self, pca: Pca, rows: Singles, vectors: Singles, counted: npt.NDArray[np.int64]) -> None:
        """Add some of the rows [n, p] with the vectors [n, k]. `counted` has their numbers, some of them repeatedly."""
        if len(counted):
            squares = np.square(rows.astype(np.float64) - pca.mean_).sum(axis=1)
            kept = np.square(vectors.astype(np.float64)).sum(axis=1)
            self.images += len(counted)
            self.squares += float(squares[counted].sum())
            self.kept += float(kept[counted].sum())

    def add_current(self, rows: Singles, counts: npt.NDArray[np.int64]) -> None:
        """Add rows [n, p], each as often as `counts` [n] says, to the sum of all rows."""
        self.current += int(counts.sum())
        self.total = self.total + counts.astype(np.float64) @ rows.astype(np.float64)

    def __add__(self, other: "Drift") -> "Drift":
        return Drift(
            self.images + other.images,
            self.squares + other.squares,
            self.kept + other.kept,
            self.current + other.current,
            self.total + other.total,
        )

    def shift(self, before: Pca) -> float | None:
        """Return how far the mean of all current rows is from the mean of an earlier fit, None without rows.

        The unit is the standard deviation of the rows of that fit around their mean in all p columns, which is the root
        of the trace of their covariance matrix. 0 is the same mean. At 1, the mean of the rows is as far from the
        earlier mean as a typical row was.
        """
        deviation = before.total_deviation
        if not self.current or not deviation:
            return None
        return float(np.linalg.norm(self.total / self.current - before.mean_) / deviation)

    @property
    def share(self) -> float | None:
        """The share of the rows' variance around the basis' mean that lies outside of the basis, None without rows."""
        return max(0.0, 1 - self.kept / self.squares) if self.squares else None


def fit(moments: Moments, n_components: float) -> Pca:
    """Return the analysis of the data that the moments summarise.

    As in scikit-learn, `n_components` is a whole number of components, or the share of the variance to keep (0 < share
    < 1): then there are as many components as it takes to keep more than that share, or all, if rounding prevents it.
    Components have scikit-learn's signs (`svd_flip`, u_based_decision=False), so equal data have equal vectors.

    Raises:
        CannotFit: fewer than two rows, more components than rows or columns, non-finite values, or identical rows.
    """
    n, p = moments.n, len(moments.total)
    if n < 2:
        raise CannotFit(f"PCA needs at least 2 images; the run has {n}")
    if not np.isfinite(moments.gram).all():
        raise CannotFit(f"the features of the {n} images are not all finite numbers")
    most = min(n, p)
    share = 0 < n_components < 1
    if not share and not (float(n_components).is_integer() and 1 <= n_components <= most):
        raise CannotFit(
            f"n_components is {n_components:.17g}: use a whole number from 1 to {most} (the smaller of {n} images "
            f"and {p} features), or a share of the variance between 0 and 1"
        )
    mean = moments.total / n
    covariance = (moments.gram - n * np.outer(mean, mean)) / (n - 1)
    if np.trace(covariance) <= CONSTANT_SHARE * np.trace(moments.gram) / n:
        raise CannotFit(f"the features of all {n} images are identical: there is no variance to explain")

    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    # As many as rows or columns; n rows have no more than that. What is below the rounding error of the sums is none.
    variance = eigenvalues[::-1][:most]
    variance = np.where(variance > ROUNDING_SHARE * p * np.trace(moments.gram) / n, variance, 0)
    ratio = variance / variance.sum()
    k = int(n_components)
    if share:
        k = min(int(np.searchsorted(np.cumsum(ratio), n_components, side="right")) + 1, most)
    components = eigenvectors.T[::-1][:k]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(k), largest])[:, np.newaxis]
    return Pca(n, mean, np.ascontiguousarray(components), variance[:k], ratio[:k])
