"""Texts and series out of a model: sampling, and the loop that feeds each value back.

Knows a model's ``step``, and no cell.
"""

from .beam_search import Beams as Beams
from .beam_search import beam_search as beam_search
from .generate import Generated as Generated
from .generate import generate as generate
from .generate import stream_text as stream_text
from .generate_series import GeneratedSeries as GeneratedSeries
from .generate_series import generate_series as generate_series
from .sampling import History as History
from .sampling import Sampling as Sampling
from .sampling import forbid as forbid
from .sampling import greedy as greedy
from .sampling import min_length as min_length
from .sampling import min_p as min_p
from .sampling import repetition_penalty as repetition_penalty
from .sampling import sample as sample
from .sampling import temperature as temperature
from .sampling import top_k as top_k
from .sampling import top_p as top_p
from .scheduled_sampling import scheduled_sampling as scheduled_sampling
