"""Training on tasks that are made rather than read: what every lesson of that kind shares.

A whole stretch of training is one compiled loop, mapped over members that differ in their seed
and their learning rate, so that a sweep takes little longer than a run.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from rnnjax.data import DataError
from rnnjax.metrics import compute, merge
from rnnjax.training import LossFn, TrainState, init_train_state, make_train_step


class Task(NamedTuple):
    """What is learned, by what, and from which examples.

    Attributes:
        init: ``(key) -> params``.
        sample: ``(key, step) -> batch``, pure, a tree of arrays. Most tasks draw from the key
            alone; the step is for those that go through a list in order.
        loss_fn: as `rnnjax.training` takes it.
    """

    init: Callable[[Array], Any]
    sample: Callable[[Array, Array], Any]
    loss_fn: LossFn


class Trained(NamedTuple):
    """Members after training, and how they got there.

    Attributes:
        params: every leaf has the members for its first axis.
        steps: [K], the last step of each stretch.
        curves: names and means over each stretch, [N, K]; NaN where no step of it counted.
    """

    params: Any
    steps: np.ndarray
    curves: dict[str, np.ndarray]

    def member(self, index: int) -> Any:
        """The parameters of one member."""
        return jax.tree.map(lambda leaf: leaf[index], self.params)


def make_trainer(
    task: Task, optimizer: Callable[[Any], optax.GradientTransformation], *, every: int
) -> Callable[[Sequence[int], Sequence[float], int], Trained]:
    """Training of members side by side, each with a seed and a learning rate of its own.

    Args:
        task: what to learn.
        optimizer: makes an Optax transformation of a learning rate.
        every: steps of a stretch, over which the curves are means.

    Returns:
        ``(seeds, learning_rates, steps) -> Trained``: one seed a member, which decides its initial
        weights and its examples, one rate a member, and the steps of all, a multiple of
        ``every``. Compiled once for each number of members.

    Raises:
        ValueError: when called: there is not one rate a seed, or ``steps`` is no multiple of
            ``every``.

    Example:
        >>> def loss_fn(params, batch, key):
        ...     error = (params - batch) ** 2
        ...     return error, {"loss": (error, jnp.ones(()))}
        >>> task = Task(lambda key: jnp.zeros(()), lambda key, step: jnp.array(3.0), loss_fn)
        >>> trained = make_trainer(task, optax.sgd, every=2)([0, 0], [0.5, 0.0], 4)
        >>> trained.params.tolist(), trained.curves["loss"].tolist()
        ([3.0, 0.0], [[4.5, 0.0], [9.0, 9.0]])
    """

    def begin(key: Array, rate: Array) -> TrainState:
        init_key, run_key = jax.random.split(key)
        return init_train_state(run_key, task.init(init_key), optimizer(rate))

    start = jax.jit(jax.vmap(begin))
    stretch = jax.jit(jax.vmap(_stretch(task, optimizer, every)), donate_argnums=0)

    def train(seeds: Sequence[int], learning_rates: Sequence[float], steps: int) -> Trained:
        _check(seeds, learning_rates, steps, every)
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        rates = jnp.asarray(learning_rates, jnp.float32)
        states, sums = start(keys, rates), []
        for _ in range(steps // every):
            states, some = stretch(states, rates)
            sums.append(jax.device_get(some))
        return Trained(states.params, np.arange(every, steps + 1, every), _means(sums))

    return train


def stretch_steps(steps: int, least: int) -> int:
    """The steps of a stretch, which divide all steps into ``least`` stretches or somewhat more.

    Example:
        >>> stretch_steps(1_000, 50), stretch_steps(120, 50), stretch_steps(7, 50)
        (20, 2, 1)
    """
    return next(n for n in range(max(1, steps // least), 0, -1) if steps % n == 0)


def _check(seeds: Sequence[int], rates: Sequence[float], steps: int, every: int) -> None:
    if len(seeds) != len(rates):
        raise ValueError(
            f"learning_rates must be one for each of {len(seeds)} seeds, got {len(rates)}"
        )
    if steps < 1 or every < 1 or steps % every:
        raise ValueError(f"steps must be a multiple of every ({every}), got {steps}")


def _means(sums: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore"):  # 0 / 0 where every step of a stretch was skipped
        return {
            name: np.stack([total / count for total, count in (some[name] for some in sums)], 1)
            for name in sums[0]
        }


def _stretch(task: Task, optimizer: Callable[[Any], Any], every: int) -> Callable:
    """The function (state, rate) -> (state, sums) of so many steps."""

    def stretch(state: TrainState, rate: Array) -> tuple[TrainState, dict]:
        step = make_train_step(_sampling(task), optimizer(rate))
        state, metrics = jax.lax.scan(lambda s, _: step(s, s.step), state, None, length=every)
        return state, jax.tree.map(lambda figures: figures.sum(axis=0), metrics)

    return stretch


def _sampling(task: Task) -> LossFn:
    """The loss function of a task whose batch is the number of the step: it draws the examples."""

    def loss_fn(params: Any, step: Array, key: Array | None) -> tuple[Array, Any]:
        assert key is not None  # only training calls it
        draw, noise = jax.random.split(key)
        return task.loss_fn(params, task.sample(draw, step), noise)

    return loss_fn


def evaluate(task: Task, params: Any, *, seed: int, batches: int = 1) -> dict[str, float]:
    """The metrics of one member on fresh examples.

    Args:
        task: what was learned.
        params: of one member.
        seed: of the examples; another than those of training.
        batches: how many to draw.

    Example:
        >>> task = Task(
        ...     init=lambda key: jnp.zeros(()),
        ...     sample=lambda key, step: jnp.array([1.0, 3.0]),
        ...     loss_fn=lambda params, batch, key: (0.0, {"mean": (batch.sum(), jnp.array(2.0))}),
        ... )
        >>> evaluate(task, jnp.zeros(()), seed=1)
        {'mean': 2.0}
    """

    @jax.jit
    def step(params: Any, number: Array) -> Any:
        batch = task.sample(jax.random.fold_in(jax.random.key(seed), number), number)
        return task.loss_fn(params, batch, None)[1]

    metrics = step(params, jnp.array(0))
    for number in range(1, batches):
        metrics = merge(metrics, step(params, jnp.array(number)))
    return compute(metrics)


def random_rows(data: Any, batch_size: int) -> Callable[[Array, Array], Any]:
    """A ``sample`` that draws rows of a data set, each as likely as any other.

    Args:
        data: a tree of arrays that agree in their first axis.
        batch_size: rows to draw, with replacement.

    Example:
        >>> sample = random_rows({"x": jnp.arange(3), "y": jnp.arange(3) * 10}, batch_size=4)
        >>> batch = sample(jax.random.key(0), jnp.array(0))
        >>> bool((batch["y"] == batch["x"] * 10).all()), batch["x"].shape
        (True, (4,))
    """
    data = jax.tree.map(jnp.asarray, data)
    count = len(jax.tree.leaves(data)[0])

    def sample(key: Array, step: Array) -> Any:
        del step
        rows = jax.random.randint(key, (batch_size,), 0, count)
        return jax.tree.map(lambda array: array[rows], data)

    return sample


def kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What ``make`` gives, read from the file where an earlier run left it.

    Curves are too long for a row, and a figure needs those of all members: also of those that
    were trained before the run was stopped.

    Args:
        path: an .npz file, written in one go.
        make: gives named arrays.

    Raises:
        DataError: the file is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = kept(Path(folder, "a.npz"), lambda: {"loss": [1.0, 0.5]})
        ...     again = kept(Path(folder, "a.npz"), lambda: {"loss": [9.0]})
        >>> again["loss"].tolist()
        [1.0, 0.5]
    """
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        arrays: dict[str, Any] = {name: np.asarray(array) for name, array in make().items()}
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise DataError(
            f"{path} must be what the lesson left there, got {error}: delete it"
        ) from None
