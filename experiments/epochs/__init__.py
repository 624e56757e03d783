"""Whole epochs of training, input pipeline included, beside PyTorch and Keras.

Run:     python -m experiments.epochs --dataset ag_news --data-dir DATA
"""
