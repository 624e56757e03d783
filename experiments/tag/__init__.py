"""A recurrent network that gives every word of a sentence a label: one label a step.

Run:       python -m experiments.tag
Own:       python -m experiments.tag --dataset words.conll
Go on:     python -m experiments.tag --out RUN --resume
Label:     python -m experiments.tag label RUN "the light fish can swim"
"""
