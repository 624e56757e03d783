"""The network that the settings describe."""

from __future__ import annotations

import rnnjax
from experiments.running.cells import CELLS
from experiments.running.setting_checks import check_settings
from experiments.write.settings import Settings


def build_model(settings: Settings, vocab_size: int) -> rnnjax.LanguageModel:
    """An embedding, a stack of layers and a head.

    Raises:
        DataError: settings that no network has.
    """
    check_settings(settings)
    cell = CELLS[settings.cell](settings.hidden_size)
    return rnnjax.language_model(
        rnnjax.embedding(vocab_size, settings.embedding_size),
        rnnjax.stack(*(cell,) * settings.layers, dropout=settings.dropout),
        tie=settings.tie,
        dropout=settings.dropout,
    )
