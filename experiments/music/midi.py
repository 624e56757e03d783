"""Frames of keys as a MIDI file, written byte by byte.

The format is that of the Standard MIDI File, of type 0: a header, and one track of events, each
behind the number of ticks since the one before.
"""

from __future__ import annotations

import itertools

import numpy as np

from experiments.music.pieces import LOWEST, Piece
from experiments.running.setting_checks import Rule
from rnnjax.data import DataError

TICKS = 480  # a frame; the file calls that a quarter note
_LOUDNESS = 80
# The file has 24 bits for the microseconds of a frame.
TEMPO = Rule("from 4 to 60,000,000 frames a minute", lambda tempo: 4 <= tempo <= 60_000_000)


def midi_bytes(piece: Piece, tempo: float = 90.0) -> bytes:
    """A piece as a file; a key that sounds in frames one after the other is held.

    Args:
        piece: [T, 88].
        tempo: frames a minute.

    Raises:
        DataError: a tempo that the format has no number for.
    """
    if not TEMPO.holds(tempo):
        raise DataError(f"tempo must be {TEMPO.expected}, got {tempo}")
    microseconds = round(60_000_000 / tempo)
    sounds = np.pad(np.asarray(piece) > 0.5, ((1, 1), (0, 0)))
    events = [b"\x00\xff\x51\x03" + microseconds.to_bytes(3)]
    last = 0
    for time, (before, now) in enumerate(itertools.pairwise(sounds)):
        # Ends first: a key that is struck anew must not be silenced by its own end.
        changes = [(0x80, key) for key in np.flatnonzero(before & ~now)]
        changes += [(0x90, key) for key in np.flatnonzero(now & ~before)]
        for kind, key in changes:
            head = _variable_length((time - last) * TICKS)
            events.append(head + bytes((kind, LOWEST + int(key), _LOUDNESS)))
            last = time
    events.append(b"\x00\xff\x2f\x00")
    track = b"".join(events)
    header = b"MThd" + (6).to_bytes(4) + (0).to_bytes(2) + (1).to_bytes(2) + TICKS.to_bytes(2)
    return header + b"MTrk" + len(track).to_bytes(4) + track


def _variable_length(number: int) -> bytes:
    """Seven bits a byte, the highest first; all but the last byte have their own highest bit."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(0x80 | (number & 0x7F))
    return bytes(reversed(digits))
