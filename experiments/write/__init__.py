"""A recurrent network that writes: trained on any text, by characters or by words.

Run:       python -m experiments.write
Shakespeare: python -m experiments.write --dataset tiny_shakespeare --data-dir DATA
Own text:  python -m experiments.write --dataset book.txt
Go on:     python -m experiments.write --out RUN --resume
Write:     python -m experiments.write generate RUN "ROMEO:" --temperature 0.8 --stream
"""
