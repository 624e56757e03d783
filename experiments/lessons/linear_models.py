"""Linear models of the words of whole texts, which the recurrent ones are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from experiments.lessons.lesson import Measured
from experiments.running.packages import require
from rnnjax.data import Examples


def linear_model(name: str, train: Examples, test: Examples) -> Callable[[], Measured]:
    """Fits the model of that name on the training texts; its accuracy on the others."""

    def measure() -> Measured:
        pipeline = _pipeline(name)
        began = time.perf_counter()
        pipeline.fit(train.texts, train.labels)
        seconds = time.perf_counter() - began
        right = pipeline.score(test.texts, test.labels)
        return Measured({"test accuracy": float(right)}, timings={"fit s": seconds})

    return measure


def _pipeline(name: str) -> Any:
    require("scikit-learn", "sklearn")
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    made = {
        "Naive Bayes": (CountVectorizer(), MultinomialNB()),
        "TF-IDF + logistic regression": (TfidfVectorizer(), LogisticRegression(max_iter=1000)),
        "linear SVM on TF-IDF, unigrams": (TfidfVectorizer(), LinearSVC()),
        "linear SVM on TF-IDF, uni- and bigrams": (
            TfidfVectorizer(ngram_range=(1, 2)),
            LinearSVC(),
        ),
    }
    return make_pipeline(*made[name])
