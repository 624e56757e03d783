"""A recurrent network that makes one sequence of another: generated tasks, or sentences.

Generated:   python -m experiments.translate --task reverse       (or copy, add)
The contrast: python -m experiments.translate --task reverse --attention none
Multi30k:    python -m experiments.translate --pair de-en --data-dir DATA
Own pairs:   python -m experiments.translate --pair pairs.tsv   (or train.de --targets train.en)
Go on:       python -m experiments.translate --out RUN --resume
Export:      python -m experiments.translate export RUN
Translate:   python -m experiments.translate translate RUN "ein Mann schläft ." --beam 5
A file:      python -m experiments.translate translate RUN < sentences.txt
"""
