"""Small errors as one makes them in the rooms channel and fusion, for `test_seeded_faults.py`."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Fault:
    """One error in one file of the package."""

    name: str
    file: str
    """Below the package."""
    old: str
    """What stands in the file, exactly once."""
    new: str
    tests: tuple[str, ...]
    """The quickest of those that fail then: file of this folder, `::` and name."""


CHANNEL = (
    Fault(
        "Q in place of N_R",
        "channel/attacks.py",
        "budget / antennas)",
        "budget / k.shape[0])",
        ("test_channel_covariances.py::test_covariance_is_the_attack[230.0-1.0-white]",),
    ),
    Fault(
        "no conjugate in an outer product",
        "channel/attacks.py",
        "along = column[:, None] * column.conj()",
        "along = column[:, None] * column",
        ("test_channel_covariances.py::test_covariance_is_the_attack[230.0-1.0-strongest_user]",),
    ),
    Fault(
        "order of decoding by the powers after the attack",
        "channel/errors.py",
        "received_power(gram(h_tilde))}",
        "received_power(effective)}",
        ("test_channel_covariances.py::test_covariance_is_the_attack[230.0-1.0-strongest_user]",),
    ),
    Fault(
        "no square root of the eigenvalues",
        "channel/spectral_attacks.py",
        "    root = jnp.sqrt(eigenvalues)\n    # Both bounds",
        "    root = eigenvalues\n    # Both bounds",
        ("test_channel_attacks.py::test_sum_rate_powers_meet_budget_and_kkt_over_160_db",),
    ),
    Fault(
        "floor not taken off the attacker's power",
        "channel/spectral_attacks.py",
        "_sigma(root, nu)[0] - noise, 0)",
        "_sigma(root, nu)[0], 0)",
        ("test_channel_attacks.py::test_powers_that_count_the_floor_meet_the_budget",),
    ),
    Fault(
        "floor forgotten in the optimum",
        "channel/spectral_attacks.py",
        "needed = eigenvalues + noise",
        "needed = eigenvalues",
        ("test_channel_sdp.py::test_sum_mse_is_the_programs_optimum",),
    ),
    Fault(
        "weights in place of amplitudes",
        "channel/min_max_rate_attack.py",
        "amplitude = jnp.sqrt(min_max_weights(gram))",
        "amplitude = min_max_weights(gram)",
        ("test_channel_covariances.py::test_covariance_is_the_attack[230.0-1.0-min_max_rate]",),
    ),
    Fault(
        "a receiver that should not know the attacker does",
        "channel/receivers.py",
        "return jnp.zeros_like(attack), noise",
        "return attack, noise",
        ("test_channel_covariances.py::test_an_unaware_receiver_is_the_textbook_filter",),
    ),
    Fault(
        "a covariance whose slope is that of its eigenvectors alone",
        "channel/spectral_attacks.py",
        "with_derivative_of(moved, ",
        "with_derivative_of(0 * moved, ",
        (
            "test_channel_covariances.py::"
            "test_a_covariance_has_the_derivatives_of_finite_differences[sum_rate]",
        ),
    ),
    Fault(
        "first decoded user first",
        "channel/rates.py",
        "last_first = order_indices[::-1]",
        "last_first = order_indices",
        ("test_channel_link.py::test_error_covariance_of_the_filters",),
    ),
    Fault(
        "diagonal in the feedback filter",
        "channel/equalise.py",
        "jnp.triu(factor.conj().T, 1)",
        "jnp.triu(factor.conj().T)",
        ("test_channel_link.py::test_only_users_decoded_before_are_cancelled",),
    ),
    Fault(
        "no conjugate in the users' correlation",
        "channel/fading.py",
        "transmit.conj().T)",
        "transmit.T)",
        ("test_channel_fading.py::test_kronecker_moments",),
    ),
    Fault(
        "one key for two draws",
        "channel/fading.py",
        "_ANGLES, _SCATTERED = 0, 1",
        "_ANGLES, _SCATTERED = 0, 0",
        ("test_channel_fading.py::test_rician_keeps_its_numbers",),
    ),
    Fault(
        "later draws are the first again",
        "channel/realisation.py",
        "jnp.asarray(first, jnp.uint32) + jnp.arange(",
        "jnp.arange(",
        ("test_channel_preset.py::test_draws_go_on_where_others_ended",),
    ),
    Fault(
        "power in place of amplitude",
        "channel/realisation.py",
        "jnp.sqrt(gain / at_reference * share)",
        "(gain / at_reference * share)",
        ("test_channel_preset.py::test_fading_is_the_presets",),
    ),
    Fault(
        "height over the ground and not over the environment",
        "channel/path_loss.py",
        "(self.user_height_m - 1) * self.frequency_hz",
        "self.user_height_m * self.frequency_hz",
        ("test_channel_geometry.py::test_urban_losses_are_those_of_the_tr",),
    ),
    Fault(
        "watts taken for milliwatts",
        "channel/path_loss.py",
        "1e3 * thermal_w",
        "thermal_w",
        ("test_channel_link_budget.py::test_noise_of_one_hertz_at_290_kelvin",),
    ),
    Fault(
        "positive favours 1",
        "channel/modem.py",
        "(zero - one)",
        "(one - zero)",
        ("test_channel_modem.py::test_soft_values_are_the_sums_over_all_symbols",),
    ),
    Fault(
        "edge of a cell in place of its middle",
        "channel/quantise.py",
        "(2 * levels + 1)",
        "(2 * levels)",
        ("test_channel_modem.py::test_outside_the_clip_range_the_outermost_cells_are_used",),
    ),
    Fault(
        "one key for noise and scrambling",
        "channel/link.py",
        "_NOISE, _SCRAMBLING, _MEASURED = 0, 1, 2",
        "_NOISE, _SCRAMBLING, _MEASURED = 0, 0, 2",
        ("test_channel_link.py::test_noise_and_scrambling_keep_their_numbers",),
    ),
)

FUSION = (
    Fault(
        "base minus fine-tuned",
        "fusion/task_vectors.py",
        "after - before, finetuned",
        "before - after, finetuned",
        ("test_fusion.py::test_merging_back_all_of_one_task_vector_gives_the_finetuned_model",),
    ),
    Fault(
        "layer numbers of one digit",
        "fusion/layers.py",
        r'_NUMBERED = r"[./_]\d+"',
        r'_NUMBERED = r"[./_]\d"',
        ("test_fusion_layers.py::test_a_leaf_belongs_to_its_block_or_module",),
    ),
    Fault(
        "half precision not widened",
        "fusion/trees.py",
        "jnp.promote_types(leaf.dtype, jnp.float32)",
        "leaf.dtype",
        ("test_fusion_leaves.py::test_sums_over_half_precision_are_taken_in_float32",),
    ),
    Fault(
        "last chunk in place of the sum",
        "fusion/similarity.py",
        "total += chunk @ chunk.T",
        "total = chunk @ chunk.T",
        ("test_fusion_similarity.py::test_sums_do_not_lose_small_coordinates",),
    ),
    Fault(
        "last user left out",
        "fusion/merge.py",
        "range(1, users)",
        "range(1, users - 1)",
        ("test_fusion.py::test_weighted_sum",),
    ),
    Fault(
        "last of equal scores",
        "fusion/scale.py",
        "scales[np.argmax(scores)]",
        "scales[-1 - np.argmax(scores[::-1])]",
        ("test_fusion_scale.py::test_of_equal_scores_the_smaller_wins",),
    ),
    Fault(
        "density rounded and not cut",
        "fusion/rules/sparsifiers.py",
        "int(density * magnitudes.shape[1])",
        "round(density * magnitudes.shape[1])",
        ("test_fusion_rules.py::test_ties_of_one_vector_is_the_vector_trimmed",),
    ),
    Fault(
        "a tied vote elects nobody",
        "fusion/rules/sparsified.py",
        "jnp.where(sum(votes) >= 0, 1, -1)",
        "jnp.sign(sum(votes))",
        ("test_fusion_rules.py::test_a_tied_vote_elects_plus",),
    ),
    Fault(
        "what is kept is not rescaled",
        "fusion/rules/sparsifiers.py",
        "row * (1 / (1 - drop))",
        "row",
        ("test_fusion_rules.py::test_dare_is_a_sum_of_what_is_kept_rescaled",),
    ),
    Fault(
        "one mask for all users",
        "fusion/rules/sparsifiers.py",
        "jax.random.fold_in(leaf_key, user), shape, jnp",
        "leaf_key, shape, jnp",
        ("test_fusion_rules.py::test_dare_drops_as_often_as_it_says_and_independently",),
    ),
    Fault(
        "the angle to all models, oneself among them",
        "fusion/rules/model_stock.py",
        "by_user * (1 - jnp.eye(len(by_user)))",
        "by_user * jnp.ones((len(by_user),) * 2)",
        ("test_fusion_rules_geometry.py::test_model_stock_at_its_edges",),
    ),
    Fault(
        "singular vectors that stay as they are",
        "fusion/rules/singular.py",
        "return _orthonormal(jnp.where(chosen.ravel()[order], columns, 0))",
        "return jnp.where(chosen.ravel()[order], columns, 0)",
        ("test_fusion_rules_geometry.py::test_tsv_merge_at_its_edges",),
    ),
    Fault(
        "outliers kept",
        "fusion/rules/sparsifiers.py",
        "(magnitudes >= least) & (magnitudes <= most)",
        "(magnitudes >= least)",
        ("test_fusion_rules_masks.py::test_breadcrumbs_by_hand",),
    ),
    Fault(
        "statistics of any model",
        "fusion/files/statistics.py",
        "if _hash(_read(entry)) != file.hashes[name]:",
        "if not _hash(_read(entry)):",
        ("test_fusion_files_statistics.py::test_statistics_of_something_else_are_refused",),
    ),
    Fault(
        "a vector in the mean that it is compared to",
        "fusion/rules/lata.py",
        "1 - jnp.eye(users, dtype=gram.dtype)",
        "jnp.ones((users, users), gram.dtype)",
        ("test_fusion_rules_layers.py::test_lata[False-block-linear]",),
    ),
    Fault(
        "Adam without bias correction",
        "fusion/rules/adamerging.py",
        "mean / (1 - 0.9**number)",
        "mean",
        ("test_fusion_rules_learned.py::test_weights_follow_adam_step_by_step[tensor-True]",),
    ),
    Fault(
        "scale forgotten",
        "fusion/files/merging.py",
        "return scale * merged",
        "return merged",
        ("test_fusion_files.py::test_every_layout_gives_the_plain_merge[file]",),
    ),
    Fault(
        "mask of the first user for all",
        "fusion/files/merging.py",
        "key, masks, user)",
        "key, masks, 0)",
        ("test_fusion_files.py::test_a_method_on_files_gives_what_it_gives_in_memory[dare]",),
    ),
    Fault(
        "rows of embeddings by their number",
        "fusion/files/vocabulary.py",
        "found[row] = side.rows[token]",
        "found[row] = row if row < side.size else -1",
        ("test_fusion_vocabulary.py::test_tokens_in_other_rows_go_by_their_text",),
    ),
    Fault(
        "new tokens start from zero",
        "fusion/files/vocabulary.py",
        "total[there] += _values(entry)[rows[missing][there]]",
        "total[there] += 0",
        ("test_fusion_vocabulary.py::test_a_union_has_all_tokens",),
    ),
    Fault(
        "a free head taken for a tied one",
        "fusion/files/adjustments.py",
        "original in entries and _same(entries[copy], entries[original])",
        "original in entries",
        ("test_fusion_matching.py::test_a_head_that_is_free_on_one_side_is_refused",),
    ),
    Fault(
        "all of a name that one pattern begins",
        "fusion/files/matching.py",
        "not any(re.fullmatch(each, key) for each in self.from_base)",
        "not any(re.match(each, key) for each in self.from_base)",
        ("test_fusion_matching.py::test_a_pattern_matches_the_whole_of_a_name",),
    ),
    Fault(
        "a tensor too many in a file",
        "fusion/files/plan.py",
        "filled + tensor.size > limit",
        "filled > limit",
        ("test_fusion_files.py::test_shards_have_an_index_and_no_more_than_their_size",),
    ),
)

FAULTS = (*CHANNEL, *FUSION)


def pytest_in(copy: Path, words: list[str], said: Path) -> None:
    """Run pytest in a copy and exit as it does; the last line it says is the package's file."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    with said.open("w") as file, contextlib.redirect_stdout(file):
        code = pytest.main(words)
        import rmtllmf_jax

        print(rmtllmf_jax.__file__)
    sys.exit(code)
