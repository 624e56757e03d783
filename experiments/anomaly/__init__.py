"""A recurrent network that learns what is normal in a series, and says of every step how much it
surprises.

Run:       python -m experiments.anomaly
Own:       python -m experiments.anomaly --dataset machine.csv --label fault
Go on:     python -m experiments.anomaly --out RUN --resume
Watch:     python -m experiments.anomaly watch RUN new.csv
"""
