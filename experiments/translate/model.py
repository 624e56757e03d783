"""The network that the settings describe."""

from __future__ import annotations

import rnnjax
from experiments.running.cells import CELLS
from experiments.running.words import START
from experiments.translate.settings import Settings
from rnnjax.data import DataError


def build_model(
    settings: Settings, source_size: int, target_size: int
) -> rnnjax.SequenceToSequence:
    """A bidirectional encoder, a decoder, and attention where the settings say.

    Raises:
        DataError: settings that no network has.
    """
    size, make = settings.hidden_size, CELLS[settings.cell]
    inside = settings.attention in ("inside", "feeding")
    if size % 2:
        raise DataError(f"--hidden-size must be even, half for each direction, got {size}")
    if inside and settings.layers > 1:
        raise DataError(
            "--layers must be 1 where attention is inside the recurrence, "
            f"got {settings.layers}: --attention outside takes more"
        )
    attention = rnnjax.attention(settings.score)
    decoder = rnnjax.stack(*(make(size),) * settings.layers, dropout=settings.dropout)
    if inside:
        feeding = settings.attention == "feeding"
        decoder = rnnjax.attention_cell(make(size), size, attention, input_feeding=feeding)
    both_ways = rnnjax.bidirectional(make(size // 2))
    return rnnjax.sequence_to_sequence(
        rnnjax.embedding(source_size, settings.embedding_size),
        rnnjax.stack(*(both_ways,) * settings.layers, dropout=settings.dropout),
        rnnjax.embedding(target_size, settings.embedding_size),
        decoder,
        start=START,
        attention=attention if settings.attention == "outside" else None,
        head_size=settings.head_size,
        tie=settings.tie,
        dropout=settings.dropout,
    )
