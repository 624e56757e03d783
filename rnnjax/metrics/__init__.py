"""Metrics as sums and counts, so that a short last batch weighs what it should.

Every metric here is a `Mean`: a sum and what to divide it by. Counts of rows are integers, and
what `merge` adds up is kept in two floats, so a count stays exact over billions of rows.
"""

from .means import Mean as Mean
from .means import compute as compute
from .means import evaluate as evaluate
from .means import merge as merge
from .of_classes import accuracy as accuracy
from .of_classes import bits as bits
from .of_classes import cross_entropy as cross_entropy
from .of_classes import f1_by_class as f1_by_class
from .of_classes import perplexity as perplexity
from .of_classes import recall_by_class as recall_by_class
from .of_linear_heads import linear_cross_entropy as linear_cross_entropy
from .of_numbers import absolute_error as absolute_error
from .of_numbers import huber_error as huber_error
from .of_numbers import quantile_error as quantile_error
from .of_numbers import squared_error as squared_error
from .of_transducers import transducer_loss as transducer_loss
from .sums import Sum as Sum
