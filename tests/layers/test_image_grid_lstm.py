"""The grid over images beside its blocks one by one, place after place, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import EXACT, assert_trees_equal

import rnnjax

pytestmark = pytest.mark.usefixtures("float64", "quick_compile")

B, R, C, D, H, L = 2, 3, 4, 2, 3, 2
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).normal(size=(B, R, C, D))
CASES = {
    "tied": {},
    "untied": {"tied": False, "output": "outside"},
    "no priority": {"priority": None},
    "down": {"priority": "down", "tied": False},
    "right": {"priority": "right", "corner": "bottom right"},
    "bottom left": {"corner": "bottom left"},
    "top right": {"corner": "top right", "priority": None},
}


def made(**options):
    grid = rnnjax.image_grid_lstm(H, L, **options)
    return grid, jax.tree.map(lambda a: a.astype(jnp.float64), grid.init(KEY, D))


def sigmoid(x, np=np):
    return 1 / (1 + np.exp(-x))


def by_blocks(params, image, options, np=np):
    """One image, block after block: three loops and nothing else."""
    corner, output = options.get("corner", "top left"), options.get("output", "inside")
    priority = options.get("priority", "depth")
    rows, columns = image.shape[:2]
    zero = (np.zeros(H), np.zeros(H))
    down_rows = range(rows)[:: -1 if "bottom" in corner else 1]
    right_columns = range(columns)[:: -1 if "right" in corner else 1]
    first = {rc: image[rc] @ params.w + params.bias for rc in np_index(rows, columns)}
    depth = {rc: (a[:H], a[H:]) for rc, a in first.items()}
    for layer in range(L):
        sides = [params.down, params.right, params.depth]
        if not options.get("tied", True):
            sides = [type(s)(s.w[layer], s.bias[layer]) for s in sides]
        new, above = {}, {}
        for r in down_rows:
            left = zero
            for c in right_columns:
                states = [above.get(c, zero), left, depth[r, c]]

                def step(k, outputs, states=states, sides=sides):
                    i, f, g, o = np.split(np.concatenate(outputs) @ sides[k].w + sides[k].bias, 4)
                    m = sigmoid(f, np) * states[k][1] + sigmoid(i, np) * np.tanh(g)
                    gate = sigmoid(o, np)
                    return (np.tanh(gate * m) if output == "inside" else gate * np.tanh(m)), m

                old = [h for h, _ in states]
                found = [step(k, old) for k in range(3)]
                if priority is not None:
                    last = ("down", "right", "depth").index(priority)
                    heard = [old[k] if k == last else found[k][0] for k in range(3)]
                    found[last] = step(last, heard)
                above[c], left, new[r, c] = found
        depth = new
    return np.stack([np.stack([depth[r, c][0] for c in range(columns)]) for r in range(rows)])


def np_index(rows, columns):
    return [(r, c) for r in range(rows) for c in range(columns)]


SAMPLE = ("untied", "right")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in SAMPLE else pytest.mark.full) for c in CASES]
)
def test_a_grid_over_images_is_its_blocks_one_by_one_in_numpy(case):
    grid, params = made(**CASES[case])
    found = grid.apply(params, IMAGES)
    arrays = jax.tree.map(np.asarray, params)
    expected = np.stack([by_blocks(arrays, image, CASES[case]) for image in IMAGES])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.full
def test_gradients_are_those_of_the_blocks_one_by_one():
    case = "down"
    grid, params = made(**CASES[case])
    image = jnp.asarray(IMAGES[0, :2, :2])

    def gradients(run):
        return jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.sin(run(p, x))), (0, 1)))(params, image)

    expected = gradients(lambda p, x: by_blocks(p, x, CASES[case], jnp))
    assert_trees_equal(gradients(grid.apply), expected)


@pytest.mark.parametrize("corner", ["top left", "bottom right"])
def test_padding_is_never_read_and_changes_nothing(corner):
    grid, params = made(corner=corner)
    mask = np.zeros((B, R, C), bool)
    mask[0, :2, :3] = mask[1] = True
    dirty = np.where(mask[..., None], IMAGES, np.nan)

    def loss(params, images):
        ys = grid.apply(params, images, mask=mask)
        return jnp.sum(jnp.sin(ys)), ys

    (_, ys), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, dirty)
    alone = grid.apply(params, IMAGES[0, :2, :3])
    np.testing.assert_allclose(ys[0, :2, :3], alone, **EXACT)
    assert not np.any(np.asarray(ys)[~mask])
    assert not np.any(np.asarray(gradients[1])[~mask])
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradients))


def test_one_row_is_a_grid_over_time_and_depth():
    grid, params = made()
    depth = params.depth._replace(w=params.depth.w.at[:H].set(0.0))  # deaf to down
    found = grid.apply(params._replace(depth=depth), IMAGES[:, :1])
    time, depth = (side._replace(w=side.w[H:]) for side in (params.right, depth))
    flat = rnnjax.GridLSTMParams(params.w, params.bias, time, depth)
    _, expected = rnnjax.grid_lstm(H, L).apply(flat, IMAGES[:, 0])
    np.testing.assert_allclose(found[:, 0], expected, **EXACT)


def test_the_first_weights_are_of_the_initializer():
    grid = rnnjax.image_grid_lstm(H, 2, tied=False, initializer="keras")
    sides = grid.init(jax.random.key(0), D)[2:]
    for place, side in enumerate(sides):
        for w, bias in zip(side.w, side.bias, strict=True):
            own = w[place * H : (place + 1) * H]
            np.testing.assert_allclose(own @ own.T, np.eye(H), atol=1e-6)
            np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], H))
    assert len({float(w[0, 0]) for side in sides for w in side.w}) == 6  # each drawn by itself


def test_tied_layers_are_untied_ones_of_equal_weights_and_batch_axes_are_free():
    grid, params = made()
    copied = (jax.tree.map(lambda a: jnp.stack([a] * L), side) for side in params[2:])
    untied = rnnjax.image_grid_lstm(H, L, tied=False)
    found = untied.apply(rnnjax.ImageGridParams(params.w, params.bias, *copied), IMAGES[None])
    expected = grid.apply(params, IMAGES)
    np.testing.assert_allclose(found[0], expected, **EXACT)
    np.testing.assert_allclose(grid.apply(params, IMAGES[0]), expected[0], **EXACT)


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 3, 0), (0, 3, 4)])
def test_an_image_without_places_gives_none(shape):
    grid = rnnjax.image_grid_lstm(3, 2)
    params, mask = grid.init(jax.random.key(0), 2), jnp.ones(shape, bool)
    found = grid.apply(params, jnp.ones((*shape, 2)), mask=mask)
    assert found.shape == (*shape, 3)
    assert found.dtype == jnp.float32


BAD = {
    "an unknown side": (lambda: rnnjax.image_grid_lstm(H, L, priority="up"), "priority must be"),
    "an unknown corner": (lambda: rnnjax.image_grid_lstm(H, L, corner="middle"), "corner must be"),
    "an image of another size": (
        lambda: made()[0].apply(made()[1], IMAGES[..., :1]),
        "images must",
    ),
    "untied parameters": (
        lambda: made()[0].apply(made(tied=False)[1], IMAGES),
        "params must be ImageGridParams",
    ),
    "a mask of another shape": (
        lambda: made()[0].apply(made()[1], IMAGES, mask=np.ones((B, R), bool)),
        "mask",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    run, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        run()
