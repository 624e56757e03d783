"""Training as pure functions: a state, and steps made of a loss and an optimizer.

Knows no cell and no layer: a step takes any loss function of parameters and a batch.
"""

from .averaging import ParameterAverage as ParameterAverage
from .averaging import average_parameters as average_parameters
from .averaging import averaged as averaged
from .averaging import averaged_from as averaged_from
from .averaging import no_longer_improves as no_longer_improves
from .compiled import Compilation as Compilation
from .compiled import CompiledStep as CompiledStep
from .devices import replicate as replicate
from .devices import shard_batch as shard_batch
from .devices import state_shardings as state_shardings
from .early_stopping import EarlyStopping as EarlyStopping
from .lazy_adam import LazyAdamState as LazyAdamState
from .lazy_adam import init_lazy_adam as init_lazy_adam
from .lazy_adam import lazy_adam_params as lazy_adam_params
from .lazy_adam import make_lazy_adam_step as make_lazy_adam_step
from .loss_functions import LossFn as LossFn
from .loss_functions import Metrics as Metrics
from .steps import make_accumulating_step as make_accumulating_step
from .steps import make_eval_step as make_eval_step
from .steps import make_train_step as make_train_step
from .truncated import Sequences as Sequences
from .truncated import TruncatedStep as TruncatedStep
from .truncated import make_truncated_step as make_truncated_step
from .updates import NonFiniteError as NonFiniteError
from .updates import TrainState as TrainState
from .updates import apply_gradients as apply_gradients
from .updates import check_finite as check_finite
from .updates import init_train_state as init_train_state
