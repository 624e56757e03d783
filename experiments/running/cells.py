"""The cells that most programs offer, by the names that ``--cell`` takes."""

from __future__ import annotations

import rnnjax

CELLS = {"gru": rnnjax.gru, "lstm": rnnjax.lstm, "vanilla": rnnjax.vanilla}
