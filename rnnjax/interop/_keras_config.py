"""Whether the model that a Keras file describes computes what its weights compute here.

Every layer, and every key of its configuration, must be one that is known: a key whose value
changes what the model computes must have a value that has a counterpart here, and one that is not
known at all must be None. So a new option of Keras is refused until somebody has looked at it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Check = Callable[[Any], bool]


def _any(value: Any) -> bool:
    """Of keys that change nothing once a model is trained, or that the weights show."""
    del value
    return True


def _is(*known: Any) -> Check:
    # True == 1 in Python: a flag is no number here.
    return lambda value: any(value == one and type(value) is type(one) for one in known)


def _is_plain_dtype(value: Any) -> bool:
    """A dtype that the whole layer computes in; "mixed_float16" computes in another."""
    if isinstance(value, Mapping):
        value = value.get("config", {}).get("name")
    return value in ("float16", "bfloat16", "float32", "float64", "int32", "int64", None)


_LAYER: dict[str, Check] = {"name": _any, "trainable": _any, "dtype": _is_plain_dtype}
_INPUT = {"batch_input_shape": _any, "batch_shape": _any, "input_length": _any}


def _weights(*names: str) -> dict[str, Check]:
    parts = ("initializer", "regularizer", "constraint")
    return {f"{name}_{part}": _any for name in names for part in parts}


_RECURRENT: dict[str, Check] = {
    **_LAYER,
    **_INPUT,
    **_weights("kernel", "recurrent", "bias"),
    "units": _any,
    "use_bias": _any,
    "activation": _is("tanh"),
    "go_backwards": _is(False),
    "time_major": _is(False),
    "stateful": _is(False),
    "return_state": _is(False),
    "return_sequences": _is(True, False),
    "zero_output_for_mask": _any,  # outputs at padding, which are never read
    "unroll": _any,
    "implementation": _any,
    "activity_regularizer": _any,
    "dropout": _any,
    "recurrent_dropout": _any,
    "seed": _any,
}
_POOLING = {**_LAYER, "data_format": _is("channels_last"), "keepdims": _is(False)}
_DROPOUT = {**_LAYER, "rate": _any, "seed": _any, "noise_shape": _any, "data_format": _any}

_KNOWN: dict[str, dict[str, Check]] = {
    "InputLayer": {
        **_LAYER,
        **_INPUT,
        "sparse": _is(False),
        "ragged": _is(False),
        "optional": _is(False),
    },
    "Embedding": {
        **_LAYER,
        **_INPUT,
        **_weights("embeddings"),
        "input_dim": _any,
        "output_dim": _any,
        "mask_zero": _any,  # what is shown as padding is for the caller to say
        "activity_regularizer": _any,
        "sparse": _is(False),
        "use_one_hot_matmul": _any,
    },
    "SimpleRNN": _RECURRENT,
    "LSTM": {**_RECURRENT, "recurrent_activation": _is("sigmoid"), "unit_forget_bias": _any},
    # Which form of the GRU it is shows in its bias, or is held against the kind.
    "GRU": {**_RECURRENT, "recurrent_activation": _is("sigmoid"), "reset_after": _any},
    "Bidirectional": {
        **_LAYER,
        **_INPUT,
        "merge_mode": _is("concat"),
        "layer": _any,  # both are looked at as layers of their own
        "backward_layer": _any,
    },
    "Dropout": _DROPOUT,
    "SpatialDropout1D": _DROPOUT,
    "GlobalAveragePooling1D": _POOLING,
    "GlobalMaxPooling1D": _POOLING,
    "Dense": {
        **_LAYER,
        **_weights("kernel", "bias"),
        "units": _any,
        "use_bias": _is(True),
        "activation": _is("linear", "softmax", "sigmoid"),
        "activity_regularizer": _any,
    },
}
_CELLS = ("SimpleRNN", "LSTM", "GRU")
_POOLINGS = {"GlobalAveragePooling1D": "mean", "GlobalMaxPooling1D": "max"}


class Asked(NamedTuple):
    """What the model here will be told, as the weights do not show it.

    Attributes:
        kind: of the cells, as of ``import_keras``; None where it was not said.
        activation: the one of a ``SimpleRNN``.
        pooling: None where it is not looked at.
    """

    kind: str | None
    activation: str
    pooling: str | None


def check_config(path: Path, config: str, asked: Asked) -> None:
    """Refuse a model that has no exact counterpart, naming every option that is in the way.

    Args:
        path: the file, for the message.
        config: the JSON that Keras writes beside the weights.
        asked: what the model here will be told.

    Raises:
        ValueError: naming layers and options.
    """
    try:
        content = json.loads(config)
        written = _layers_of(content)
        masks = _masks_of_padding(written)
        kept = [one for one in written if one["config"].get("name") not in masks]
        layers = [(str(one["class_name"]), dict(one["config"])) for one in kept]
        links = [_without(masks, _inbound(one)) for one in kept]
        problems = [line for one in kept for line in _call_problems(one)]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} must have a model_config that can be read, got {error}") from None
    problems += [line for kind, layer in layers for line in _problems(kind, layer, asked)]
    problems += _order_problems(layers, links, asked.pooling)
    if problems:
        raise ValueError(
            f"{path} must have a model that is known to have a counterpart here, got:\n  "
            + "\n  ".join(problems)
        )


def _layers_of(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if content["class_name"] not in ("Sequential", "Functional", "Model"):
        raise ValueError(f"a model of class {content['class_name']!r}")
    layers = content["config"]
    # Keras 2.2 and older write the layers of a Sequential model as a list.
    return layers if isinstance(layers, list) else layers["layers"]


def _masks_of_padding(layers: list[Mapping[str, Any]]) -> set[str]:
    """The layers that compare the input with 0 and do nothing else. Keras 3 writes such a one for
    the mask of an Embedding with ``mask_zero`` in a functional model, which is for the caller to
    say."""
    inputs = [[one["config"]["name"]] for one in layers if one["class_name"] == "InputLayer"]
    masked = any(one["config"].get("mask_zero") for one in layers)
    compared = [
        one for one in layers if one["class_name"] == "NotEqual" and _inbound(one) in inputs
    ]
    return {
        str(one["config"]["name"])
        for one in compared
        if masked and one["inbound_nodes"][0]["args"][1:] == [0]
    }


def _without(masks: set[str], links: list[str] | None) -> list[str] | None:
    return None if links is None else [name for name in links if name not in masks]


def _problems(kind: str, layer: dict[str, Any], asked: Asked) -> list[str]:
    name = f"{kind} {layer.get('name', '?')!r}"
    if kind not in _KNOWN:
        return [f"{name}: layers of this class are not known"]
    known = dict(_KNOWN[kind])
    if kind == "SimpleRNN":
        known["activation"] = _is(asked.activation)
    if kind == "GRU" and not layer.get("use_bias", True):
        layer = {"reset_after": False, **layer}  # as those that do not know the option
        known["reset_after"] = _is(asked.kind == "gru") if asked.kind else lambda _: False
    problems = [
        f"{name}: {key}={_shown(value)}{_hint(kind, key)}"
        for key, value in layer.items()
        if (value is not None if key not in known else not known[key](value))
    ]
    if kind == "Dense" and layer.get("activation") == "sigmoid" and layer.get("units") != 1:
        problems.append(f"{name}: activation='sigmoid' of {layer.get('units')} units")
    if kind == "Bidirectional":
        problems += _half_problems(name, layer, asked)
    return problems


def _half_problems(name: str, layer: dict[str, Any], asked: Asked) -> list[str]:
    problems = []
    for half in ("layer", "backward_layer"):
        found = layer.get(half)
        if found is None:  # older files have no backward layer of its own
            problems += [] if half == "backward_layer" else [f"{name}: no {half}"]
            continue
        kind, config = str(found["class_name"]), dict(found["config"])
        if kind not in _CELLS:
            problems.append(f"{name}: {half} is of class {kind}")
            continue
        if half == "backward_layer":
            backwards = config.pop("go_backwards", None)
            problems += [] if backwards is True else [f"{name}: {half} does not go backwards"]
        problems += _problems(kind, config, asked)
    return problems


def _hint(kind: str, key: str) -> str:
    hints = {
        ("SimpleRNN", "activation"): " (give activation= of the SimpleRNN)",
        ("GRU", "reset_after"): " (without a bias: give kind= 'gru' if True, else "
        "'gru_reset_before')",
    }
    return hints.get((kind, key), "")


def _order_problems(
    layers: list[tuple[str, dict[str, Any]]],
    links: list[list[str] | None],
    pooling: str | None,
) -> list[str]:
    """A chain of embedding, recurrent layers that give sequences, one pool and a dense layer."""
    problems = []
    names = [str(layer.get("name")) for _, layer in layers]
    for place, found in enumerate(links):
        if found is not None and found != names[:place][-1:]:
            problems.append(f"{names[place]!r} must take the layer before it alone, got {found}")
    steps = [
        (kind, layer)
        for kind, layer in layers
        if kind not in ("InputLayer", "Dropout", "SpatialDropout1D")
    ]
    kinds = ["recurrent" if k in (*_CELLS, "Bidirectional") else k for k, _ in steps]
    pools = [kind for kind in kinds if kind in _POOLINGS]
    middle = kinds[1 : len(kinds) - 1 - len(pools)]
    whole = ["Embedding", *["recurrent"] * len(middle), *pools, "Dense"]
    if kinds != whole or not middle or len(pools) > 1:
        return [*problems, f"layers must be {_EXPECTED}, got {[k for k, _ in layers]}"]
    sequences = [_gives_sequences(kind, layer) for kind, layer in steps[1 : 1 + len(middle)]]
    if sequences != [True] * (len(middle) - 1) + [bool(pools)]:
        problems.append(
            "return_sequences must be set only where a layer or a pool over time follows"
        )
    found = _POOLINGS[pools[0]] if pools else "last"
    if pooling is not None and pooling != found:
        problems.append(f"pooling: the model has {found!r}, got pooling={pooling!r}")
    if found == "max" and steps[0][1].get("mask_zero"):
        problems.append("GlobalMaxPooling1D: over padding too in Keras, in spite of mask_zero=True")
    return problems


_EXPECTED = "Embedding, recurrent layers, at most one pool over time, Dense"


def _gives_sequences(kind: str, layer: dict[str, Any]) -> bool:
    cell = layer["layer"]["config"] if kind == "Bidirectional" else layer
    return bool(cell.get("return_sequences", False))


def _call_problems(layer: Mapping[str, Any]) -> list[str]:
    """What a layer of a functional model is given beside other layers: no weights show it."""
    name = f"{layer['class_name']} {layer['config'].get('name', '?')!r}"
    return [
        f"{name}: called with {key}={_shown(value)}"
        for key, value in _arguments(layer.get("inbound_nodes") or [])
        if not (value is None or (key, value) == ("training", False) or _is_tensor(value))
    ]


def _arguments(nodes: list[Any]) -> Iterator[tuple[str, Any]]:
    """Those of every call but, in files of Keras 2, the tensor that comes first."""
    for node in nodes:
        if isinstance(node, Mapping):
            yield from ((f"args[{place}]", value) for place, value in enumerate(node["args"]))
            yield from node["kwargs"].items()
            continue
        for call in [node] if _is_reference(node) else node:
            yield from dict(*call[3:]).items()


def _is_tensor(value: Any) -> bool:
    """Whether it is the output of a layer, or a list of such ones."""
    if isinstance(value, Mapping):
        return "keras_history" in value.get("config", {})
    return isinstance(value, list) and (
        _is_reference(value) or (bool(value) and all(map(_is_tensor, value)))
    )


def _is_reference(node: list[Any]) -> bool:
    """Whether it is as Keras 2 writes an output: ["name of the layer", 0, 0, {...}]."""
    return len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int)


def _inbound(layer: Mapping[str, Any]) -> list[str] | None:
    """The names of the layers that a layer of a functional model takes; None in a sequence."""
    nodes = layer.get("inbound_nodes")
    if nodes is None:
        return None
    if len(nodes) > 1:
        return ["more than one input"]
    names: list[str] = []
    _collect_names(nodes, names)
    return names


def _collect_names(node: Any, names: list[str]) -> None:
    if isinstance(node, Mapping):
        if "keras_history" in node:
            names.append(str(node["keras_history"][0]))
            return
        for value in node.values():
            _collect_names(value, names)
    elif isinstance(node, list):
        if _is_reference(node):
            names.append(node[0])
            node = node[3:]
        for value in node:
            _collect_names(value, names)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "class_name" in value:
        value = value.get("config", {}).get("name", value["class_name"])
    return repr(value)[:60]
