"""What surrounds recurrence: other layers, models, tools, other machines, other people.

Most of it other libraries have and rnnjax has not: who needs one of these should take one of
those, or, within JAX, both.
"""

from __future__ import annotations

from importlib import metadata

import jax
import jax.numpy as jnp

from experiments.features.claims import (
    OURS,
    Feature,
    has,
    has_arguments,
    is_from_index,
    lacks_names,
    mentions,
    no,
    part,
    yes,
)

TORCH_TUTORIALS = "https://docs.pytorch.org/tutorials/"
KERAS_EXAMPLES = "https://keras.io/examples/"
FLAX_GUIDES = "https://flax.readthedocs.io/en/stable/"
HAIKU_EXAMPLES = "https://github.com/google-deepmind/dm-haiku/tree/main/examples"
EQUINOX_EXAMPLES = "https://docs.kidger.site/equinox/"


def jit_compiles_every_length() -> bool:
    """That ``jax.jit`` traces, and so compiles, anew for every shape: so does all that uses it."""
    traced = []
    step = jax.jit(lambda xs: traced.append(xs.shape) or xs)
    for length in (2, 3, 2):
        step(jnp.ones(length))
    return len(traced) == 2


def table() -> list[Feature]:
    return [
        Feature(
            "self-attention with several heads",
            no(lacks_names("rnnjax", "multihead", "multi_head", "self_attention")),
            (
                yes(has("flax.nnx:MultiHeadAttention")),
                yes(has("flax.linen:MultiHeadDotProductAttention")),
                yes(has("haiku:MultiHeadAttention")),
                yes(has("equinox.nn:MultiheadAttention")),
                yes(has("keras.layers:MultiHeadAttention")),
                yes(has("torch.nn:MultiheadAttention")),
            ),
        ),
        Feature(
            "Transformer encoders and decoders as layers",
            no(lacks_names("rnnjax", "transformer")),
            (
                no(lacks_names("flax.nnx", "transformer", "encoderlayer")),
                no(lacks_names("flax.linen", "transformer", "encoderlayer")),
                no(lacks_names("haiku.nets", "transformer", "encoderlayer")),
                no(lacks_names("equinox.nn", "transformer", "encoderlayer")),
                no(lacks_names("keras.layers", "transformer", "encoderlayer")),
                yes(has("torch.nn:TransformerEncoder", "torch.nn:TransformerDecoder")),
            ),
        ),
        Feature(
            "convolutions, pooling and batch normalisation",
            part(has("rnnjax:conv_lstm", "rnnjax:layer_norm")),
            (
                yes(has("flax.nnx:Conv", "flax.nnx:BatchNorm")),
                yes(has("flax.linen:Conv", "flax.linen:BatchNorm")),
                yes(has("haiku:Conv2D", "haiku:BatchNorm")),
                yes(has("equinox.nn:Conv2d", "equinox.nn:BatchNorm")),
                yes(has("keras.layers:Conv2D", "keras.layers:BatchNormalization")),
                yes(has("torch.nn:Conv2d", "torch.nn:BatchNorm2d")),
            ),
        ),
        Feature(
            "a zoo of pretrained models",
            no(lacks_names("rnnjax", "pretrained", "applications", "hub")),
            (
                no(lacks_names("flax.nnx", "pretrained", "applications", "hub")),
                no(lacks_names("flax.linen", "pretrained", "applications", "hub")),
                no(lacks_names("haiku.nets", "pretrained", "load")),
                no(lacks_names("equinox.nn", "pretrained", "load", "hub")),
                yes(has("keras.applications:ResNet50")),
                yes(has("torch.hub:load")),
            ),
        ),
        Feature(
            "training in one call",
            no(lacks_names("rnnjax.training", "fit", "trainer")),
            (
                no(lacks_names("flax.nnx", "fit", "trainer")),
                no(lacks_names("flax.linen", "fit", "trainer")),
                no(lacks_names("haiku", "fit", "trainer")),
                no(lacks_names("equinox", "fit", "trainer")),
                yes(has("keras:Model.fit")),
                no(lacks_names("torch.nn:Module", "fit", "trainer")),
            ),
        ),
        Feature(
            "batches made by several processes",
            no(lacks_names("rnnjax.data", "worker", "loader")),
            (
                no(lacks_names("flax.nnx", "dataloader", "dataset")),
                no(lacks_names("flax.linen", "dataloader", "dataset")),
                no(lacks_names("haiku", "dataloader", "dataset")),
                no(lacks_names("equinox", "dataloader", "dataset")),
                yes(has_arguments("keras.utils:PyDataset.__init__", "workers")),
                yes(has_arguments("torch.utils.data:DataLoader.__init__", "num_workers")),
            ),
        ),
        Feature(
            "a batch of a new length compiles nothing",
            no(jit_compiles_every_length),
            (
                no(jit_compiles_every_length),
                no(jit_compiles_every_length),
                no(jit_compiles_every_length),
                no(jit_compiles_every_length),
                part("https://keras.io/getting_started/#configuring-your-backend"),
                yes(has_arguments("torch:compile", "dynamic")),
            ),
        ),
        Feature(
            "the recurrent kernels of cuDNN",
            no(lacks_names("rnnjax.interop", "cudnn")),
            (
                no(lacks_names("flax.nnx", "cudnn")),
                no(lacks_names("flax.linen", "cudnn")),
                no(lacks_names("haiku", "cudnn")),
                no(lacks_names("equinox.nn", "cudnn")),
                yes(has_arguments("keras.layers:LSTM.__init__", "use_cudnn")),
                yes(has("torch.backends.cudnn:is_available")),
            ),
        ),
        Feature(
            "quantisation to whole numbers",
            no(lacks_names("rnnjax", "quantiz", "quantis", "int8")),
            (
                no(lacks_names("flax.nnx", "quant", "int8")),
                no(lacks_names("flax.linen", "quant", "int8")),
                no(lacks_names("haiku", "quant", "int8")),
                no(lacks_names("equinox.nn", "quant", "int8")),
                yes(has("keras:Model.quantize")),
                yes(has("torch.ao.quantization:quantize_dynamic")),
            ),
        ),
        Feature(
            "export for telephones",
            part(has("rnnjax.interop.onnx_graph:export_classifier")),
            (
                no(lacks_names("flax.nnx", "export", "litert", "onnx")),
                no(lacks_names("flax.linen", "export", "litert", "onnx")),
                no(lacks_names("haiku", "export", "litert", "onnx")),
                no(lacks_names("equinox", "export", "litert", "onnx")),
                yes(mentions("keras:Model.export", "litert")),
                yes("https://docs.pytorch.org/executorch/stable/index.html"),
            ),
        ),
        Feature(
            "a page of recipes for many machines, TPU pods among them",
            no(lacks_names("rnnjax", "pod", "multihost", "multi_host")),
            (
                yes("https://flax.readthedocs.io/en/stable/guides/flax_gspmd.html"),
                yes("https://flax.readthedocs.io/en/stable/guides/flax_gspmd.html"),
                no(lacks_names("haiku", "shard", "partition", "mesh")),
                part(has("equinox:filter_shard")),
                yes("https://keras.io/guides/distribution/"),
                yes("https://docs.pytorch.org/tutorials/beginner/dist_overview.html"),
            ),
        ),
        Feature(
            "a dashboard of the run in a browser",
            no(lacks_names("rnnjax", "tensorboard", "dashboard")),
            (
                part("https://flax.readthedocs.io/en/v0.8.3/api_reference/flax.metrics.html"),
                part("https://flax.readthedocs.io/en/v0.8.3/api_reference/flax.metrics.html"),
                no(lacks_names("haiku", "tensorboard", "dashboard")),
                no(lacks_names("equinox", "tensorboard", "dashboard")),
                yes(has("keras.callbacks:TensorBoard")),
                yes("https://docs.pytorch.org/docs/stable/tensorboard.html"),
            ),
        ),
        Feature(
            "published: installed by its name alone",
            no(lambda: not is_from_index(OURS)),
            (
                yes(lambda: is_from_index("flax")),
                yes(lambda: is_from_index("flax")),
                yes(lambda: is_from_index("dm-haiku")),
                yes(lambda: is_from_index("equinox")),
                yes(lambda: is_from_index("keras")),
                yes(lambda: is_from_index("torch")),
            ),
        ),
        Feature(
            "a site of documents with tutorials",
            no(_has_no_site),
            (
                yes(FLAX_GUIDES),
                yes(FLAX_GUIDES),
                yes(HAIKU_EXAMPLES),
                yes(EQUINOX_EXAMPLES),
                yes(KERAS_EXAMPLES),
                yes(TORCH_TUTORIALS),
            ),
        ),
        Feature(
            "a community: contributors beyond its makers, a forum, packages built on it",
            no(lambda: not is_from_index(OURS)),
            (
                yes("https://github.com/google/flax"),
                yes("https://github.com/google/flax"),
                yes("https://github.com/google-deepmind/dm-haiku"),
                yes("https://github.com/patrick-kidger/equinox"),
                yes("https://keras.io/getting_started/ecosystem/"),
                yes("https://pytorch.org/community-hub/"),
            ),
        ),
    ]


def _has_no_site() -> bool:
    """That the package names no site of documents: a published one has "Documentation"."""
    try:
        urls = metadata.metadata(OURS).get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    return not any("documentation" in url.lower() for url in urls)
