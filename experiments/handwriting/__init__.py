"""A recurrent network that writes by hand: given a text, it draws pen strokes point by point.

Run:       python -m experiments.handwriting
Fonts:     python -m experiments.handwriting --font scripts
Own:       python -m experiments.handwriting --pairs written.jsonl
Go on:     python -m experiments.handwriting --out RUN --resume
Write:     python -m experiments.handwriting write RUN "any sentence" --bias 2 --seed 0
A hand:    python -m experiments.handwriting write RUN "any sentence" --like written.jsonl
"""
