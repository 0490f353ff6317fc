"""On a device: what test_cuda.py and test_cuda_train.py show of the same kernels on a CPU.

The tests imported here get the real CuPy from this folder's conftest.
"""

import numpy as np
import pytest
import test_fused as fusing
from test_cuda import (  # noqa: F401  (pytest collects them)
    check_steps,
    test_a_refusal_changes_nothing_and_names_the_element,
    test_a_rise_out_of_int64_is_refused_and_changes_nothing,
    test_an_undo_too_many_is_refused_and_changes_nothing,
    test_encoding_decoding_and_rounding_scales_agree,
    test_fused_steps_have_the_cpus_bits,
    test_pull_backs_have_the_cpus_bits,
    test_ratios_above_one_take_the_cpus_words_and_zeros,
    test_scales_agree_at_every_edge_and_over_many_tiles,
    test_scales_of_all_ratios_agree,
    test_so_do_ratios_above_and_below_one_at_once,
    test_so_have_those_with_numbers_per_element_and_floats,
    test_sums_agree,
    test_the_one_head_that_says_nothing,
    test_words_go_to_the_host_and_come_back,
    test_words_that_are_not_kept_are_counted,
    test_words_that_went_to_the_host_come_back_for_a_rise,
)
from test_cuda_fit import (  # noqa: F401
    test_a_fit_that_was_killed_goes_on,
    test_fit_has_the_cpus_bits,
    test_hyper_on_the_device_learns_there,
    test_steps_are_recorded_on_the_device_too,
    test_what_cannot_be_recorded_is_fitted_all_the_same,
)
from test_cuda_forward import (  # noqa: F401
    test_a_forward_run_that_was_killed_goes_on,
    test_a_loss_that_cannot_be_recorded,
    test_forward_mode,
    test_hyper_on_the_host_whose_numbers_the_loss_takes_apart,
    test_statements_that_cannot_be_recorded,
    test_tangents_go_side_by_side_in_recorded_programs,
    test_the_options_of_forward,
    test_the_transposed_clip_with_a_bound_per_weight,
)
from test_cuda_scan import (  # noqa: F401
    test_a_scan_returns_exactly_and_says_where_it_overflows,
    test_networks_have_the_cpus_hypergradients,
    test_scan_has_the_cpus_bits,
)
from test_cuda_train import (  # noqa: F401
    ADJOINTS,
    OPTIMIZERS,
    agree,
    derivatives,
    hypergradient,
    test_a_gradient_that_differs_is_noticed,
    test_a_run_that_was_killed_goes_on,
    test_hyper_on_the_device_has_its_derivative_there,
    test_overflow_names_step_and_leaf,
)
from test_graphs import (  # noqa: F401
    test_a_replay_is_launched_from_its_third_call_on,
    test_a_step_back_is_launched_too_and_belongs_to_its_step_forward,
    test_an_output_that_is_an_input_stays_it,
    test_aux_is_the_callers_though_graphs_overwrite_it,
    test_copies_from_the_host_are_refused,
    test_every_thread_has_graphs_of_its_own,
    test_inputs_are_read_where_they_are_while_they_stay_there,
    test_numbers_change_without_a_new_graph,
    test_numbers_of_a_first_phase_are_read_in_the_second,
    test_numbers_that_are_part_of_a_graph_lead_to_another,
    test_other_strides_are_another_matter,
    test_parts_of_one_vector_are_copied_at_once,
    test_phases_go_back_to_what_ran_before_them,
    test_products_go_to_cublas_as_cupy_sends_them,
    test_results_are_the_callers,
    test_rows_of_a_data_set_are_taken_by_indices_on_the_device,
    test_those_that_change_too_often_lead_to_none,
    test_training_goes_by_graphs,
    test_two_replays_may_read_what_the_other_wrote,
    test_what_cannot_be_captured_runs_as_it_is_for_good,
    test_what_is_computed_of_numbers_alone_is_done_before_a_launch,
    test_what_nothing_reads_may_change,
)


@pytest.mark.parametrize("size", [1_000_003, 3_000_000])
def test_large_vectors_have_the_cpus_bits(cupy, size):
    check_steps(cupy, *fusing.LISTS["adam"], size, steps=3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_adjoints_agree_to_the_bit_and_a_run_with_itself(cupy, optimizer):
    """Gradients are the device's own here, so the CPU's bits are not to be had."""
    names = ("reversible", "stored", "checkpointed")
    found = [hypergradient(cupy.asarray, optimizer, ADJOINTS[name], steps=40) for name in names]
    again = hypergradient(cupy.asarray, optimizer, ADJOINTS["reversible"], steps=40)
    assert all(x[:3] == again[:3] for x in found)
    assert found[0][3].returned_exactly


def test_the_hypergradient_is_near_the_cpus(cupy):
    agree(cupy, lambda put: derivatives(put, "momentum", ADJOINTS["reversible"])[:3])


def test_products_of_matrices_repeat(cupy):
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        a, b = (cupy.asarray(rng.standard_normal((300, 300)).astype(dtype)) for _ in range(2))
        assert len({(a @ b).tobytes() for _ in range(20)}) == 1


def test_float32_products_are_not_those_of_tf32(cupy):
    a = cupy.full((256, 256), 1 + 2.0**-12, np.float32)
    assert abs(float((a @ a)[0, 0]) / 256 - (1 + 2.0**-12) ** 2) < 1e-6  # TF32 drops 2**-12
