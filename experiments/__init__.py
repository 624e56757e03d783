"""One script a question, and what they share: a console, a run folder and curves."""
