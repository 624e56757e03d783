"""Small faults put into the code one at a time, and the tests that must notice each of them.

Run:     python tests/mutations.py                       (all; about ten minutes alone)
         python tests/mutations.py masking.py stack      (those whose file or text has such a word)
Expect:  one line a fault, and last how many were noticed, which must be all; exit code 1 otherwise

Each fault is made in a copy of the project, and only the tests named with it are run. Before that
these tests must pass without any fault. A fault that nothing notices needs a test, not another row.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-p", "no:cacheprovider"]
PASSED, FAILED = 0, 1  # exit codes of pytest; others say that it could not run the tests


class Fault(NamedTuple):
    """A place of the code, what stands there in its stead, and the tests that must fail by it."""

    file: str  # below rnnjax/
    text: str  # occurs once in the file
    instead: str
    tests: tuple[str, ...]  # below tests/


def _of(file: str, *rows: tuple[str, str, str | tuple[str, ...]]) -> list[Fault]:
    """The faults of one file: text, replacement, and the test or tests."""
    return [
        Fault(file, text, instead, (tests,) if isinstance(tests, str) else tests)
        for text, instead, tests in rows
    ]


LAW = "test_sequence_law.py::"
ALONE = LAW + "test_a_batch_is_each_sequence_alone"
OPTIONS = "engine/test_unroll_options.py::"
PARALLEL = "engine/test_associative.py::"
SEGMENTS = "engine/test_segments.py::"
LAYERS = "layers/test_layers.py::"
MLSTM = "cells/test_mlstm.py::"
DELTA = "cells/test_gated_delta.py::"
NOISE = "transforms/test_regularizers.py::"
TRAIN = "training/test_training.py::"
FINITE = "training/test_nonfinite.py::"
TRUNCATED = "training/test_truncated.py::"
METRICS = "training/test_metrics.py::"
BATCHES = "data/test_batching.py::"
PACKING = "data/test_packing.py::"
MODELS = "models/test_models.py::"
TRANSLATOR = "models/test_sequence_to_sequence.py::"
REFERENCE = "reference/test_reference_numpy.py::"
BLOCKS = "layers/test_blocks.py::"
HEADS = "heads/test_heads.py::"
WRITTEN = "decoding/test_generate_series.py::"
TEXTS = "decoding/test_generate.py::"

FAULTS = [
    *_of(
        "engine/_loop.py",
        # A reset is passed over where no gradient is taken.
        (
            "        carry = reset(at, weights.reset_carry, carry)\n        h = hidden_of",
            "        h = hidden_of",
            f"{LAW}test_both_directions_see_the_same_segments[lstm]",
        ),
    ),
    *_of(
        "engine/_step.py",
        # The carry runs on through padding; outputs there are not zero.
        ("select(at.valid, new, held), zero", "new, zero", f"{ALONE}[lstm-lengths]"),
        ("held), zero_padding(at.valid, y)", "held), y", f"{ALONE}[lstm-lengths]"),
    ),
    *_of(
        "engine/_products.py",
        (
            "return h.astype(wide) * noise.astype(wide)",
            "return h.astype(wide)",
            f"{NOISE}test_variational_dropout_and_weight_drop_are_their_equations",
        ),
    ),
    *_of(
        "engine/_derivative.py",
        # A reset or the padding is passed over in the derivative alone.
        ("d_carry = reset(now, d_reset_carry, d_carry)", "pass", f"{ALONE}[lstm-resets]"),
        (
            "hold(loop, now, d_carry, d_new, d_y)",
            "hold(loop, now._replace(valid=None), d_carry, d_new, d_y)",
            f"{ALONE}[lstm-lengths]",
        ),
        # The derivative leaves out the weights, or the noise of the hidden state.
        (
            "multiply_transposed(d_h, w_t) + d_sum",
            "multiply_transposed(d_h, w_t)",
            f"{ALONE}[gru-all]",
        ),
        (
            "if has_tangent(d_weights.hidden_noise):",
            "if False:",
            f"{OPTIONS}test_noise_of_every_kind_is_applied_and_differentiated[lstm-None]",
        ),
        # Outputs stand for the hidden state although a reset has replaced it, or a step too late.
        (
            "usage.y_is_hidden and inputs.resets is None",
            "usage.y_is_hidden",
            f"{ALONE}[vanilla-resets]",
        ),
        (
            "((-1, 1, 0), ys.shape[0] - 1) if loop.reverse",
            "((-1, 1, 0), 0) if loop.reverse",
            f"{OPTIONS}test_outputs_that_are_the_state_are_found_again_by_the_derivative[5-True]",
        ),
        # A gate is computed again instead of kept: nothing but speed and memory changes.
        (
            '"abs", "add",',
            '"abs", "logistic", "add",',
            "engine/test_residual_bytes.py::"
            "test_a_step_keeps_so_many_numbers_per_hidden_unit_and_its_input[lstm]",
        ),
    ),
    *_of(
        "engine/_accumulation.py",
        (
            "return leaf.astype(accumulation_dtype(leaf.dtype)) if _is_float(leaf) else leaf",
            "return leaf",
            f"{OPTIONS}test_bfloat16_gradients_of_parameters_read_in_the_loop_are_summed_wider"
            "[peephole-None]",
        ),
        # What runs in parallel over time computes in wider numbers than the loop.
        (
            "        linear=reads_narrow(cell.linear),\n",
            "",
            "engine/test_dtypes_of_a_step.py::"
            "test_every_function_reads_parameters_in_their_own_dtypes",
        ),
    ),
    *_of(
        "engine/_associative.py",
        # The flags of two halves are not joined: NaN crosses into the next segment.
        (
            "flags = (earlier[2] | later[2],)",
            "flags = (later[2],)",
            f"{PARALLEL}test_no_state_crosses_a_start_wherever_it_is",
        ),
        # The decay of a start, NaN, reaches the gradient of the segment before.
        (
            "(forget(starts, decay), drive, starts)",
            "(decay, drive, starts)",
            f"{PARALLEL}test_the_decay_of_a_start_is_never_read",
        ),
        (
            "crossings = None if starts is None else shift(starts, not reverse)",
            "crossings = starts",
            f"{PARALLEL}test_a_batch_is_each_sequence_alone[users_own-False]",
        ),
        (
            "decay = select(inputs.valid, decay, jnp.ones_like(decay))",
            "pass",
            f"{PARALLEL}test_a_batch_is_each_sequence_alone[users_own-False]",
        ),
        (
            "select(starts, decay * reset_carry[None] + drive, drive)",
            "select(starts, drive, drive)",
            f"{PARALLEL}test_a_batch_is_each_sequence_alone[users_own-False]",
        ),
        (
            "return jnp.swapaxes(decay, -1, -2) if _is_matrix(decay, drive) else decay",
            "return decay",
            f"{PARALLEL}test_derivatives_of_both_orders_equal_finite_differences",
        ),
    ),
    *_of(
        "engine/_prepare.py",
        (
            "(valid, resets, masking.zero_padding(valid, call.xs))",
            "(valid, resets, call.xs)",
            f"{LAW}test_padding_is_never_read[lstm]",
        ),
        (
            "lambda x, factor: noisy(x, factor[None]), xs",
            "lambda x, factor: x, xs",
            f"{NOISE}test_variational_dropout_and_weight_drop_are_their_equations",
        ),
        # The factor of noise is rounded to the 16 bits of the weights, and then their product.
        (
            "(w_hh.astype(noise.recurrent.dtype) * noise.recurrent).astype(w_hh.dtype)",
            "w_hh * noise.recurrent.astype(w_hh.dtype)",
            f"{NOISE}test_weights_of_16_bits_are_rounded_once_after_weight_drop",
        ),
    ),
    *_of(
        "engine/_run.py",
        (
            "        results.reverse()",
            "        pass",
            f"{OPTIONS}test_remat_changes_neither_values_nor_gradients[lstm-True]",
        ),
        (
            "if plan.recompute:",
            "if False:",
            f"{OPTIONS}test_chunks_keep_one_carry_each_and_not_the_gates",
        ),
        (
            "[rest, start[None]] if loop.reverse else",
            "[rest, start[None]] if not loop.reverse else",
            f"{OPTIONS}test_all_carries_are_those_of_single_steps[lstm-True]",
        ),
    ),
    *_of(
        "masking.py",
        # A flag on a masked step is read; in reverse, the step next in time counts, real or not.
        (
            "starts = resets if valid is None else resets & valid",
            "starts = resets",
            f"{ALONE}[lstm-all]",
        ),
        (
            "valid & _at_next_real_step(following, _shift_back(valid))",
            "valid & following",
            f"{ALONE}[lstm_reverse-all]",
        ),
        (
            "lambda: jnp.argmax(valid, -1))",
            "lambda: 0 * jnp.argmax(valid, -1))",
            f"{LAYERS}test_the_last_output_of_a_mask_is_at_its_first_and_last_real_step",
        ),
        (
            "return (total / jnp.maximum(count, 1))",
            "return (total / ys.shape[-2])",
            f"{MODELS}test_pools_are_over_valid_steps_only",
        ),
        (
            "select(valid, ys, lowest), axis=-2",
            "zero_padding(valid, ys), axis=-2",
            f"{MODELS}test_pools_are_over_valid_steps_only",
        ),
    ),
    *_of(
        "segments.py",
        (
            "~_delayed(dones, previous, delay - 1)",
            "~_delayed(dones, previous, delay)",
            f"{SEGMENTS}test_resets_stand_where_the_environment_shows_a_first_observation",
        ),
        (
            "starts = valid & (resets | (jnp.cumsum(valid, -1) == 1))",
            "starts = valid & resets",
            f"{SEGMENTS}test_segments_are_numbered_in_the_order_of_rows_and_time",
        ),
        (
            "return (ids != 0) & (ids != before)",
            "return ids != before",
            f"{PACKING}test_resets_can_be_told_from_the_segment_ids",
        ),
        (
            "[0 if reverse else 1], carries)",
            "[1], carries)",
            f"{SEGMENTS}test_final_carries_stand_at_the_end_where_the_run_left_the_segment[True]",
        ),
    ),
    *_of(
        "cells/mlstm.py",
        (
            "m = jnp.where(started, _larger(m, jnp.full_like(m, -origin)), m)",
            "m = _larger(m, jnp.full_like(m, -origin))",
            MLSTM + "test_chunks_of_any_length_are_each_sequence_alone",
        ),
    ),
    *_of(
        "cells/_matrix_memory.py",
        (
            "before & (count[:, None] == count[None]), count > 0",
            "before, count > 0",
            MLSTM + "test_chunks_of_any_length_are_each_sequence_alone",
        ),
        (
            "return product(own, later), jnp.sum(own, axis=1)",
            "total = jnp.cumsum(log_decay); return total[:, None] - total, jnp.sum(own, axis=1)",
            MLSTM + "test_a_chunk_in_float32_keeps_its_digits_behind_gates_that_are_shut",
        ),
    ),
    *_of(
        "cells/gated_delta.py",
        (
            "beta, log_decay = jnp.where(valid, beta, 0.0), jnp.where(valid, log_decay, 0.0)",
            "log_decay = jnp.where(valid, log_decay, 0.0)",
            DELTA + "test_chunks_of_any_length_are_each_sequence_alone",
        ),
        (
            "beta[:, None] * left * product(k, k.T), -1)",
            "left * product(k, k.T), -1)",
            DELTA + "test_values_are_those_of_the_equations",
        ),
        (
            "        memory = jnp.where(is_fresh[-1], reset_memory, memory)",
            "        pass",
            DELTA + "test_chunks_of_any_length_are_each_sequence_alone",
        ),
    ),
    *_of(
        "engine/_chunked.py",
        (
            "jnp.flip(a, 0)",
            "a",
            MLSTM + "test_chunks_of_any_length_are_each_sequence_alone",
        ),
        # A step that is not finite spoils the next segment, or the steps before it.
        (
            "lax.cummax(before_segment, axis=0)",
            "before_segment",
            MLSTM + "test_a_bad_step_ends_with_its_segment_and_is_bad_by_any_piece",
        ),
        (
            "return jnp.stack(leaves).all(0)",
            "return jnp.stack(leaves).any(0)",
            MLSTM + "test_a_bad_step_ends_with_its_segment_and_is_bad_by_any_piece",
        ),
    ),
    *_of(
        "cells/lstm.py",
        (
            "c = gates.f * carry.c + gates.i * (",
            "c = gates.f * carry.c + (1 - gates.f) * (",
            f"{REFERENCE}test_unroll_equals_a_numpy_loop_over_the_valid_steps[lstm-lengths-forwards]",
        ),
    ),
    *_of(
        "cells/gru.py",
        (
            "h = (1 - gates.z) * gates.n + gates.z * carry",
            "h = gates.z * gates.n + (1 - gates.z) * carry",
            f"{REFERENCE}test_unroll_equals_a_numpy_loop_over_the_valid_steps"
            "[gru reset after-lengths-forwards]",
        ),
    ),
    *_of(
        "layers/_common.py",
        (
            "return keep_scaled(keep, xs, rate)",
            "return keep_scaled(keep, xs, 0.0)",
            f"{LAYERS}test_dropout_acts_between_layers_and_only_with_a_key",
        ),
    ),
    *_of(
        "layers/stack.py",
        # The noise of a layer and the dropout below it are drawn from one key.
        (
            "split_key(key, len(floors), 1)",
            "split_key(key, len(floors))",
            f"{LAYERS}test_the_noise_of_a_layer_is_not_that_of_the_dropout_below_it",
        ),
        (
            "elementwise_dropout(drop, ys, rate) if i else ys",
            "elementwise_dropout(drop, ys, rate)",
            f"{LAYERS}test_dropout_acts_between_layers_and_only_with_a_key",
        ),
    ),
    *_of(
        "layers/bidirectional.py",
        (
            "keys = split_key(key, 2)",
            "keys = [key, key]",
            f"{LAYERS}test_each_direction_draws_noise_of_its_own",
        ),
    ),
    *_of(
        "layers/window_cell.py",
        (
            "jnp.exp(jnp.minimum(asked, _MOST))",
            "jnp.exp(asked)",
            "layers/test_window_cell.py::"
            "test_whatever_a_window_asks_for_its_values_and_gradients_are_finite",
        ),
    ),
    *_of(
        "layers/recurrent.py",
        (
            "last=masking.take_first if reverse else masking.take_last",
            "last=masking.take_last",
            f"{LAYERS}test_the_last_output_is_what_each_direction_says_at_its_own_end",
        ),
    ),
    *_of(
        "layers/residual.py",
        (
            "_in_one_dtype(masking.zero_padding(valid, xs), ys)",
            "_in_one_dtype(xs, ys)",
            "layers/test_residual.py::test_a_residual_layer_adds_its_input",
        ),
    ),
    *_of(
        "layers/output_head.py",
        (
            "activated(activation, valid, ys)",
            "activated(activation, None, ys)",
            f"{ALONE}[output_head-all]",
        ),
    ),
    *_of(
        "transforms/regularizers.py",
        # Two kinds of noise, or that of two parts of the carry, are drawn from one key.
        (
            "x_key, h_key = jax.random.split(key)",
            "x_key = h_key = key",
            f"{NOISE}test_the_masks_of_inputs_and_hidden_units_are_drawn_apart",
        ),
        (
            "zip(jax.random.split(key, len(leaves)), rates",
            "zip([key] * len(leaves), rates",
            f"{NOISE}test_zoneout_masks_differ_between_steps_and_parts",
        ),
        (
            "return finish_lstm(gates, carry, drop(gates.g))",
            "return finish_lstm(gates, carry._replace(c=drop(carry.c)), gates.g)",
            f"{NOISE}test_recurrent_dropout_is_its_equation_for_the_lstm",
        ),
    ),
    *_of(
        "transforms/normalization.py",
        (
            "centred = a - jnp.mean(a, keepdims=True)",
            "centred = a",
            "transforms/test_normalization.py::test_the_lstm_is_its_equation",
        ),
    ),
    *_of(
        "transforms/precision.py",
        (
            "return _cast_each(inner.initial_carry(lift(params)), state)",
            "return inner.initial_carry(lift(params))",
            "transforms/test_precision.py::"
            "test_a_state_in_float32_holds_where_one_in_bfloat16_stands_still",
        ),
    ),
    *_of(
        "training/updates.py",
        # A step is finite by its loss alone, or by its gradient alone.
        (
            "finite = jnp.isfinite(norm) & jnp.isfinite(loss)",
            "finite = jnp.isfinite(loss)",
            f"{FINITE}test_an_infinite_gradient_of_a_finite_loss_changes_no_parameter",
        ),
        (
            "finite = jnp.isfinite(norm) & jnp.isfinite(loss)",
            "finite = jnp.isfinite(loss) & all_finite(grads)",
            f"{FINITE}test_a_norm_that_overflows_is_not_finite",
        ),
        (
            "finite = jnp.isfinite(norm) & jnp.isfinite(loss)",
            "finite = jnp.isfinite(norm)",
            f"{FINITE}test_a_step_that_is_not_finite_changes_no_parameter_and_no_moment"
            "[optimizer1-bad2]",
        ),
        (
            "finite = jax.lax.cond(finite, stays_finite, lambda *_: jnp.zeros((), bool), *held)",
            "pass",
            f"{FINITE}test_an_update_that_is_not_finite_is_left_out",
        ),
        (
            "in_a_row = (state.skipped_in_a_row + 1) * skipped",
            "in_a_row = state.skipped_in_a_row + skipped",
            f"{FINITE}test_the_limit_counts_only_steps_in_a_row",
        ),
    ),
    *_of(
        "training/steps.py",
        # Without a row for the loss, a micro-batch counts no rows for the other metrics either.
        (
            "no_rows = (weight == 0) & ~jnp.isfinite(pair[0])",
            "no_rows = weight == 0",
            "training/test_accumulating.py::"
            "test_a_metric_counts_its_own_rows_in_a_micro_batch_without_rows_for_the_loss",
        ),
    ),
    *_of(
        "training/averaging.py",
        (
            "1 - jnp.minimum(decay, (1 + t) / (10 + t))",
            "1 - decay",
            f"{TRAIN}test_the_average_of_parameters_is_that_of_a_numpy_loop",
        ),
    ),
    *_of(
        "training/truncated.py",
        (
            "resets |= mask & (jnp.cumsum(mask, axis=1) == 1)",
            "resets |= mask & False",
            f"{TRUNCATED}test_a_learned_start_is_trained_by_the_windows_that_hold_it",
        ),
        (
            "state, end = _where(real, (new, end), (state, last))",
            "state = new",
            f"{TRUNCATED}test_masked_steps_at_the_end_change_nothing_whatever_stands_in_them",
        ),
    ),
    *_of(
        "metrics/means.py",
        (
            "array = jnp.where(scale == 0, 0, array)",
            "pass",
            f"{METRICS}test_a_value_of_weight_0_changes_neither_sum_nor_gradient",
        ),
        (
            "total = metrics if total is None else merge(total, metrics)",
            "total = metrics",
            f"{METRICS}test_evaluate_weighs_a_short_last_batch_by_its_rows",
        ),
    ),
    *_of(
        "metrics/of_classes.py",
        (
            "labels = jnp.where((labels < 0) | (labels >= classes), classes, labels)",
            "pass",
            f"{METRICS}test_a_label_out_of_range_makes_the_loss_nan_and_is_never_another_class",
        ),
    ),
    *_of(
        "data/batching.py",
        (
            "np.searchsorted(self._boundaries, self._lengths)",
            'np.searchsorted(self._boundaries, self._lengths, "right")',
            f"{BATCHES}test_each_example_is_in_the_smallest_bucket_that_holds_it",
        ),
    ),
    *_of(
        "data/_epochs.py",
        (
            "self._filled(np.ones(len(chosen), np.float32))",
            "np.ones(len(self._filled(chosen)), np.float32)",
            f"{BATCHES}test_filler_rows_are_empty_in_every_field",
        ),
    ),
    *_of(
        "data/_bucket_order.py",
        (
            "np.random.default_rng([self.seed, n])",
            "np.random.default_rng([self.seed, 0])",
            f"{BATCHES}test_the_order_depends_on_seed_and_epoch_alone",
        ),
    ),
    *_of(
        "data/packing.py",
        (
            "if left > size:",
            "if left > size + 1:",
            f"{PACKING}test_the_longest_lie_first_each_where_the_least_room_is_left",
        ),
    ),
    *_of(
        "layers/causal_convolution.py",
        # What came before a reset is seen; the carry is that of the end of the row.
        (
            "same = jnp.take_along_axis(segments, places, axis=-1) == of",
            "same = jnp.take_along_axis(segments, places, axis=-1) <= of",
            f"{BLOCKS}test_a_causal_convolution_sees_the_real_steps_of_its_own_segment[resets-2]",
        ),
        (
            "if mask is None and resets is None:",
            "if resets is None:",
            f"{BLOCKS}test_a_causal_convolution_sees_the_real_steps_of_its_own_segment[mask-2]",
        ),
        (
            "    places = length + _numbers(reach",
            "    places = 0 * length + time + _numbers(reach",
            f"{BLOCKS}test_a_causal_convolution_sees_the_real_steps_of_its_own_segment[lengths-2]",
        ),
    ),
    *_of(
        "layers/gated.py",
        # NaN in the padding reaches the gradient of the weights.
        (
            "        xs = masking.zero_padding(valid, xs)\n        gate",
            "        gate",
            f"{BLOCKS}test_nan_in_the_padding_spoils_no_gradient",
        ),
    ),
    *_of(
        "heads/head.py",
        # A masked value is read; one that does not count is counted.
        (
            "scores = score(*masking.zero_padding(mask, (given, values)))",
            "scores = score(given, values)",
            f"{HEADS}test_a_masked_step_is_never_read[bernoulli]",
        ),
        (
            "if mask is None else jnp.sum(jnp.asarray(mask))",
            "if True else jnp.sum(jnp.asarray(mask))",
            f"{HEADS}test_a_masked_step_is_never_read[bernoulli]",
        ),
    ),
    *_of(
        "heads/gaussian_mixture.py",
        (
            "jnp.tanh(angle) * first + second / jnp.cosh(angle)",
            "jnp.tanh(angle) * first + second",
            f"{HEADS}test_draws_of_two_numbers_have_the_moments_of_the_mixture",
        ),
    ),
    *_of(
        "decoding/_loop.py",
        # A row that has ended goes on to be read.
        (
            "ended = now.ended | choice.none_left",
            "ended = now.ended & choice.none_left",
            f"{WRITTEN}test_a_row_ends_with_the_first_value_that_stops_it",
        ),
    ),
    *_of(
        "decoding/sampling.py",
        # The last of the random bits, equal tokens, and infinity.
        (
            "jnp.minimum((words + 0.5) * 2.0**-32, 1 - 2.0**-24)",
            "(words + 0.5) * 2.0**-32",
            f"{TEXTS}test_a_token_without_probability_is_not_drawn_whatever_the_random_bits",
        ),
        (
            "earlier = jnp.tri(len(logits), k=-1, dtype=bool)",
            "earlier = ~jnp.tri(len(logits), dtype=bool)",
            f"{TEXTS}test_of_equal_tokens_the_nucleus_has_the_first_and_no_more_than_reach_p",
        ),
        (
            "jnp.where((logits == largest) & (largest > -jnp.inf), 0.0, logits - largest)",
            "logits - largest",
            f"{TEXTS}test_a_logit_of_infinity_is_certain",
        ),
        # All impossible are all as likely: the search goes on from a dead end.
        (
            "(logits == largest) & (largest > -jnp.inf)",
            "logits == largest",
            "decoding/test_beam_search.py::test_a_dead_end_of_a_grammar_is_in_no_hypothesis",
        ),
    ),
    *_of(
        "models/_decoder_parts.py",
        # A layer above the one that attends is never noisy; attention goes on behind the end.
        (
            "key=on_top",
            "key=None",
            f"{TRANSLATOR}test_every_part_draws_its_noise_in_training",
        ),
        (
            "Attended(hs, masking.zero_padding(valid, weights))",
            "Attended(hs, weights)",
            f"{TRANSLATOR}"
            "test_nothing_is_attended_to_and_nothing_comes_out_behind_the_end_of_a_target",
        ),
    ),
    *_of(
        "models/_encoder_decoder.py",
        # One key for several draws; the source is read without dropout.
        (
            "reading, drop, inside, out = split_key(key, 4)",
            "reading = drop = inside = out = key",
            f"{TRANSLATOR}test_no_two_draws_of_noise_are_of_one_key",
        ),
        (
            "reader.read(params, source, lengths, rate, key)",
            "reader.read(params, source, lengths, 0.0, key)",
            f"{TRANSLATOR}test_dropout_is_of_both_embeddings_and_of_what_the_head_reads",
        ),
    ),
    *_of(
        "models/embedding.py",
        (
            "    tokens = masking.zero_padding_now(valid, tokens)\n",
            "",
            f"{MODELS}test_ids_in_the_padding_are_never_read",
        ),
    ),
]


def run_tests(folder: Path, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """pytest over ``tests`` in the copy of the project that lies in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    paths = [f"tests/{test}" for test in dict.fromkeys(tests)]
    return subprocess.run(
        [*PYTEST, *paths], cwd=folder, env=environment, capture_output=True, text=True
    )


