"""From a call to a plan that runs: solvers ranked, plans kept, explained; entered by functional, ops and tuning."""

from . import scaled, separable
from .deform import deform_call
from .execution import OBSERVERS, explaining, observed, record_plans, record_problems, run, without_batch
from .explainer import explain
from .explanation import Candidate, Explanation
from .plan_cache import (
    CACHE,
    UnkeyedError,
    conv_call,
    conv_key,
    conv_transpose_call,
    input_grad_call,
    prepared,
    signatures,
    weight_grad_call,
)
from .plan_cache_pool import run_pool
from .problems import from_json, problem_from_json, problem_to_json, to_json
from .scaled import keyed, scaled_call
from .selection import TUNERS, backends, candidates, planned, register_solver, select, solver_of, unregister_solver
from .separable import separable_call

__all__ = [
    "CACHE",
    "OBSERVERS",
    "TUNERS",
    "Candidate",
    "Explanation",
    "UnkeyedError",
    "backends",
    "candidates",
    "conv_call",
    "conv_key",
    "conv_transpose_call",
    "deform_call",
    "explain",
    "explaining",
    "from_json",
    "input_grad_call",
    "keyed",
    "observed",
    "planned",
    "prepared",
    "problem_from_json",
    "problem_to_json",
    "record_plans",
    "record_problems",
    "register_solver",
    "run",
    "run_pool",
    "scaled",
    "scaled_call",
    "select",
    "separable",
    "separable_call",
    "signatures",
    "solver_of",
    "to_json",
    "unregister_solver",
    "weight_grad_call",
    "without_batch",
]
