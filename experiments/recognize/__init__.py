"""A recurrent network that says of a whole series what kind it is: one label for many steps.

Run:       python -m experiments.recognize
Own:       python -m experiments.recognize --dataset gestures.csv
Go on:     python -m experiments.recognize --out RUN --resume
Label:     python -m experiments.recognize predict RUN new.csv
"""