def is_noticed(fault: Fault, folder: Path) -> bool:
    """Whether a test fails with the fault in the copy, which is mended afterwards.

    Raises:
        RuntimeError: the tests could not be run.
    """
    path = folder / "rnnjax" / fault.file
    right = path.read_text("utf-8")
    if right.count(fault.text) != 1:
        raise RuntimeError(f"{fault.file} must have once {fault.text!r}")
    path.write_text(right.replace(fault.text, fault.instead), "utf-8")
    try:
        done = run_tests(folder, fault.tests)
    finally:
        path.write_text(right, "utf-8")
    if done.returncode not in (PASSED, FAILED):
        raise RuntimeError(f"{fault.file}, {fault.instead!r}: {done.stdout[-2000:]}{done.stderr}")
    return done.returncode == FAILED


def main(words: list[str]) -> int:
    """Make every fault whose file or text has one of the words, or all of them."""
    chosen = [f for f in FAULTS if not words or any(w in f.file + f.text for w in words)]
    unnoticed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "rnnjax"
        for part in ("rnnjax", "experiments", "tests"):
            shutil.copytree(CHECKOUT / part, folder / part)
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(CHECKOUT / part, folder)
        done = run_tests(folder, [test for fault in chosen for test in fault.tests])
        if done.returncode != PASSED:
            print(f"the tests must pass without a fault:\n{done.stdout[-5000:]}{done.stderr}")
            return 1
        for number, fault in enumerate(chosen, start=1):
            noticed = is_noticed(fault, folder)
            unnoticed += [] if noticed else [fault]
            state = "noticed" if noticed else "NOT NOTICED"
            print(f"{number:3} {state}: {fault.file}: {fault.instead.strip()}", flush=True)
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only faults whose file or text has such a word")
    sys.exit(main(parser.parse_args().words))
