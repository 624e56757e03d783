"""The systems of five teaching texts on recurrent networks, each in a script of its own.

All:     python -m experiments.lessons --take 2000 --seeds 3 --out runs/lessons
One:     python -m experiments.lessons.keras_simple_rnn --take 2000 --seeds 3
"""

# In reading order.
LESSONS = (
    "data_handling",
    "keras_simple_rnn",
    "keras_lstm",
    "keras_bilstm",
    "keras_vectorizer",
    "torch_rnn",
    "torch_lstm",
    "imdb_lstm",
    "tuned",
    "pretrained_vectors",
    "order_matters",
    "gradients_through_time",
    "gate_as_flag",
    "long_distance",
    "grid_lstm",
    "parity",
    "uneven_steps",
    "long_memory",
    "learning_rate",
    "count_to_three",
    "digits",
)
