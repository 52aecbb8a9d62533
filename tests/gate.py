"""What the gate (``make test``) runs of each list of cases: a part that is always the same, so that it stays short.

``GPUCONV_TEST_FULL=1`` (``make test-full``) runs all of it, but for lists that take long to compile, of which either
Triton has a part; ``GPUCONV_TEST_BOTH=1`` beside it runs everything on both. Which cases a part has is told by their
names alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping

import pytest

__all__ = ["COMPILED_IN_PARTS", "PARTS", "left_out", "left_out_in_full", "shares"]

PARTS: Mapping[str, int] = {
    # tests/parity and tests/unit
    "test_conv_workspace::test_workspace_is_what_the_plan_states": 8,
    "test_conv_epilogue::test_epilogue": 6,
    "test_conv_numpy::test_forward": 3,
    "test_conv_numpy::test_gradients": 3,
    "test_conv_numpy::test_transposed": 3,
    "test_conv_opinfo::test_samples": 2,
    "test_conv_gradients::test_opinfo_gradients": 4,
    "test_causal_conv1d::test_gradcheck": 3,
    "test_pool_autograd::test_lp_gradients": 2,
    "test_pool_opinfo::test_samples": 12,
    "test_pool_pieces::test_pieces_are_torchs": 2,
    "test_operand_layouts::test_arrays_of_numpy": 2,
    "test_operand_layouts::test_torch_tensors": 2,
    "test_replaced_compile::test_compiled_after_replacement": 2,
    "test_pool_numpy::test_avg": 2,
    "test_pool_numpy::test_max": 2,
    "test_pool_numpy::test_tiles_do_not_change_the_result": 2,
    "test_torch_edges::test_no_channels_have_gradients_without_a_batch_alone": 3,
    "test_conv_numpy::test_small_integers_are_exact": 3,
    "test_shapes::test_fractional_starts_are_torchs": 2,
    "test_shapes::test_output_size_is_torchs": 3,
    "test_cost_model::test_a_fit_to_noisy_timings_ranks_held_out_problems": 3,
    "test_model_gap::test_layers_are_near_the_roofline": 20,
    "test_explain_gpu::test_every_layer_says_what_runs_and_why_nothing_else": 8,
    "test_summary::test_takes_no_memory": 2,
    "test_flop_counts::test_any_order_of_imports": 2,
    "test_pool_autograd::test_opinfo_gradients": 12,
    "test_cli::test_explain_every_kind_of_function": 3,
    "test_shape_questions::test_padding_for_a_size_by_brute_force": 3,
    "test_func::test_tangents_have_tangents": 2,
    "test_conv_opinfo::test_gradients_of_samples": 2,
    "test_conv_rounding::test_recorded_traced_and_transformed": 3,
    "test_deform::test_equals_the_referee": 6,
    "test_deform::test_numpy_arrays_give_the_same": 6,
    "test_deform::test_gradcheck": 3,
    # tests/compile: Dynamo and Inductor take seconds for each case
    "test_compile::test_inductor": 4,
    "test_compile::test_every_function": 4,
    "test_compile::test_five_new_shapes_compile_nothing_new": 2,
    "test_composed_compile::test_new_sizes_compile_nothing_new": 2,
    "test_pool_compile::test_inductor": 2,
    "test_pool_compile::test_every_function": 4,
    "test_pool_compile::test_new_shapes_compile_nothing_new": 2,
    "test_pool_compile::test_reloaded_in_a_fresh_process": 2,
    "test_pool_operators::test_opcheck": 8,
    "test_operators::test_opcheck": 4,
    "test_composed_compile::test_compile_in_one_graph": 3,
    "test_composed_compile::test_export": 2,
    "test_scaled_compile::test_compile_in_one_graph": 4,
    "test_scaled_compile::test_opcheck": 2,
    "test_deform_compile::test_opcheck": 12,
    "test_deform_compile::test_opcheck_in_other_dimensions": 6,
    "test_onnx::test_equal_with_a_dynamic_batch": 6,
    "test_onnx::test_what_cannot_be_exported_says_so": 3,
    "test_onnx::test_equal_with_dynamic_sizes": 4,
    "test_deform_compile::test_compile_in_one_graph": 2,
    "test_export::test_export": 2,
    "test_export::test_reloaded_in_a_fresh_process": 2,
    "test_pool_compile::test_export": 2,
    "test_func::test_compiled_transforms": 2,
    # tests/executor
    "test_hopper::test_equal_on_integers": 45,
    "test_hopper::test_close_on_reals": 18,
    "test_hopper::test_every_seed": 3,
    "test_hopper::test_wgrad_on_integers": 20,
    "test_hopper::test_activations_of_what_is_not_finite": 3,
    "test_bytes::test_bytes_of_a_unit": 2,
    "test_plans::test_planned_form": 24,
    "test_plans::test_images_in_parts": 4,
    "test_plans::test_columns_as_channels": 3,
    "test_plans::test_operands_that_lie_oddly": 12,
    "test_signals::test_signals_in_segments": 8,
    "test_signals::test_fault_is_noticed": 2,
    "test_shares::test_equal_shares": 12,
    "test_shares::test_every_seed": 6,
    "test_shares::test_fault_is_noticed": 3,
    "test_phases::test_phases_of_one_launch": 7,
    "test_phases::test_every_seed": 6,
    "test_phases::test_fault_is_noticed": 2,
    "test_phases::test_no_fault_is_reachable": 2,
    "test_prover::test_wrong_results_are_noticed": 2,
    "test_prover::test_fault_is_found_by_the_search": 2,
    # tests/cuda_on_cpu
    "test_pool_windows::test_matches_reference": 3,
    "test_conv_dgrad::test_dgrad": 2,
    "test_conv_wgrad::test_wgrad": 2,
    "test_conv_deform_cuda::test_matches_reference": 30,
    "test_conv_deform_cuda::test_several_tiles": 4,
    "test_conv_deform_cuda::test_mutant_is_noticed": 12,
    "test_conv_deform_cuda::test_address_sanitizer": 6,
    "test_conv_mutations::test_mutants_are_noticed": 4,
    "test_conv_mutations::test_address_sanitizer": 3,
    "test_conv_mutations::test_thread_sanitizer": 3,
    "test_operand_layouts_cupy::test_layout": 2,
    "test_pool_mutations::test_mutants_of_windows_are_noticed": 4,
    "test_pool_mutations::test_thread_sanitizer": 2,
    "test_pool_mutations::test_address_sanitizer": 3,
    # tests/distributed
    "test_distributed::test_case": 2,
    # tests/codegen and tests/launch: of what stands here each Triton compiles a half
    "test_codegen_deform::test_the_model_counts_what_loops_have": 2,
    "test_codegen_deform::test_plans_by_default_compile_without_spills_to_tensor_cores": 2,
    "test_codegen_scaled::test_plans_by_default_compile_without_spills_to_tensor_cores": 2,
    "test_codegen_narrow::test_what_is_planned_otherwise_there_does_not_spill": 2,
    "test_options_launched::test_every_launch_lets_products_and_sums_fuse": 2,
    "test_launch::test_the_driver_is_asked_the_same": 2,
    "test_packs::test_the_driver_is_asked_what_triton_asks": 6,
    "test_repeated::test_calls_of_a_family_that_look_alike": 4,
}
"""Into how many parts the list of cases of a test is cut, of which the gate runs one."""

COMPILED_IN_PARTS: Mapping[str, int] = {
    "test_codegen_deform::test_plans_by_default_compile_without_spills_to_tensor_cores": 4,
    "test_codegen_deform::test_the_model_counts_what_loops_have": 2,
    "test_codegen_scaled::test_plans_by_default_compile_without_spills_to_tensor_cores": 2,
    "test_codegen_tma::test_form": 2,
    "test_launch::test_the_driver_is_asked_the_same": 2,
    "test_nvrtc::test_rows_are_what_the_compiler_does_today": 3,
    "test_options_launched::test_every_launch_lets_products_and_sums_fuse": 2,
}
"""Into how many parts a list is cut of which the full run compiles one on either Triton, not the same: an hour less.

