"""A recurrent network that forecasts series with a band, beside forecasts that take no learning.

Run:       python -m experiments.forecast
Real:      python -m experiments.forecast --dataset airline
Own:       python -m experiments.forecast --dataset sales.csv --season 12
Go on:     python -m experiments.forecast --out RUN --resume
Predict:   python -m experiments.forecast predict RUN sales.csv
"""
