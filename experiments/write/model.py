"""The network that the settings describe."""

from __future__ import annotations

import rnnjax
from experiments.write.settings import Settings
from rnnjax.data import DataError

_CELLS = {"lstm": rnnjax.lstm, "gru": rnnjax.gru, "vanilla": rnnjax.vanilla}


def build_model(settings: Settings, vocab_size: int) -> rnnjax.LanguageModel:
    """An embedding, a stack of layers and a head.

    Raises:
        DataError: settings that no network has.
    """
    if not 1 <= settings.layers <= 100:
        raise DataError(f"layers: expected 1 to 100, got {settings.layers}")
    cell = _CELLS[settings.cell](settings.hidden_size)
    return rnnjax.language_model(
        rnnjax.embedding(vocab_size, settings.embedding_size),
        rnnjax.stack(*(cell,) * settings.layers, dropout=settings.dropout),
        tie=settings.tie,
        dropout=settings.dropout,
    )