CUDA sources are compiled beside the latest Triton alone: of their rows, whose hashes are all compared, a third.
"""

SHARED = {"codegen", "launch"}
"""Folders of tests that run on two releases of Triton: in the gate either has a half of each list of cases.

What is one case alone runs on both: that a table is of today's sources is asked of the part of either release.
"""

WHOLE = {
    "test_codegen_hopper",
    "test_nvrtc",
    "test_packs",
    "test_packs_launched",
    "test_front_end_solvers",
    "test_parity_launches",
}
"""Files of those that run on one release alone, or that have a sample of their own for either."""


def parts_of(item: pytest.Item) -> int:
    """Return in how many parts the list of cases is that an item is of."""
    return PARTS.get(f"{item.path.stem}::{getattr(item, 'originalname', None)}", 1)


def shares(items: Iterable[pytest.Item]) -> Iterator[tuple[pytest.Item, int, int]]:
    """Yield each item, its place in a shuffled list of the cases of its test, and their number.

    The first place of a test is any number: where each has one case alone, some tests have it at an even place.
    """
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0].rpartition("/")[2], []).append(item)
    for test, cases in tests.items():
        shuffled = sorted(cases, key=lambda item: (zlib.crc32(item.name.encode()), item.name))
        for place, item in enumerate(shuffled, zlib.crc32(test.encode()) % 2):
            yield item, place, len(cases)


def left_out_in_full(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Return the items that the full run leaves to the other release of Triton, or to a run of everything."""
    found = set()
    for item, place, _ in shares(items):
        parts = COMPILED_IN_PARTS.get(f"{item.path.stem}::{getattr(item, 'originalname', None)}", 1)
        if parts > 1:
            import triton

            if place % parts != int(triton.__version__.startswith("3.6.")):
                found.add(item)
    return found


def left_out(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """Return the items that the gate does not run; the interpret lane has parts of its own."""
    found = set()
    for item, place, number in shares(items):
        parts = min(parts_of(item), number)
        if number > 1 and item.path.parent.name in SHARED and item.path.stem not in WHOLE:
            import triton

            kept = place % (2 * parts) == int(triton.__version__.startswith("3.6."))
        else:
            kept = place % parts == parts - 1
        if not kept:
            found.add(item)
    return found
