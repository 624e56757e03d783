"""A recurrent network that composes: taught on chorales, it writes pieces of its own.

Run:       python -m experiments.music
Chorales:  python -m experiments.music --data-dir DATA
Own:       python -m experiments.music --dataset pieces.json
Go on:     python -m experiments.music --out RUN --resume
Compose:   python -m experiments.music compose RUN --steps 64 --out piece.mid
"""
