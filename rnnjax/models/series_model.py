"""A model of a series: which value comes next, as a distribution at every step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from rnnjax import masking
from rnnjax._checks import check_key, check_pair, check_params, check_rate
from rnnjax._native import jit
from rnnjax._recipe import Made, factory
from rnnjax.base import Carry, Cell, Key, Layer
from rnnjax.heads import Head
from rnnjax.layers.recurrent import as_causal_layer
from rnnjax.models._dropout import locked_dropout, split_key


class SeriesModelParams(NamedTuple):
    """Parameters of ``layer`` and of ``head``."""

    layer: Any
    head: Any


class _SeriesModelFields(NamedTuple):
    init: Callable[[Key], SeriesModelParams]
    apply: Callable[..., tuple[Carry, Any]]
    step: Callable[..., tuple[Carry, Any]]
    initial_carry: Callable[..., Carry]
    score: Callable[..., tuple[Carry, Array]]
    loss: Callable[..., tuple[Carry, tuple[Array, Array]]]
    head: Head


class SeriesModel(Made, _SeriesModelFields):
    """A model of a series as pure functions.

    Two that were made from equal arguments are equal.

    Attributes:
        init: ``(key) -> params``.
        apply: ``(params, values [..., T, D], lengths [...], *, mask, resets, initial_carry, key,
            context) -> (carry, distribution)``: at every step that of the value after it. Values
            are ids [..., T] where the head is one of ids. ``context`` is that of the layer.
        step: ``(params, carry, value [..., D], *, context) -> (carry, distribution)``; a carry of
            None is the one before the first value.
        initial_carry: ``(params, batch_shape) -> carry``.
        score: ``(params, (values, targets), lengths, *, ...) -> (carry, log_probs [..., T])``, of
            the targets; 0 at masked steps. Other arguments are those of ``apply``.
        loss: as ``score``, but ``(carry, (total, count))``, the loss of the head.
        head: what the distributions are; ``rnnjax.heads``.
    """


@factory
def series_model(layer: Cell | Layer, head: Head, *, dropout: float = 0.0) -> SeriesModel:
    r"""A recurrent model of a series of vectors or ids: a layer, and a head with a density.

    .. math:: p(v_{t+1} \mid v_1 \dots v_t) = \mathrm{head}(y_t)

    Args:
        layer: a cell or a layer that does not read ahead.
        head: such as ``rnnjax.bernoulli_head(88)``.
        dropout: the rate at which outputs of the layer are dropped in training, that is when a
            ``key`` is given. One mask serves all steps of a sequence. Values are not dropped: what
            comes next hangs on the last of them most of all.

    Raises:
        ValueError: a rate outside [0, 1), a layer that reads ahead, or a part of a wrong type.

    Example:
        >>> import jax, jax.numpy as jnp, rnnjax
        >>> model = rnnjax.series_model(rnnjax.gru(16), rnnjax.gaussian_mixture_head(3, 2))
        >>> params = model.init(jax.random.key(0))
        >>> series = jnp.ones((4, 11, 2))
        >>> pair = series[:, :-1], series[:, 1:]
        >>> carry, (total, count) = model.loss(params, pair, lengths=[10, 7, 3, 0])
        >>> int(count)
        20
    """
    below = as_causal_layer(layer)
    if not isinstance(head, Head):
        raise ValueError(
            f"head must be one of rnnjax.heads, such as rnnjax.bernoulli_head(88), got "
            f"{type(head).__name__}"
        )
    rate = check_rate("dropout", dropout)

    def init(key: Key) -> SeriesModelParams:
        inner, top = jax.random.split(check_key(key))
        return SeriesModelParams(
            below.init(inner, head.input_size), head.init(top, below.output_size)
        )

    def real_values(values: Any, lengths: Any, mask: Any) -> tuple[Array, Array | None]:
        """Values with zeros in the padding, where an id need not be one, and what is real."""
        values = masking.as_array("values", values)
        steps = values.shape[: values.ndim - len(head.value_shape)]
        if not steps or values.shape[len(steps) :] != head.value_shape:
            expected = ", ".join(map(str, ("...", "T", *head.value_shape)))
            raise ValueError(f"values must have shape [{expected}], got shape {values.shape}")
        valid = masking.valid_steps(lengths, mask, steps[:-1], steps[-1])
        return masking.zero_padding_now(valid, values), valid

    def apply(
        params: SeriesModelParams,
        values: Any,
        lengths: Any = None,
        *,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Carry = None,
        key: Key | None = None,
        context: Any = None,
    ) -> tuple[Carry, Any]:
        params = check_params(params, SeriesModelParams)
        inner, out_key = split_key(key, 2)
        values, valid = real_values(values, lengths, mask)
        # A layer made by hand need not take a context.
        given = {} if context is None else {"context": context}
        carry, ys = below.apply(
            params.layer,
            head.encode(values),
            mask=valid,
            resets=resets,
            initial_carry=initial_carry,
            key=inner,
            **given,
        )
        return carry, head.apply(params.head, locked_dropout(out_key, ys, rate))

    def with_targets(measure: Callable) -> Callable:
        def run(
            params: SeriesModelParams,
            pair: tuple[Any, Any],
            lengths: Any = None,
            *,
            mask: Any = None,
            **options: Any,
        ) -> tuple[Carry, Any]:
            values, targets = check_pair("the pair (values, targets)", "a tuple of 2", pair)
            values, valid = real_values(values, lengths, mask)
            carry, distribution = apply(params, values, mask=valid, **options)
            try:
                return carry, measure(distribution, targets, valid)
            except ValueError as error:
                name, _, rest = str(error).partition(" ")
                if name != "values":  # as a head calls the targets
                    raise
                raise ValueError(f"targets {rest}") from None

        return run

    def step(
        params: SeriesModelParams, carry: Carry, value: Any, *, context: Any = None
    ) -> tuple[Carry, Any]:
        params = check_params(params, SeriesModelParams)
        carry = jax.tree.map(functools.partial(masking.as_array, "carry"), carry)
        value = masking.as_array("value", value)
        # Ids are looked at here, where their values may be known.
        x = value if head.value_shape else head.encode(value)
        return _step((below, head), params, carry, x, context)

    def initial_carry(params: SeriesModelParams, batch_shape: tuple[int, ...] = ()) -> Carry:
        params = check_params(params, SeriesModelParams)
        return below.initial_carry(params.layer, batch_shape)

    return SeriesModel(
        init,
        apply,
        step,
        initial_carry,
        with_targets(head.log_prob),
        with_targets(head.loss),
        head,
    )


# One program, where operation after operation would each be a call of its own; for equal models,
# the same one.
@functools.partial(jit, static=1)
def _step(
    parts: tuple[Layer, Head], params: SeriesModelParams, carry: Carry, value: Any, context: Any
) -> tuple[Carry, Any]:
    layer, head = parts
    x = head.encode(value) if head.value_shape else value
    carry, y = layer.step(params.layer, carry, x, context=context)
    return carry, head.apply(params.head, y)
