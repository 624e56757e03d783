"""Under ``jax_transfer_guard = "disallow"`` nothing is copied to or from a device unasked.

What is run again and again keeps to it when it is called by itself: steps, streams, training,
evaluation, decoding. What makes arrays from nothing keeps to it inside ``jax.jit``.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rnnjax
from rnnjax.metrics import compute, cross_entropy, evaluate, merge

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, D, H, V = 2, 5, 3, 4, 7
LAYER = rnnjax.stack(rnnjax.lstm(H), rnnjax.gru(H), dropout=0.1)
MODEL = rnnjax.language_model(rnnjax.embedding(V, D), rnnjax.gru(H))
CLASSIFIER = rnnjax.classifier(rnnjax.embedding(V, D), LAYER, V, pooling="mean", dropout=0.1)


def on_device(*shape, most=None):
    drawn = np.random.default_rng(0)
    numbers = drawn.normal(size=shape) if most is None else drawn.integers(2, most, shape)
    return jax.device_put(numbers.astype(np.float32 if most is None else np.int32))


XS, TOKENS, LENGTHS = on_device(B, T, D), on_device(B, T, most=V), jax.device_put(np.array([5, 2]))
KEY = jax.random.key(1)


def steps():
    params, xs = LAYER.init(KEY, D), [XS[:, t] for t in range(3)]

    def run():
        carry = None
        for x in xs:
            carry, _ = LAYER.step(params, carry, x)

    return run


def streams():
    params, stream = LAYER.init(KEY, D), rnnjax.make_stream(LAYER, block_size=2)
    first, second, one = XS[:, :3], XS[:, 3:], XS[:, :1]

    def run():
        carry, _ = stream(params, first)
        carry, _ = stream(params, second, initial_carry=carry)
        stream(params, one, initial_carry=carry)

    return run


def training():
    def loss_fn(params, batch, key):
        logits = CLASSIFIER.apply(params, batch["tokens"], batch["lengths"], key=key)
        loss = cross_entropy(logits, batch["labels"])
        return loss.value, {"loss": loss}

    optimizer = optax.adam(0.1)
    state = rnnjax.init_train_state(KEY, CLASSIFIER.init(KEY), optimizer)
    step, judge = (
        rnnjax.make_train_step(loss_fn, optimizer, donate_state=False),
        rnnjax.make_eval_step(loss_fn),
    )
    batch = {"tokens": TOKENS, "lengths": LENGTHS, "labels": TOKENS[:, 0]}

    def run():
        after, metrics = step(state, batch)
        after, more = step(after, batch)
        compute({name: merge(metrics[name], more[name]) for name in metrics})
        evaluate(judge, after.params, [batch, batch])
        rnnjax.check_finite(after, 5)

    return run


def long_sequences():
    def loss_fn(logits, targets, mask):
        loss = cross_entropy(logits, targets, mask)
        return loss.value, {"loss": loss}

    optimizer = optax.sgd(0.1)
    step = rnnjax.make_truncated_step(MODEL.apply, loss_fn, optimizer, k1=2, donate_state=False)
    state, batch = (
        rnnjax.init_train_state(KEY, MODEL.init(KEY), optimizer),
        rnnjax.Sequences(TOKENS, TOKENS),
    )

    def run():
        after, carry, _ = step(state, batch)
        step(after, batch, carry)

    return run


def texts():
    params, prompt = MODEL.init(KEY), TOKENS[0]
    greedy = {"max_new_tokens": 2, "sampling": rnnjax.greedy()}
    penalties = itertools.count(1)

    def run():
        number = next(penalties)  # another one in every run
        rules = rnnjax.temperature, rnnjax.repetition_penalty
        shares = rnnjax.top_p(0.9 / number), rnnjax.min_p(0.1 / number)
        out = rnnjax.generate(
            MODEL,
            params,
            TOKENS,
            LENGTHS,
            max_new_tokens=3,
            key=KEY,
            sampling=rnnjax.sample(*(rule(number) for rule in rules), *shares),
            stop=1,
        )
        last = jnp.expand_dims(out.last, -1)
        rnnjax.generate(MODEL, params, last, initial_carry=out.carry, **greedy)
        list(rnnjax.stream_text(MODEL, params, prompt, max_new_tokens=4, key=KEY, block_size=2))

    return run


def beams():
    params, start = MODEL.init(KEY), TOKENS[:, 0]
    carry = MODEL.initial_carry(params, (B,))
    return lambda: rnnjax.beam_search(
        MODEL.step, params, carry, start, stop=1, beam_size=2, max_length=3
    )


def series():
    model = rnnjax.series_model(rnnjax.gru(H), rnnjax.gaussian_mixture_head(2, 2))
    params = model.init(KEY)
    xs = XS[..., :2]
    return lambda: rnnjax.generate_series(model, params, xs, LENGTHS, max_new_steps=2, key=KEY)


def first_values():
    init, optimizer = jax.jit(LAYER.init, static_argnums=1), optax.adam(0.1)
    first = jax.jit(LAYER.initial_carry, static_argnums=1)
    start = jax.jit(lambda params: rnnjax.init_train_state(KEY, params, optimizer))

    def run():
        params = init(KEY, D)
        first(params, (B,))
        start(params)

    return run


@pytest.mark.parametrize(
    "made", [steps, streams, training, long_sequences, texts, beams, series, first_values]
)
def test_nothing_is_copied_unasked_and_nothing_compiled_again(made):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    run = made()
    with jax.transfer_guard("disallow"):
        run()
        compiled.clear()
        run()
    assert compiled == []
