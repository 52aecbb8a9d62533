"""torch's list of operators and their samples. It asks for ``expecttest``, which images made to run torch may lack."""

from __future__ import annotations

import sys
import types
import unittest
from importlib.util import find_spec

__all__ = ["noncontiguous_like", "op_db"]

if "expecttest" not in sys.modules and find_spec("expecttest") is None:
    # Only the base class of torch's own test cases, none of which runs here.
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    sys.modules["expecttest"] = stand_in

from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import noncontiguous_like
