"""Heads with densities: from the output of a layer to a distribution of the next value.

A ``Head`` is a linear map to the parameters of a distribution, with the logarithm of its density,
a loss as sum and count, and draws from it. A head knows no layer and no time.
"""

from .bernoulli import bernoulli_head as bernoulli_head
from .categorical import categorical_head as categorical_head
from .gaussian_mixture import GaussianMixture as GaussianMixture
from .gaussian_mixture import gaussian_mixture_head as gaussian_mixture_head
from .head import Head as Head
from .head import HeadParams as HeadParams
from .joint import joint_head as joint_head
from .quantile import quantile_head as quantile_head
