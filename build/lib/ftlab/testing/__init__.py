"""The conformance suite: what ftlab relies on of every method, ours or a user's, tried on a small network.

    from ftlab.testing import check_method

    def test_my_method():
        check_method(MyMethod(r=4))

`ftlab check-method my.py:MyMethod --method.r 4` does the same on the command line.
"""

from ftlab.testing.report import Broken, Outcome, Report
from ftlab.testing.suite import check_method, examine

__all__ = ["Broken", "Outcome", "Report", "check_method", "examine"]
