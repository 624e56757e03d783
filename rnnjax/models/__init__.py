"""Models: an embedding below, layers, a head above."""

from ._encoding import LinearParams as LinearParams
from .adaptive_softmax import AdaptiveSoftmax as AdaptiveSoftmax
from .adaptive_softmax import AdaptiveSoftmaxParams as AdaptiveSoftmaxParams
from .adaptive_softmax import Cluster as Cluster
from .adaptive_softmax import adaptive_softmax as adaptive_softmax
from .classifier import ClassifierParams as ClassifierParams
from .classifier import Model as Model
from .classifier import classifier as classifier
from .embedding import Embedding as Embedding
from .embedding import EmbeddingParams as EmbeddingParams
from .embedding import FrozenEmbeddingParams as FrozenEmbeddingParams
from .embedding import check_tokens as check_tokens
from .embedding import embedding as embedding
from .embedding import one_hot as one_hot
from .embedding import trainable as trainable
from .language_model import Features as Features
from .language_model import LanguageModel as LanguageModel
from .language_model import LanguageModelParams as LanguageModelParams
from .language_model import SoftmaxParams as SoftmaxParams
from .language_model import activation_penalty as activation_penalty
from .language_model import language_model as language_model
from .language_model import locked_dropout as locked_dropout
from .tagger import TaggerParams as TaggerParams
from .tagger import tagger as tagger
