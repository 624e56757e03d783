"""A recurrent network that says what is in a picture, and looks at what it names.

Scenes:      python -m experiments.caption
The contrast: python -m experiments.caption --attention none
Hard:        python -m experiments.caption --attention hard
Own pictures: python -m experiments.caption --captions my/captions.tsv
Go on:       python -m experiments.caption --out RUN --resume
Caption:     python -m experiments.caption caption RUN picture.png
Export:      python -m experiments.caption export RUN
"""
