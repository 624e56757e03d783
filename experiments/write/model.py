"""The network that the settings describe."""

from __future__ import annotations

import rnnjax
from experiments.running.setting_checks import check_settings
from experiments.write.settings import Settings

_CELLS = {"lstm": rnnjax.lstm, "gru": rnnjax.gru, "vanilla": rnnjax.vanilla}


def build_model(settings: Settings, vocab_size: int) -> rnnjax.LanguageModel:
    """An embedding, a stack of layers and a head.

    Raises:
        DataError: settings that no network has.
    """
    check_settings(settings)
    cell = _CELLS[settings.cell](settings.hidden_size)
    return rnnjax.language_model(
        rnnjax.embedding(vocab_size, settings.embedding_size),
        rnnjax.stack(*(cell,) * settings.layers, dropout=settings.dropout),
        tie=settings.tie,
        dropout=settings.dropout,
    )
